"""Datasets made from scores: no model, no GPU. DuckDB reads; what is written tells how it was made."""
