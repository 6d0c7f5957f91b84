"""`armo-ray mine`, `label`, `filter` and `reweigh`: make datasets from scores, without a model or a GPU."""
