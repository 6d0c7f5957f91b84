"""What can be read of a reward model without torch: its family, checkpoint, tokenizer and chat template."""
