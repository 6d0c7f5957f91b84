"""Models behind an OpenAI-compatible endpoint: requests, their limits, and the journal of what was answered."""
