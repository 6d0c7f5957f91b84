"""`armo-ray layouts`: the layouts of public data sets."""
