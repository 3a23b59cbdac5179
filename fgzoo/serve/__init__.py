"""A page on this machine to drop a photo on. Importing this module imports no torch."""
