"""Prediction: images in, answers out, for any classifier."""
