"""Measures of scores that several commands share."""
