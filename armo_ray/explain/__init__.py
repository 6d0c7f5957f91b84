"""`armo-ray explain`: one row traced back: its source, what the model read, and what its score is made of."""
