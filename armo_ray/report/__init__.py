"""What people read of an output: its card, the report and the drift of its numbers."""
