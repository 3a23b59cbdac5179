"""Models by name: making them, and reading and writing their checkpoints."""
