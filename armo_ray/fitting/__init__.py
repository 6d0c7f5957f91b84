"""Rewards fitted to labels on the hidden states of a frozen model: linear heads, debiasing and gates."""
