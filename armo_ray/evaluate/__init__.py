"""`armo-ray evaluate`: how often scores prefer the better response, by the rules of known benchmarks."""
