"""From raw videos to batches: cleaning, shards, the deterministic stream, the demo videos."""
