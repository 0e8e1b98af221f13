"""Seeded fuzzing: inputs that a seed and an index make again, and what must hold for each of them."""
