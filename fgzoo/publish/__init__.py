"""From a run to a checkpoint that others load by name."""
