"""A checkpoint as a file that runs without fgzoo. Importing this module imports no torch."""

from __future__ import annotations

from typing import Literal

Format = Literal["onnx", "torch-export"]
#: Suffix of a file by its format.
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
