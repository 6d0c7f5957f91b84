"""`armo-ray plan`: what a run will take, from footers, a sample of the input and earlier commit records."""
