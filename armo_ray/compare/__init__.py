"""`armo-ray compare`: how two outputs over the same rows differ."""
