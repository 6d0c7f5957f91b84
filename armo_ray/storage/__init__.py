"""Where bytes live: URIs, shards and units of work, readers, parts, commits. No torch, no Ray."""
