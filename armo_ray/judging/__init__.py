"""Judges: generative models with a prompt, and a rule that reads a verdict from what they write."""
