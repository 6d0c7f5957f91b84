"""What a run will take, told before it starts: from footers, a sample of the input and earlier commit records."""
