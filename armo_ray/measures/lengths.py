"""How much longer one answer is than another."""

LENGTH_RATIOS = (0.5, 0.8, 1.25, 2.0)  # between bins
