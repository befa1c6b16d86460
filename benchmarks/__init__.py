"""Programs that measure side by side: `python -m benchmarks NAME`."""
