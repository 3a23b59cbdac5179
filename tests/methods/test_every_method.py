"""Every method passes every check on two backbones, and those that a backbone can change on five families."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from fgzoo.data import transforms
from fgzoo.methods import available, find_method, rra, srbn
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.methods.training_stages import EnterStages
from fgzoo.nn import randomness
from fgzoo.nn.randomness import keyed_uniform
from fgzoo.testing import CHECKS, NUM_CLASSES, example_batch
from tests import THOROUGH
from tests.small import SMALL

#: One tiny network of each family: resnet, vgg, mobilenet, convnext, vision transformer.
BACKBONES = ("test_resnet", "tiny_vgg", "test_efficientnet", "test_convnext", "test_vit")
#: Variants that take another path through the network.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "rra without recursion": ("rra", {"recursion": False}),
    "rra round its recursion": ("rra", {"residual": True, "init": "orthogonal"}),
    "rra that refocuses": ("rra", {"refocus": True}),
    "rra with random patches": ("rra", {"patches": "random", "attend_over_time": False}),
    "iagn in one step": ("iagn", {"one_step": True}),
    "iagn the other way round": ("iagn", {"distillation": "shallow_to_deep", "guidance": False}),
    "iagn with two views": ("iagn", {"test_crop": True, "test_heads": "combined"}),
    "iagn with two stages": ("iagn", {"stages": 2, "grids": (4, 2), "init": "orthogonal", "last_level": True, "residual": True}),
    "pmg by whole images": ("pmg", {"whole_statistics": True, "init": "orthogonal"}),
    "coarse2fine with a mask alone": ("coarse2fine", {"fine": "mask", "keep_views": False}),
    "coarse2fine detached": ("coarse2fine", {"detach_attention": True}),
    "srbn with glimpses": ("srbn", {"attention": "recurrent"}),
    "srbn shuffled": ("srbn", {"shuffle": True, "content": True, "neighbourhood": "causal", "pyramid": [1, 2]}),
    "srbn round its scan": ("srbn", {"residual": True, "batch_norm": True}),
    "srbn from four corners": ("srbn", {"directions": 4, "attention": "none"}),
    "srbn without its lstm": ("srbn", {"attention": "static", "spatial_lstm": False, "bilinear_size": 4096}),
    "two networks": ("bcnn", {"combine": "concat"}),
    "everything frozen that can be": ("srbn", {"freeze": 3, "freeze_norm": "affine", "init": "orthogonal", "new_share": 0}),
}
#: The same classes with their mechanism switched off.
PARENTS = ("rra-parent", "pmg", "wsdan", "bcnn", "bcnn-spp")
METHODS = tuple(name for name in available() if name not in PARENTS)
#: A convolutional network with batch-norms, and a vision transformer, whose levels are alike: every check.
ALL_CHECKS_ON = ("test_efficientnet", "test_vit")
#: What another family of backbones can change.
ON_EVERY_BACKBONE = ("shapes", "every_gradient")
#: What another path through a network can change.
OF_VARIANTS = (*ON_EVERY_BACKBONE, "finite", "keys_decide", "batch_independence", "float16", "zero_features", "statistics_move")
VARIANTS_ON = "tiny_vgg"
#: Half a minute each: whole trainings of the methods are compiled, and they are exported to both formats, elsewhere. What is done
#: with another backbone there is left to FGZOO_THOROUGH=1, but for a parent.
ELSEWHERE = ("one_graph",) if THOROUGH else ("one_graph", "exports")
SLOW = {"exports": ("test_vit",), "one_graph": ("tiny_vgg",), "trains_and_reloads": ALL_CHECKS_ON}


def cases() -> list[Any]:
    chosen: list[tuple[str, str, dict[str, Any], str, str]] = []
    for check in CHECKS:
        backbones = BACKBONES if check in ON_EVERY_BACKBONE else SLOW.get(check, ALL_CHECKS_ON)
        methods = () if check in ELSEWHERE else METHODS
        chosen += [(name, name, {}, check, backbone) for name, backbone in itertools.product(methods, backbones)]
        # A parent takes a part of its method's way.
        parents = PARENTS[:1] if check in ELSEWHERE and not THOROUGH else PARENTS
        chosen += [(name, name, {}, check, backbones[0]) for name in parents]
        if check in OF_VARIANTS:
            chosen += [(label, name, more, check, VARIANTS_ON) for label, (name, more) in VARIANTS.items()]
    return [
        pytest.param(name, more, check, backbone, id=f"{label}-{backbone}-{check}")
        for label, name, more, check, backbone in chosen
    ]


@pytest.mark.parametrize(("name", "more", "check", "backbone"), cases())
def test_method(name: str, more: dict[str, Any], check: str, backbone: str) -> None:
    cls, fixed = find_method(name)

    def make() -> FineGrainedClassifier:
        torch.manual_seed(0)
        arguments = {**fixed, **SMALL.get(name, {}), **more}
        return cls(num_classes=NUM_CLASSES, backbone=backbone, pretrained=False, **arguments)

    CHECKS[check](make)


@pytest.mark.parametrize(
    ("name", "more"), [*((name, {}) for name in METHODS), ("srbn", {"shuffle": True}), ("rra", {"patches": "random"})]
)
def test_no_choice_of_a_method_is_that_of_the_mirror_images(
    name: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    salts: list[int] = []

    def recorded(keys: Tensor, count: int = 1, salt: int = 0) -> Tensor:
        salts.append(salt)
        return keyed_uniform(keys, count, salt)

    for module in (randomness, transforms, rra, srbn):
        monkeypatch.setattr(module, "keyed_uniform", recorded)
    cls, fixed = find_method(name)
    model = cls(num_classes=NUM_CLASSES, backbone="tiny_vgg", pretrained=False, **{**fixed, **SMALL.get(name, {}), **more})
    images, targets, keys = example_batch()
    transforms.flip_batch(images, keys)
    (mirrored,) = salts
    stages = EnterStages()
    for stage in range(len(model.stages())):
        stages.enter(model, stage)
        list(model.train().training_outputs(images, targets, keys))
    assert mirrored not in salts[1:]
