"""`armo-ray report`: the page that people read of an output, and how far its numbers drifted."""
