"""One row traced through a job: where it came from, what the model read, and what its score is made of."""
