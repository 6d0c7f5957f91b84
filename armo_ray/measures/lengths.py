"""Ratios between the lengths of two responses."""

LENGTH_RATIOS = (0.5, 0.8, 1.25, 2.0)  # boundaries between bins
