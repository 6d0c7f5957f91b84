"""`armo-ray verify`: whether a model works on this machine as it should, and whether an output is whole."""
