"""Training: run folders, their records, exact resuming, and the command that drives Lightning."""
