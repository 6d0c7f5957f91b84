"""`armo-ray tiny-model`: tiny checkpoints with random weights for every family."""
