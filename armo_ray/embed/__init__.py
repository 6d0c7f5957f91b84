"""`armo-ray embed`: the hidden states of a model, from which a head is fitted."""
