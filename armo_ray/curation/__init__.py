"""What is made from scores, without a GPU: pairs, labels, filters, new weights."""
