"""`armo-ray fit`: a reward model made of hidden states and labels."""
