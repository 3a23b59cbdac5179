"""Prediction: images in, answers out, for any classifier. Importing this module imports no torch."""

from __future__ import annotations

from typing import Literal

TestTime = Literal["none", "flip", "five-crop", "ten-crop"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
