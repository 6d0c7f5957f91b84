"""`armo-ray score`: from a configuration to a committed output."""
