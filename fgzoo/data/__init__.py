"""Data: readers of the official files, decoding, transforms, and the one data module."""
