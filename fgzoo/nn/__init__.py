"""Blocks of torch only: no Lightning, no files, no devices."""

from fgzoo.nn.attention import TemporalAttention
from fgzoo.nn.backbone import Backbone
from fgzoo.nn.bilinear import signed_sqrt
from fgzoo.nn.crops import (
    activation_boxes,
    attention_boxes,
    attention_drop,
    center_boxes,
    crop_boxes,
    paste_boxes,
    random_boxes,
)
from fgzoo.nn.maps import class_activation_map, normalize_map
from fgzoo.nn.output import MethodOutput
from fgzoo.nn.randomness import keyed_uniform
from fgzoo.nn.recurrent import RepeatedInputLSTM

__all__ = [
    "Backbone",
    "MethodOutput",
    "RepeatedInputLSTM",
    "TemporalAttention",
    "activation_boxes",
    "attention_boxes",
    "attention_drop",
    "center_boxes",
    "class_activation_map",
    "crop_boxes",
    "keyed_uniform",
    "normalize_map",
    "paste_boxes",
    "random_boxes",
    "signed_sqrt",
]
