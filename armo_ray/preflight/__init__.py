"""Whether a model works on this machine as it should, before a corpus is scored with it."""
