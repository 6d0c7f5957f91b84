"""`armo-ray report`: a page about outputs, and how far their scores drifted."""
