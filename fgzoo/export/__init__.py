"""A checkpoint as a file that runs without fgzoo."""
