"""`armo-ray verify`: checks that a model works correctly on this machine, and that an output is intact."""
