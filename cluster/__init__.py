"""Where a run happens: Ray Train workers, ZeRO engines and sharded checkpoints."""
