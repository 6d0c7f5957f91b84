"""`armo-ray evaluate`: how well scores tell better answers from worse, by the rules of known benchmarks."""
