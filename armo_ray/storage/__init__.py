"""Where bytes live: URIs, stores, shards and units of work, readers, parts, commits, models. No torch, no Ray."""
