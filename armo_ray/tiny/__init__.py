"""`armo-ray tiny-model`: tiny random checkpoints of every family."""
