"""Storage: URIs, stores, shards, units of work, readers, parts, commits, models. Imports neither torch nor Ray."""
