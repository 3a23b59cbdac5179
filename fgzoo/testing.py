"""The suite that every method passes, for authors of methods, too.

    from fgzoo.testing import check_method
    check_method(MyMethod)

It needs neither data nor network; a method that passes works with every verb.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fgzoo.checkpoints.loading import load, read_checkpoint
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.methods.training_stages import EnterStages
from fgzoo.nn.backbone import Backbone
from fgzoo.nn.output import MethodOutput
from fgzoo.nn.statistics import batch_norms, fresh_statistics

#: Classes of the models that the checks make; small, and no power of two.
NUM_CLASSES = 5
#: Two squares and an oblong, in pixels.
SIZES = ((64, 64), (96, 96), (96, 64))

Make = Callable[[], FineGrainedClassifier]


def check_method(cls: type[FineGrainedClassifier], backbone: str = "test_efficientnet", **arguments: Any) -> None:
    """Run every check on a method.

    Args:
        cls: The method's class.
        backbone: Name of a small timm network to check it with.
        **arguments: Arguments of the class.

    Raises:
        AssertionError: A check failed; the message says which and how.
    """

    def make() -> FineGrainedClassifier:
        torch.manual_seed(0)
        return cls(num_classes=NUM_CLASSES, backbone=backbone, pretrained=False, **arguments)

    for name, check in CHECKS.items():
        try:
            check(make)
        except Exception as error:
            how = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise AssertionError(f"{cls.__name__} ({backbone}) fails {name}: {how}") from error


# ---------------------------------------------------------------------- what is given to a method


def example_batch(size: tuple[int, int] = (64, 64), batch: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random normalised images, their classes and keys.

    Args:
        size: Height and width in pixels.
        batch: Number of images B.
        seed: Seed.

    Returns:
        (B, 3, *size), (B,), (B, 3).
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, *size, generator=generator)
    targets = torch.arange(batch) % NUM_CLASSES
    keys = torch.stack([torch.zeros(batch, dtype=torch.long), torch.zeros(batch, dtype=torch.long), torch.arange(batch)], 1)
    return images, targets, keys


def evaluation_mode(model: FineGrainedClassifier) -> FineGrainedClassifier:
    """The model in evaluation mode, its batch-norm statistics those of a batch, as after some training."""
    with torch.no_grad(), fresh_statistics(batch_norms(model)):
        model.train()(*example_batch((96, 96), batch=8, seed=7))
    return model.eval()


# ---------------------------------------------------------------------- what several checks ask


def _finite_loss(model: FineGrainedClassifier, images: Tensor, targets: Tensor, keys: Tensor) -> Tensor:
    """The loss of a training pass; all its terms are finite."""
    terms = model.train().loss(model(images, targets, keys), targets)
    for name, term in terms.items():
        assert torch.isfinite(term), f"loss term {name} is {float(term)}"
    return torch.stack([term.float() for term in terms.values()]).sum()


def _require_finite_gradients(model: FineGrainedClassifier) -> None:
    broken = [name for name, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    assert not broken, f"gradient not finite at {broken[:3]}"


def _require_close(found: Tensor, expected: Tensor, what: str = "logits") -> None:
    if not found.numel():  # maps of a network that has none
        return
    worst = float((found - expected).abs().max())
    assert worst <= 1e-4 * max(1.0, float(expected.abs().max())), f"{what} differ by {worst}"


def _tensors(output: MethodOutput) -> dict[str, Tensor]:
    """Everything of an output, by name."""
    parts = {"logits": output.logits, "attention": output.attention, **output.heads, **output.extra}
    return {name: value for name, value in parts.items() if isinstance(value, Tensor)}


# ---------------------------------------------------------------------- the checks


def check_shapes(make: Make) -> None:
    """Logits, heads, maps and explanations have the promised shapes, at three sizes."""
    model = evaluation_mode(make())
    for size in SIZES:
        images, _, _ = example_batch(size, batch=2)
        with torch.no_grad():
            output = model(images)
        assert isinstance(output, MethodOutput), f"forward returned {type(output).__name__}"
        assert output.logits.shape == (2, NUM_CLASSES), f"logits {tuple(output.logits.shape)} at {size}"
        assert output.heads, "no head"
        assert not output.extra, f"evaluation gives extra {list(output.extra)}; they are for training alone"
        for name, logits in output.heads.items():
            assert logits.shape == (2, NUM_CLASSES), f"head {name} {tuple(logits.shape)} at {size}"
        assert output.attention.ndim == 4, f"attention has {output.attention.ndim} dimensions"
        assert output.attention.shape[0] == 2, f"attention {tuple(output.attention.shape)}"
        maps = model.explain(images)
        assert maps.ndim == 4, f"explain() has {maps.ndim} dimensions"
        assert maps.shape[0] == 2, f"explain() {tuple(maps.shape)}"
        assert tuple(maps.shape[-2:]) == size, f"explain() {tuple(maps.shape)} at {size}"
        names = model.map_names(maps.shape[1])
        assert len(set(names)) == maps.shape[1], f"map_names() gives {names} for {maps.shape[1]} maps"


def check_finite(make: Make) -> None:
    """All results and losses are finite, on noise, on constant and on extreme images, in training and in evaluation."""
    images, targets, keys = example_batch(batch=4)
    images[1], images[2], images[3] = 0.0, 5.0, -5.0
    model = make()
    _finite_loss(model, images, targets, keys)
    model = evaluation_mode(model)
    with torch.no_grad():
        output = model(images)
    for name, logits in {"logits": output.logits, **output.heads}.items():
        assert torch.isfinite(logits).all(), f"{name} are not finite"
    assert torch.isfinite(model.explain(images)).all(), "explain() is not finite"
    assert torch.isfinite(model.map_shares(images, targets)).all(), "map_shares() are not finite"


def check_maps_in_range(make: Make) -> None:
    """Maps lie in [0, 1]."""
    model = evaluation_mode(make())
    images, _, _ = example_batch()
    with torch.no_grad():
        attention = model(images).attention
    found = {"attention": attention, "explain()": model.explain(images)}
    for name, maps in ((name, maps) for name, maps in found.items() if maps.numel()):
        low, high = float(maps.min()), float(maps.max())
        assert low >= 0, f"{name} goes down to {low}"
        assert high <= 1 + 1e-4, f"{name} goes up to {high}"


def check_every_gradient(make: Make) -> None:
    """The loss reaches every trainable parameter."""
    model = make().train()
    for seed in range(3):
        images, targets, keys = example_batch((96, 96), seed=seed)
        torch.stack(list(model.loss(model(images, targets, keys), targets).values())).sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert not without, f"no gradient at {len(without)} parameters, e.g. {without[:3]}"
    _require_finite_gradients(model)


def check_groups_cover(make: Make) -> None:
    """Every trainable parameter stands in exactly one optimiser group."""
    model = make()
    listed = [id(parameter) for group in model.parameter_groups() for parameter in group["params"]]
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert len(listed) == len(set(listed)), "a parameter stands in two groups"
    assert set(listed) == trainable, f"{len(trainable - set(listed))} parameters stand in no group"


def check_batch_independence(make: Make) -> None:
    """In evaluation an image's result does not depend on the others in its batch (to 1e-4)."""
    model = evaluation_mode(make())
    images, _, _ = example_batch(batch=4)
    with torch.no_grad():
        together, alone = model(images), [model(image[None]) for image in images]
    for name in ("logits", "attention"):
        _require_close(torch.cat([getattr(one, name) for one in alone]), getattr(together, name), name)
    _require_close(torch.cat([model.explain(image[None]) for image in images]), model.explain(images), "maps of explain")


def check_learns(make: Make) -> None:
    """A few optimiser steps on one batch lower its loss."""
    model = make().train()
    images, targets, keys = example_batch((96, 96))
    optimizer = torch.optim.AdamW(model.parameter_groups(), lr=1e-3)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3

    def step() -> float:
        torch.manual_seed(0)
        loss = torch.stack(list(model.loss(model(images, targets, keys), targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    first = step()
    later: list[float] = []
    while not later or later[-1] >= first:
        assert len(later) < 8, f"the loss went from {first} to {min(later)}"
        later.append(step())


def check_statistics_move(make: Make) -> None:
    """A batch through every stage of the training moves the running statistics of every batch-norm.

    One that training never shows a batch is tested by mean 0 and variance 1, whatever it is given. Layers that are in evaluation
    mode in all stages are not asked: they are trained by what they are tested by.
    """
    model = make().train()
    batch_norm = torch.nn.modules.batchnorm._BatchNorm
    norms = {name: module for name, module in model.network.named_modules() if isinstance(module, batch_norm)}
    before = {name: copy.deepcopy(dict(norm.named_buffers())) for name, norm in norms.items()}
    trained: set[str] = set()
    stages = EnterStages()
    for stage in range(len(model.stages())):
        stages.enter(model, stage)
        trained.update(name for name, norm in norms.items() if norm.training and norm.running_mean is not None)
        for _ in model.training_outputs(*example_batch()):
            pass
    still = [
        name
        for name in sorted(trained)
        if all(torch.equal(before[name][key], getattr(norms[name], key)) for key in ("running_mean", "running_var"))
    ]
    assert not still, f"training shows {len(still)} batch-norms no batch, e.g. {still[:3]}"


def check_deterministic(make: Make) -> None:
    """Evaluation gives the same bits twice, and leaves torch's generator alone."""
    model = evaluation_mode(make())
    images, _, _ = example_batch()
    before = torch.get_rng_state()
    with torch.no_grad():
        first, second = model(images), model(images)
    assert torch.equal(first.logits, second.logits), "logits differ"
    assert torch.equal(first.attention, second.attention), "attention differs"
    assert torch.equal(model.explain(images), model.explain(images)), "explain() differs"
    assert torch.equal(before, torch.get_rng_state()), "evaluation drew random numbers"


def check_keys_decide(make: Make) -> None:
    """In training, with keys given, the same keys give the same choices whatever the generator's state (dropout apart)."""
    model = make().train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
    images, targets, keys = example_batch()
    twin = copy.deepcopy(model)
    torch.manual_seed(1)
    first = _tensors(model(images, targets, keys))
    torch.manual_seed(2)
    second = _tensors(twin(images, targets, keys))
    for name, value in first.items():
        assert torch.equal(value, second[name]), f"{name} differ by {float((value - second[name]).abs().max())}"


def check_inference_mode(make: Make) -> None:
    """Explanations work inside `torch.inference_mode`, and do not leave gradients or training mode behind."""
    model = evaluation_mode(make())
    images, _, _ = example_batch(batch=2)
    with torch.inference_mode():
        maps = model.explain(images)
    assert torch.allclose(maps, model.explain(images), atol=1e-5), "explain() differs inside inference_mode"
    assert not model.network.training, "explain() left the network in training mode"
    assert all(parameter.grad is None for parameter in model.parameters()), "explain() left gradients"


def check_explains_in_training(make: Make) -> None:
    """Explanations asked for in training mode are those of evaluation mode, and training mode stays."""
    model = evaluation_mode(make())
    images, _, _ = example_batch(batch=2)
    expected = model.explain(images)
    assert torch.allclose(expected, model.train().explain(images), atol=1e-5), "explain() differs in training mode"
    assert model.network.training, "explain() left the network in evaluation mode"


def check_bfloat16(make: Make) -> None:
    """Under bf16 autocast, losses and gradients are finite, on constant images, too."""
    images, targets, keys = example_batch()
    images[1], images[2] = 0.0, 5.0
    _check_half(make(), torch.bfloat16, images, targets, keys)


def check_float16(make: Make) -> None:
    """Under fp16 autocast, which overflows at 65,504, losses and gradients are finite.

    Biases are not zero, as after some training: layer-norm over channels that are all zero, as an erased patch would give in an
    untrained backbone, multiplies gradients by a thousand each time, whatever the method.
    """
    model = make()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    _check_half(model, torch.float16, *example_batch())


def _check_half(model: FineGrainedClassifier, dtype: torch.dtype, images: Tensor, targets: Tensor, keys: Tensor) -> None:
    with torch.autocast("cpu", dtype):
        loss = _finite_loss(model, images, targets, keys)
    loss.backward()
    _require_finite_gradients(model)


def check_zero_features(make: Make) -> None:
    """Where every feature of the backbones is zero, results, losses and gradients are finite."""
    model = make()
    for module in model.network.modules():
        if isinstance(module, Backbone):
            module.register_forward_hook(lambda *call: [0.0 * level for level in call[-1]])
    images, targets, keys = example_batch()
    _finite_loss(model, images, targets, keys).backward()
    _require_finite_gradients(model)
    model.eval()
    with torch.no_grad():
        output = model(images)
    assert torch.isfinite(output.logits).all(), "logits are not finite"
    assert torch.isfinite(output.attention).all(), "attention is not finite"


def check_batch_of_one(make: Make) -> None:
    """A single image can be evaluated and explained; and trained on, where no batch-norm sees a single value a channel."""
    model = evaluation_mode(make())
    images, targets, keys = example_batch((96, 64), batch=1)
    with torch.no_grad():
        assert torch.isfinite(model(images).logits).all(), "logits are not finite"
    assert torch.isfinite(model.explain(images)).all(), "explain() is not finite"
    try:
        terms = model.train().loss(model(images, targets, keys), targets)
    except ValueError as error:
        # torch refuses to normalise one value a channel, and says so; the data module gives no such batch in training.
        if "more than 1 value per channel" not in str(error):
            raise
    else:
        assert all(torch.isfinite(term) for term in terms.values()), "the loss of a single image is not finite"


def check_exports(make: Make) -> None:
    """The network alone passes `torch.export`, and the exported program gives the same answers (to 1e-4)."""
    network = evaluation_mode(make()).network
    images, _, _ = example_batch(batch=2)
    with torch.no_grad():
        program = torch.export.export(network, (images,))
        _require_close(program.module()(images).logits, network(images).logits)


def check_one_graph(make: Make) -> None:
    """The network compiles as one graph, without a break, in evaluation and in training, and gives the same logits."""
    model = evaluation_mode(make())
    images, targets, keys = example_batch()
    with torch.no_grad():
        torch._dynamo.reset()
        _require_close(torch.compile(model.network, backend="eager", fullgraph=True)(images).logits, model(images).logits)
    torch._dynamo.reset()
    trained = torch.compile(model.network.train(), backend="eager", fullgraph=True)(images, targets, keys)
    assert trained.logits.shape == (len(images), NUM_CLASSES), f"logits {tuple(trained.logits.shape)}"


class _Noise(Dataset[tuple[Tensor, int, int]]):
    """Eight uint8 images."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8), index % NUM_CLASSES, index


def check_trains_and_reloads(make: Make) -> None:
    """A Lightning trainer fits and tests it; its checkpoint, loaded by itself, gives the same bits."""
    model = make()
    loader = DataLoader(_Noise(), batch_size=4)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(model, loader)
        (scores,) = trainer.test(model, loader, verbose=False)
        path = Path(folder) / "last.ckpt"
        trainer.save_checkpoint(path)
        assert read_checkpoint(path)["fgzoo"]["num_classes"] == NUM_CLASSES, "the checkpoint does not know its classes"
        twin = load(path)
    assert math.isfinite(scores["test/nll"]), f"test/nll is {scores['test/nll']}"
    images, _, _ = example_batch()
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(images).logits, twin(images).logits), "the loaded model gives other logits"


#: Every check by name. A test suite may run them one by one.
CHECKS: dict[str, Callable[[Make], None]] = {
    name.removeprefix("check_"): check
    for name, check in dict(globals()).items()
    if name.startswith("check_") and check is not check_method
}
