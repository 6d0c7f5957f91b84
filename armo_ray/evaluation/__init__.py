"""How well scores tell better answers from worse: rules of known benchmarks, measures, tables, figures. No files."""
