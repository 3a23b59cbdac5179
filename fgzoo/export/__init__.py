"""A checkpoint as a file that runs without fgzoo. Importing this module imports no torch."""

from __future__ import annotations

from typing import Literal

Format = Literal["onnx", "openvino", "torch-export"]
Quantization = Literal["none", "int8"]
#: Suffix of a file by its format; beside OpenVINO's lies one of weights.
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}
