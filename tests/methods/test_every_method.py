"""Every method passes every check on five families of backbones, every parent on two."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch

from fgzoo.methods import available, find_method
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.testing import CHECKS, NUM_CLASSES
from tests.small import SMALL

#: One tiny network of each family: resnet, vgg, mobilenet, convnext, vision transformer.
BACKBONES = ("test_resnet", "tiny_vgg", "test_efficientnet", "test_convnext", "test_vit")
#: Variants that take another path through the network.
CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {
    "rra without recursion": ("rra", {"recursion": False}),
    "rra round its recursion": ("rra", {"residual": True, "init": "orthogonal"}),
    "rra with random patches": ("rra", {"patches": "random", "attend_over_time": False}),
    "iagn in one step": ("iagn", {"one_step": True}),
    "iagn the other way round": ("iagn", {"distillation": "shallow_to_deep", "guidance": False}),
    "iagn with two views": ("iagn", {"test_crop": True, "test_heads": "combined"}),
    "iagn with two stages": ("iagn", {"stages": 2, "grids": (4, 2), "init": "orthogonal", "last_level": True}),
    "pmg by whole images": ("pmg", {"whole_statistics": True, "init": "orthogonal"}),
    "coarse2fine with a mask alone": ("coarse2fine", {"fine": "mask", "keep_views": False}),
    "coarse2fine detached": ("coarse2fine", {"detach_attention": True}),
    "srbn with glimpses": ("srbn", {"attention": "recurrent"}),
    "srbn from four corners": ("srbn", {"directions": 4, "attention": "none"}),
    "srbn without its lstm": ("srbn", {"spatial_lstm": False, "bilinear_size": 4096}),
    "two networks": ("bcnn", {"combine": "concat"}),
    "everything frozen that can be": ("srbn", {"freeze": 3, "freeze_norm": "affine", "init": "orthogonal", "new_share": 0}),
}
#: The same classes without something, so less can go wrong on another backbone.
PARENTS = ("rra-parent", "pmg", "wsdan", "bcnn")
PARENTS_ON = ("tiny_vgg", "test_vit")
METHODS = tuple(name for name in available() if name not in PARENTS)
#: Methods and backbones of the slow checks. Whole trainings of the methods are compiled, and they are exported to both formats,
#: elsewhere.
SLOW: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "exports": ((*METHODS, *PARENTS), ("test_vit",)),
    "trains_and_reloads": ((*METHODS, *PARENTS), ("test_efficientnet", "test_vit")),
    "one_graph": (PARENTS, ("tiny_vgg",)),
}
#: Backbone of a variant's checks, and those of them that take half a minute and say little more than of the method itself.
VARIANTS_ON = "tiny_vgg"
NOT_OF_VARIANTS = tuple(SLOW)

#: It reads what installed packages declare, which takes a tenth of most checks.
found = functools.cache(find_method)


def cases() -> list[Any]:
    every = []
    for check in CHECKS:
        names, backbones = SLOW.get(check, ((*METHODS, *PARENTS), BACKBONES))
        pairs = itertools.product(names, backbones)
        methods = [(name, name, {}, backbone) for name, backbone in pairs if name in METHODS or backbone in PARENTS_ON]
        variants = [(label, name, more, VARIANTS_ON) for label, (name, more) in CONTROLS.items()]
        for label, name, more, backbone in methods if check in NOT_OF_VARIANTS else methods + variants:
            every.append(pytest.param(name, more, check, backbone, id=f"{label}-{backbone}-{check}"))
    return every


@pytest.mark.parametrize(("name", "more", "check", "backbone"), cases())
def test_method(name: str, more: dict[str, Any], check: str, backbone: str) -> None:
    cls, fixed = found(name)

    def make() -> FineGrainedClassifier:
        torch.manual_seed(0)
        arguments = {**fixed, **SMALL.get(name, {}), **more}
        return cls(num_classes=NUM_CLASSES, backbone=backbone, pretrained=False, **arguments)

    CHECKS[check](make)
