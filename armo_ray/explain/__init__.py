"""`armo-ray explain`: traces one row: its source, the tokens that the model read, and the terms of its score."""
