"""What `scripts/promises` runs: every promise that is one of time."""
