"""`armo-ray mine`, `label`, `filter` and `reweigh`: datasets made from scores, without a model or a GPU."""
