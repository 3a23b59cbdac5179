"""Prediction: images in, answers out, for any classifier. Importing this module imports no torch."""

from __future__ import annotations

from typing import Literal

TestTime = Literal["none", "flip", "five-crop", "ten-crop"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
#: What predictions and features are written as: rows of either form, or arrays of features.
Form = Literal["csv", "jsonl", "npy", "npz"]
#: The share of images of the known classes that may be rejected, or that nothing is.
Reject = float | Literal["off"]
