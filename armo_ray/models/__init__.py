"""`armo-ray models`: the families of reward models."""
