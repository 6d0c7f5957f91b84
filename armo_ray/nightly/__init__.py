"""`armo-ray nightly`: a whole night as one job, from scores to published datasets."""
