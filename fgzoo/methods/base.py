"""What all methods share: steps, metrics, parameter groups, schedule, and the card that travels with the weights.

A method overrides at most [build_network][FineGrainedClassifier.build_network], [loss][FineGrainedClassifier.loss],
[parameter_groups][FineGrainedClassifier.parameter_groups] and [explain][FineGrainedClassifier.explain].
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassConfusionMatrix

import fgzoo
from fgzoo.data.card import DataCard
from fgzoo.errors import UntrainedError, UsageError
from fgzoo.methods.optimization import Schedule, layer_decay_groups, schedule_factor, split_decay
from fgzoo.nn.backbone import Backbone
from fgzoo.nn.output import MethodOutput

Batch = tuple[Tensor, Tensor, Tensor]


class _BuildsNetwork(type):
    """Calls `build_network` once the most derived `__init__` has run.

    So a subclass may set its attributes before or after `super().__init__(...)`, and the arguments that rebuild the object from
    a checkpoint are the ones it was called with, whatever its `__init__` makes of them.
    """

    @property
    def __signature__(cls) -> inspect.Signature:
        """The signature that help and parsers show: that of `__init__`, not of the metaclass."""
        of_init = inspect.signature(cls.__init__)  # type: ignore[misc]
        return of_init.replace(parameters=list(of_init.parameters.values())[1:])

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        model = super().__call__(*args, **kwargs)
        bound = inspect.signature(cls).bind(*args, **kwargs)
        bound.apply_defaults()
        arguments: dict[str, Any] = {}
        for name, parameter in inspect.signature(cls).parameters.items():
            value = bound.arguments[name]
            arguments.update(value if parameter.kind is inspect.Parameter.VAR_KEYWORD else {name: value})
        model._finish(arguments)
        return model


class FineGrainedClassifier(L.LightningModule, metaclass=_BuildsNetwork):
    """A fine-grained classifier: a network, its loss, and everything around training it.

    Args:
        num_classes: Number of classes K; the command line takes it from the data.
        backbone: Name of a timm network.
        pretrained: Start from timm's pretrained weights.
        backbone_weights: A local `.safetensors` or `.pth` file with the backbone's weights, used instead of timm's.
        optimizer: `sgd` (with momentum) or `adamw`.
        lr: Peak learning rate of the new layers.
        backbone_lr_factor: The backbone's learning rate relative to `lr`.
        layer_decay: Factor of the learning rate from each backbone layer to the one below; `None`: one rate for all. Meant for
            vision transformers.
        momentum: Momentum of `sgd`.
        weight_decay: Weight decay of weights; norms and biases have none.
        schedule: `cosine`, `step`, `one_cycle` or `constant`, advanced every batch.
        warmup_epochs: Epochs of linear warm-up (`one_cycle` has its own).
        milestones: Epochs at which `step` multiplies the rate by `gamma`.
        gamma: See `milestones`.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        clip_norm: Largest gradient norm; `None`: no clipping. It is applied after mixed precision's unscaling.
        ema_decay: Decay of an exponential moving average of the weights, which is then what is evaluated and saved; `None`: none.
        compile: Compile the network by `torch.compile`.

    Attributes:
        network: The torch network that [build_network][] made; it alone is compiled and exported.
        card: The data the weights were trained on, and how its images were prepared; `None` before that is known.
        trained: Whether the weights have been trained. An untrained model is not tested.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        pretrained: bool = True,
        backbone_weights: str | Path | None = None,
        *,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float = 1e-2,
        backbone_lr_factor: float = 0.1,
        layer_decay: float | None = None,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        schedule: Schedule = "cosine",
        warmup_epochs: float = 0.0,
        milestones: Sequence[int] = (),
        gamma: float = 0.1,
        label_smoothing: float = 0.0,
        clip_norm: float | None = None,
        ema_decay: float | None = None,
        compile: bool = False,  # noqa: A002 - the field's word for it
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise UsageError(f"model.num_classes: {num_classes}; a classifier needs at least 2 classes")
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"model.label_smoothing: {label_smoothing} is not in [0, 1)")
        self.num_classes = num_classes
        self.backbone = backbone
        self.pretrained = pretrained
        self.backbone_weights = backbone_weights
        self.optimizer_name = optimizer
        self.lr = lr
        self.backbone_lr_factor = backbone_lr_factor
        self.layer_decay = layer_decay
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.schedule: Schedule = schedule
        self.warmup_epochs = warmup_epochs
        self.milestones = tuple(milestones)
        self.gamma = gamma
        self.label_smoothing = label_smoothing
        self.clip_norm = clip_norm
        self.ema_decay = ema_decay
        self.compile_network = compile
        self.card: DataCard | None = None
        self.trained = False
        self.network: nn.Module
        self.train_top1 = MulticlassAccuracy(num_classes, average="micro")
        self.evaluation = evaluation_metrics(num_classes)
        self.confusion = MulticlassConfusionMatrix(num_classes)
        self._head_hits: dict[str, list[Tensor]] = {}

    def _finish(self, arguments: dict[str, Any]) -> None:
        """Build the network, and remember the arguments under `hparams`, where Lightning's checkpoints keep them."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()}
        self._set_hparams(plain)
        self.network = self.build_network().to(memory_format=torch.channels_last)
        if self.compile_network:
            self.network.compile()

    # ------------------------------------------------------------------ what a method overrides

    def build_network(self) -> nn.Module:
        """Make the network: `forward(images, targets=None, keys=None)` -> [MethodOutput][], knowing only tensors."""
        raise NotImplementedError(f"{type(self).__name__} must define build_network()")

    def loss(self, output: MethodOutput, targets: Tensor) -> dict[str, Tensor]:
        """Loss terms by name; their sum is minimised. By default the cross-entropy of every head.

        Args:
            output: What the network returned.
            targets: (B,) classes, or (B, K) probabilities where images were mixed.

        Returns:
            Scalars by name.
        """
        return {name: self.cross_entropy(logits, targets) for name, logits in output.heads.items()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups: backbones at `lr * backbone_lr_factor`, all else at `lr`; norms and biases do not decay."""
        backbones = {name: module for name, module in self.network.named_modules() if isinstance(module, Backbone)}
        rate = self.lr * self.backbone_lr_factor
        groups: list[dict[str, Any]] = []
        inside: set[nn.Parameter] = set()
        for name, module in backbones.items():
            inside.update(module.parameters())
            if self.layer_decay is None:
                groups += split_decay(module.named_parameters(), name, rate, self.weight_decay)
            else:
                groups += layer_decay_groups(module, name, rate, self.weight_decay, self.layer_decay)
        rest = [(name, parameter) for name, parameter in self.network.named_parameters() if parameter not in inside]
        return groups + split_decay(rest, "new", self.lr, self.weight_decay)

    def explain(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        """Where the network looked, at input resolution: by default its attention maps, enlarged.

        Args:
            images: (B, 3, H, W), normalised.
            targets: (B,), the classes to explain; by default the predicted ones. Methods whose maps do not depend on a class
                ignore it.

        Returns:
            (B, S, H, W) in [0, 1], from coarse to fine.
        """
        with self.evaluating(), torch.no_grad():
            output: MethodOutput = self.network(images, targets)
        return F.interpolate(output.attention, size=images.shape[-2:], mode="bilinear", align_corners=False)

    # ------------------------------------------------------------------ help for methods

    def make_backbone(self, name: str | None = None, max_stride: int | None = None) -> Backbone:
        """A backbone as this model's arguments ask for it: a fresh copy at every call.

        Args:
            name: Another timm network than `backbone`.
            max_stride: Cut the network after its deepest level of at most this stride.

        Returns:
            The backbone.
        """
        return Backbone(name or self.backbone, self.pretrained, self.backbone_weights, max_stride)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The network in evaluation mode for a while; afterwards every module is as it was."""
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy with this model's label smoothing, for classes (B,) or probabilities (B, K)."""
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)

    # ------------------------------------------------------------------ using a model

    def forward(self, images: Tensor, targets: Tensor | None = None, keys: Tensor | None = None) -> MethodOutput:
        """Run the network.

        Args:
            images: (B, 3, H, W), normalised by [normalize][].
            targets: (B,): in training, for methods that are guided by the class; in evaluation, the class whose map is shown.
            keys: (B, 3), the (seed, epoch, index) of the samples: in training a method draws its choices from them.

        Returns:
            The logits, heads and attention maps.
        """
        return cast(MethodOutput, self.network(images, targets, keys))

    @property
    def transform(self) -> Callable[[Tensor], Tensor]:
        """The evaluation transform of the weights: upright uint8 (3, H, W) to uint8 (3, size, size).

        Raises:
            UntrainedError: The model has seen no data yet, so it has none.
        """
        if self.card is None:
            raise UntrainedError(
                "model.transform: this model has not been trained, so no image preparation belongs to it; train it, or "
                "fgzoo.load() a checkpoint"
            )
        return self.card.transform()

    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 images into what the backbone's weights expect, on their device; floats pass unchanged.

        Args:
            images: (B, 3, H, W) uint8 in [0, 255], or floats that are normalised already.

        Returns:
            (B, 3, H, W) float32.
        """
        if images.is_floating_point():
            return images
        mean, std = self.image_statistics()
        scale = torch.tensor(std, device=images.device).view(-1, 1, 1) * 255
        shift = torch.tensor(mean, device=images.device).view(-1, 1, 1) * 255
        return images.float().sub_(shift).div_(scale)

    def image_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of RGB / 255 that the (first) backbone's weights were trained with."""
        for module in self.network.modules():
            if isinstance(module, Backbone):
                return module.mean, module.std
        return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    # ------------------------------------------------------------------ Lightning's hooks

    def setup(self, stage: str) -> None:
        """Learn what data this is."""
        card = getattr(self._datamodule(), "card", None)
        if card is None:
            return
        if self.card is not None and stage != "fit":
            self.card.check_classes(card)
        self.card = card

    def _prepare(self, batch: Batch) -> Batch:
        """Normalise on the device; mix images (mixup, cutmix) there too, in training.

        Part of the step, because Lightning's hook for transferred batches comes before the step is seeded.
        """
        images, targets, index = batch
        images = self.normalize(images).contiguous(memory_format=torch.channels_last)
        mix = getattr(self._datamodule(), "mix", None)
        if mix is not None and self._trainer is not None and self.trainer.training:
            images, targets = mix(images, targets, self.num_classes)
        return images, targets, index

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step: the sum of the loss terms."""
        images, targets, index = self._prepare(batch)
        classes = targets if targets.ndim == 1 else targets.argmax(dim=1)
        output = self(images, classes, self.sample_keys(index))
        terms = self.loss(output, targets)
        total = torch.stack(list(terms.values())).sum()
        size = len(images)
        self.log("train/loss", total, on_step=False, on_epoch=True, prog_bar=True, batch_size=size, sync_dist=True)
        if len(terms) > 1:
            named = {f"train/loss_{name}": term for name, term in terms.items()}
            self.log_dict(named, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        self.train_top1.update(output.logits.detach(), classes)
        return total

    def on_train_epoch_end(self) -> None:
        """Log the training accuracy of the epoch."""
        self.log("train/top1", self.train_top1.compute())
        self.train_top1.reset()

    def on_train_end(self) -> None:
        """From here on the model may be tested."""
        self.trained = True

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the metrics of a batch."""
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the metrics of a batch."""
        self._evaluate(batch)

    def _evaluate(self, batch: Batch) -> None:
        images, targets, index = self._prepare(batch)
        output = self(images, None, self.sample_keys(index))
        logits = output.logits.float()
        self.evaluation.update(logits, targets)
        self.confusion.update(logits, targets)
        if len(output.heads) > 1:
            for name, head in output.heads.items():
                self._head_hits.setdefault(name, []).append((head.argmax(dim=1) == targets).float())

    def on_validation_epoch_start(self) -> None:
        """Forget the counts of earlier rounds; refuse to score what was never trained, unless it is being trained."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._require_training("validate")
        self._reset_evaluation()

    def on_test_epoch_start(self) -> None:
        """Refuse to test what was never trained: its accuracy would be chance."""
        self._require_training("test")
        self._reset_evaluation()

    def _require_training(self, verb: str) -> None:
        if not self.trained:
            raise UntrainedError(
                f"{verb}: this {type(self).__name__} has never been trained, and chance is no result; give a checkpoint by "
                f"--ckpt_path, or train it first"
            )

    def on_validation_epoch_end(self) -> None:
        """Log `val/...`."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log `test/...`."""
        self._log_evaluation("test")

    def _reset_evaluation(self) -> None:
        self.evaluation.reset()
        self.confusion.reset()
        self._head_hits.clear()

    def _log_evaluation(self, split: str) -> None:
        values = {f"{split}/{name}": value for name, value in self.evaluation.compute().items()}
        for name, hits in self._head_hits.items():
            mean = MeanMetric().to(self.device)
            mean.update(torch.cat(hits))
            values[f"{split}/top1_{name}"] = mean.compute()
        self.log_dict(values, prog_bar=False)

    def configure_optimizers(self) -> Any:
        """The optimiser over [parameter_groups][], and its schedule, advanced every batch."""
        groups = self.parameter_groups()
        # Fused steps unscale half-precision gradients themselves, which leaves clipping nothing unscaled to measure.
        fused = not (self.clip_norm is not None and str(self.trainer.precision) == "16-mixed")
        optimizer: torch.optim.Optimizer
        if self.optimizer_name == "sgd":
            optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, fused=fused)
        else:
            optimizer = torch.optim.AdamW(groups, lr=self.lr, fused=fused)
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise UsageError("trainer.max_epochs: a schedule needs an end; give a number of epochs")
        per_epoch = total / max(1, self.trainer.max_epochs or 1)
        factor = schedule_factor(self.schedule, int(total), per_epoch, self.warmup_epochs, self.milestones, self.gamma)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient norm, where that is asked for."""
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)

    def configure_callbacks(self) -> list[Callback]:
        """The moving average of the weights, where it is asked for."""
        return [] if self.ema_decay is None else [EMAWeightAveraging(decay=self.ema_decay)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put everything into the checkpoint that loading needs besides the weights."""
        mean, std = self.image_statistics()
        cls = type(self)
        checkpoint["fgzoo"] = {
            "method": f"{cls.__module__}.{cls.__qualname__}",
            "version": fgzoo.__version__,
            "num_classes": self.num_classes,
            "backbone": self.backbone,
            "mean": list(mean),
            "std": list(std),
            "data": None if self.card is None else self.card.as_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what the checkpoint knows of its data."""
        data = checkpoint.get("fgzoo", {}).get("data")
        if data is not None:
            self.card = DataCard(**data)
        self.trained = True

    def sample_keys(self, index: Tensor) -> Tensor:
        """The (seed, epoch, index) of a batch's samples.

        Args:
            index: (B,), positions in the data set.

        Returns:
            (B, 3) int64.
        """
        seed = getattr(self._datamodule(), "seed", None)
        if seed is None:
            seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        epoch = self.current_epoch
        return torch.stack([torch.full_like(index, seed), torch.full_like(index, epoch), index], dim=1)

    def _datamodule(self) -> Any:
        return None if self._trainer is None else getattr(self._trainer, "datamodule", None)


def evaluation_metrics(num_classes: int) -> MetricCollection:
    """The protocol's metrics over logits (N, K) and classes (N,).

    Args:
        num_classes: K.

    Returns:
        `top1`, `top5` (the best of min(5, K)), `macro` (mean accuracy over classes), `nll` (nats) and `ece` (expected
        calibration error, 15 bins), all but `nll` as fractions of one.
    """
    return MetricCollection(
        {
            "top1": MulticlassAccuracy(num_classes, average="micro"),
            "top5": MulticlassAccuracy(num_classes, average="micro", top_k=min(5, num_classes)),
            "macro": MulticlassAccuracy(num_classes, average="macro"),
            "nll": NegativeLogLikelihood(),
            "ece": MulticlassCalibrationError(num_classes, n_bins=15, norm="l1"),
        },
        compute_groups=False,
    )


class NegativeLogLikelihood(MeanMetric):
    """Mean negative log-likelihood of the true class, in nats."""

    def update(self, preds: Tensor, target: Tensor) -> None:  # type: ignore[override]
        """Add a batch: logits (B, K) and classes (B,)."""
        super().update(F.cross_entropy(preds, target, reduction="none"))
