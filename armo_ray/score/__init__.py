"""`armo-ray score`: turns a configuration into a committed output."""
