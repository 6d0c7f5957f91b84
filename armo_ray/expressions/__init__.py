"""Expressions over the columns of scores, as used in options."""
