"""Every method on every family of timm's networks, on images of a size that some of these do not take."""

from __future__ import annotations

import pytest
import torch

from fgzoo.methods import list_models
from fgzoo.nn import Backbone
from tests import THOROUGH
from tests.families import FAMILIES
from tests.small import CARD, small, total

SIDE = 72


#: The fields of one colour of a chessboard, each family with half of the methods; FGZOO_THOROUGH=1 adds the others.
FIELDS = [
    (family, method)
    for row, family in enumerate(FAMILIES)
    for column, method in enumerate(list_models())
    if (row + column) % 2 == 0 or THOROUGH
]


@pytest.mark.parametrize(("family", "method"), FIELDS)
def test_every_method_trains_and_explains_on_every_family(family: str, method: str) -> None:
    model = small(method, backbone=FAMILIES[family])
    images, targets = torch.randn(2, 3, SIDE, SIDE), torch.tensor([0, 1])
    keys = torch.tensor([[0, 0, 0], [0, 0, 1]])

    output = model.train()(images, targets, keys)
    total(model, output, targets).backward()
    for backbone in [module for module in model.network.modules() if isinstance(module, Backbone)]:
        assert all(parameter.grad.isfinite().all() for parameter in backbone.parameters() if parameter.grad is not None)
        # Some networks begin with residual branches of zero, behind which nothing learns yet; all learn in their first layer.
        first = next(parameter for parameter in backbone.parameters() if parameter.ndim == 4)
        assert first.grad.any()

    model.eval()
    with torch.no_grad():
        logits = model(images).logits
    assert logits.shape == (2, len(CARD.class_names))
    assert logits.isfinite().all()
    maps = model.explain(images)
    assert maps.shape[0] == 2
    assert maps.shape[1] >= 1
    assert maps.shape[2:] == (SIDE, SIDE)
    assert maps.isfinite().all()
    assert maps.min() >= 0
    assert maps.max() <= 1 + 1e-5  # enlarging rounds
    assert model.embed([torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)]).isfinite().all()
