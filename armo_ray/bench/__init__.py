"""The benchmark: the engine compared with plain transformers code, on the same weights, device and token ids.

It prints a table per workload and writes a JSON file with all raw measurements. Needs only the engine's packages.
"""
