"""`armo-ray judge`: scores by a generative model behind an endpoint, committed as those of a reward model."""
