"""What `scripts/soak` runs: a service, a crowd that comes and goes, and what both are held against."""
