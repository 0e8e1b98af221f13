"""What `scripts/mutants` runs: planted faults that the tests must catch."""
