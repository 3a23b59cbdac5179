"""Blocks of torch only: no Lightning, no files, no devices."""

from fgzoo.nn.attention import TemporalAttention
from fgzoo.nn.attention_pooling import AttentionMaps, ClassCenters, bilinear_attention_pooling, draw_map, map_similarity
from fgzoo.nn.backbone import Backbone
from fgzoo.nn.bilinear import LowRankBilinear, bilinear_evidence, bilinear_pool, power_normalize, signed_sqrt
from fgzoo.nn.crops import (
    activation_boxes,
    attention_boxes,
    attention_drop,
    center_boxes,
    crop_boxes,
    paste_boxes,
    random_boxes,
)
from fgzoo.nn.evidence import EvidenceHead, alignment_loss, distillation_loss
from fgzoo.nn.inverse_mapping import InverseMapping, box_region, soft_boxes, soft_crop
from fgzoo.nn.jigsaw import jigsaw, jigsaw_order, undo_jigsaw
from fgzoo.nn.local_attention import LocalAttention, attend, coverage_penalty
from fgzoo.nn.maps import class_activation_map, normalize_map
from fgzoo.nn.output import MethodOutput
from fgzoo.nn.randomness import draw_uniform, keyed_uniform
from fgzoo.nn.recurrent import RepeatedInputLSTM
from fgzoo.nn.spatial_lstm import CausalAttention, SpatialLSTM

__all__ = [
    "AttentionMaps",
    "Backbone",
    "CausalAttention",
    "ClassCenters",
    "EvidenceHead",
    "InverseMapping",
    "LocalAttention",
    "LowRankBilinear",
    "MethodOutput",
    "RepeatedInputLSTM",
    "SpatialLSTM",
    "TemporalAttention",
    "activation_boxes",
    "alignment_loss",
    "attend",
    "attention_boxes",
    "attention_drop",
    "bilinear_attention_pooling",
    "bilinear_evidence",
    "bilinear_pool",
    "box_region",
    "center_boxes",
    "class_activation_map",
    "coverage_penalty",
    "crop_boxes",
    "distillation_loss",
    "draw_map",
    "draw_uniform",
    "jigsaw",
    "jigsaw_order",
    "keyed_uniform",
    "map_similarity",
    "normalize_map",
    "paste_boxes",
    "power_normalize",
    "random_boxes",
    "signed_sqrt",
    "soft_boxes",
    "soft_crop",
    "undo_jigsaw",
]
