"""Checkpoints: what a run's folder and a file hold, the list of those that can be downloaded, reading and writing."""
