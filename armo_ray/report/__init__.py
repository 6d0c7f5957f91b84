"""What people read of an output."""
