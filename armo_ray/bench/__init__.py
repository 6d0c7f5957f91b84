"""The benchmark: the engine against plain transformers code, on the same weights, device and token ids.

One command, one run, one table, and a JSON file with every measured second. Needs what the engine needs.
"""
