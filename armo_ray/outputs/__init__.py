"""What every command reads and writes: the schemas, opened outputs, new datasets and their cards."""
