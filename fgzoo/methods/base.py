"""What all methods share: steps, metrics, parameter groups, schedule, and the card that travels with the weights.

A method overrides at most [build_network][FineGrainedClassifier.build_network], [loss][FineGrainedClassifier.loss],
[learning_rates][FineGrainedClassifier.learning_rates], [explain][FineGrainedClassifier.explain] and
[features][FineGrainedClassifier.features]. One that trains in stages declares them in [stages][FineGrainedClassifier.stages],
one that takes several optimiser steps a batch in [steps_per_batch][FineGrainedClassifier.steps_per_batch] and
[training_outputs][FineGrainedClassifier.training_outputs]; the base runs them.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast, get_args

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.parsing import AttributeDict, collect_init_args
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassConfusionMatrix

import fgzoo
from fgzoo.data.card import DataCard
from fgzoo.data.dataset import IGNORED
from fgzoo.errors import DataError, UntrainedError, UsageError
from fgzoo.methods.optimization import (
    Schedule,
    Stage,
    layer_decay_groups,
    schedule_factor,
    split_decay,
    stage_at,
    stage_ends,
    staged_factor,
)
from fgzoo.nn.backbone import Backbone, FreezeNorm, reached_by
from fgzoo.nn.output import MethodOutput

if TYPE_CHECKING:
    from fgzoo.zoo.prediction import ImageLike, Prediction, TestTime

Batch = tuple[Tensor, Tensor, Tensor]
Built = TypeVar("Built")


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
        lr_batch: The batch that `lr` is meant for, over all devices. A run with another one scales the rates: in proportion with
            `sgd` (arXiv 1706.02677), by the square root with `adamw` (arXiv 2205.10287). `None`: `lr` is taken as it is.
        compile: Compile the network by `torch.compile`.
        freeze: How many levels of every backbone, from the lowest, stay as they are: what computes them does not learn and is in
            evaluation mode, which costs half as much time where it is half of the network. Five is all of most networks.
        freeze_norm: `statistics`: the backbones' batch-norms normalise by the statistics that they were pretrained with, in
            training, too, and nothing moves them; `affine`: their scale and shift are not learnt either; `none`: by the batch. A
            backbone that a stage freezes (see [stages][]) keeps its statistics for the whole run in any case: what learns on it
            meanwhile would not fit the other ones.
        output_stride: Stride of the backbones' last level, 8 or 16 instead of 32, where timm can build a network so: finer maps
            at a higher cost. `None`: each network's own.
        recompute_backbone: Compute the backbone's activations again in the backward pass instead of keeping them: less memory,
            about a third more time.

    Attributes:
        arguments: Every argument by name, defaults and those of subclasses too, as the constructor that declares it was given it.
            (`hparams` holds what the class was called with, which is what makes the model anew.)
        network: The torch network that [build_network][] made; it alone is compiled and exported.
        card: The data the weights were trained on, and how its images were prepared; `None` before that is known.
        trained: Whether the weights have been trained. An untrained model is not tested.
    """

    #: What an argument stands for in checkpoints that are older than it, where that is not its default.
    implied_arguments: ClassVar[dict[str, Any]] = {}

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
        lr_batch: int | None = None,
        compile: bool = False,  # noqa: A002 - the field's word for it
        recompute_backbone: bool = False,
        freeze: int = 0,
        freeze_norm: FreezeNorm = "none",
        output_stride: int | None = None,
    ) -> None:
        super().__init__()
        if freeze_norm not in get_args(FreezeNorm):
            raise UsageError(f"model.freeze_norm: '{freeze_norm}' is none of {', '.join(get_args(FreezeNorm))}")
        if num_classes < 2:
            raise UsageError(f"model.num_classes: {num_classes}; a classifier needs at least 2 classes")
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"model.label_smoothing: {label_smoothing} is not in [0, 1)")
        if lr_batch is not None and lr_batch < 1:
            raise UsageError(f"model.lr_batch: {lr_batch}; at least 1, or leave it away to take lr as it is")
        if compile and recompute_backbone:
            raise UsageError(
                "model.recompute_backbone: a compiled network decides by itself what to compute again; leave one away"
            )
        self.arguments = AttributeDict()
        # From the outermost constructor to this one, so that a name that several take has the value that arrived furthest in.
        for level in reversed(collect_init_args(cast(FrameType, inspect.currentframe()), [], classes=(FineGrainedClassifier,))):
            self.arguments.update(level)
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
        self.lr_batch = lr_batch
        self.compile_network = compile
        self.recompute_backbone = recompute_backbone
        self.freeze_levels = freeze
        self.freeze_norm: FreezeNorm = freeze_norm
        self.output_stride = output_stride
        self.card: DataCard | None = None
        self.trained = False
        self.network: nn.Module
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.train_top1 = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.evaluation = evaluation_metrics(num_classes)
        self.confusion = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORED, validate_args=False)
        self._head_hits: dict[str, MeanMetric] = {}
        self._stage_ends: list[int] = []
        self._stage = 0
        self._frozen: set[str] = set()
        self._unreached: dict[tuple[int, int], list[nn.Parameter]] = {}
        self._idle: list[nn.Parameter] = []

    def _finish(self, arguments: dict[str, Any]) -> None:
        """Build the network, and remember the arguments under `hparams`, where Lightning's checkpoints keep them."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()}
        self._set_hparams(plain)
        self.network = self.build_network().to(memory_format=torch.channels_last)
        for name in {name for stage in self.stages() for name in self.learning_rates() if stage.rate(name) == 0}:
            module = self.network.get_submodule(name)
            if isinstance(module, Backbone) and not module.frozen_norms:
                module.freeze_statistics()
        self.automatic_optimization = self.steps_per_batch == 1
        mean, std = self.image_statistics()
        # On the device from the start: a copy at every step would make it wait.
        self.register_buffer("pixel_mean", 255 * torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", 255 * torch.tensor(std).view(-1, 1, 1), persistent=False)
        if self.recompute_backbone:
            for backbone in self._backbones():
                backbone.recompute()
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

    def learning_rates(self) -> dict[str, float]:
        """Factors of `lr` by submodule of the network; by default `backbone_lr_factor` for every backbone.

        Returns:
            Path of the submodule -> factor. What lies in none of them is trained at `lr`, in the group `new`.
        """
        backbones = (name for name, module in self.network.named_modules() if isinstance(module, Backbone))
        return dict.fromkeys(backbones, self.backbone_lr_factor)

    def stages(self) -> tuple[Stage, ...]:
        """The stages of a run, one after the other in one `fit`; by default a single one.

        A network that computes differently by stage has an integer attribute `stage`, which is set before every training batch
        and kept in checkpoints. Untrained and finished networks are in their last stage.

        Returns:
            The stages in order.
        """
        return (Stage("train", 1.0),)

    @property
    def steps_per_batch(self) -> int:
        """Optimiser steps a batch: how many outputs [training_outputs][] gives."""
        return 1

    def training_outputs(self, images: Tensor, targets: Tensor, keys: Tensor) -> Iterator[MethodOutput]:
        """The outputs that a batch is trained on, one optimiser step each; by default one forward pass.

        The next output is asked for when the step on the one before has been taken.

        Args:
            images: (B, 3, H, W), normalised.
            targets: (B,) classes.
            keys: (B, 3), see [forward][].

        Yields:
            As many outputs as [steps_per_batch][] says; the last one's logits count for the training accuracy.
        """
        yield self(images, targets, keys)

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
        if output.attention.shape[1] == 0:  # a network without maps
            return output.attention.new_zeros(len(images), 0, *images.shape[-2:])
        return F.interpolate(output.attention, size=images.shape[-2:], mode="bilinear", align_corners=False)

    def map_names(self, count: int) -> list[str]:
        """Short names of the maps of [explain][], for pictures.

        Args:
            count: S, how many maps there are.

        Returns:
            S names.
        """
        return [f"map {number}" for number in range(1, count + 1)]

    def features(self, images: Tensor) -> Tensor:
        """What [embed][] gives of a batch: by default every backbone's last level for the whole image, averaged over locations.

        The vectors of several backbones stand one after the other, in the network's order. That is what the Baseline's classifier
        reads; methods that pool, attend or recur before they classify do so from these maps, and the average is one definition
        for all of them.

        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            (B, D).
        """
        backbones = self._backbones()
        if not backbones:
            raise UsageError(f"embed: {type(self).__name__} has no Backbone whose features these could be; define features()")
        return torch.cat([backbone(images)[-1].float().mean(dim=(2, 3)) for backbone in backbones], dim=1)

    # ------------------------------------------------------------------ help for methods

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups from [learning_rates][]; norms and biases do not decay.

        Returns:
            Groups named like their submodule, `new` for the rest, with `/norm+bias` or the layer's number behind it.
        """
        groups: list[dict[str, Any]] = []
        inside: set[nn.Parameter] = set()
        # The innermost first, so that a module inside a named one keeps its own rate.
        for name, factor in sorted(self.learning_rates().items(), key=lambda item: -item[0].count(".")):
            module = self.network.get_submodule(name)
            named = [(path, parameter) for path, parameter in module.named_parameters() if parameter not in inside]
            inside.update(parameter for _, parameter in named)
            if isinstance(module, Backbone) and self.layer_decay is not None:
                groups += layer_decay_groups(module, name, self.lr * factor, self.weight_decay, self.layer_decay)
            else:
                groups += split_decay(named, name, self.lr * factor, self.weight_decay)
        rest = [(name, parameter) for name, parameter in self.network.named_parameters() if parameter not in inside]
        return groups + split_decay(rest, "new", self.lr, self.weight_decay)

    def build(self, make: Callable[..., Built], **made: Any) -> Built:
        """Make a network, or a part of one, that takes arguments of this model under the same names.

        Args:
            make: Its class.
            **made: What is no argument of this model or differs from it: parts that are made already, derived values.

        Returns:
            The network.

        Raises:
            TypeError: It takes something that is neither; says its name.
        """
        same = {name: self.arguments[name] for name in inspect.signature(make).parameters if name in self.arguments}
        return make(**{**same, **made})

    def make_backbone(
        self, name: str | None = None, max_stride: int | None = None, weights: str | Path | None = None
    ) -> Backbone:
        """A backbone as this model's arguments ask for it: a fresh copy at every call.

        Args:
            name: Another timm network than `backbone`; it does not read `backbone_weights`.
            max_stride: Cut the network after its deepest level of at most this stride.
            weights: A weight file of its own.

        Returns:
            The backbone.
        """
        own = name is None or name == self.backbone
        return Backbone(
            name or self.backbone,
            self.pretrained,
            weights or (self.backbone_weights if own else None),
            max_stride,
            self.freeze_levels,
            self.freeze_norm,
            self.output_stride,
        )

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
        return images.float().sub_(self.pixel_mean).div_(self.pixel_std)

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        top_k: int = 5,
        batch_size: int = 32,
        tta: TestTime = "none",
        num_workers: int = 0,
    ) -> list[Prediction]:
        """Classify images on the model's device, whatever its mode; an image that cannot be read has its `error` filled.

        Args:
            images: Paths, PIL images, upright RGB uint8 tensors (3, H, W), or a list of them.
            top_k: How many classes to name, clipped to the number of classes.
            batch_size: Images that pass the network at once.
            tta: Test-time augmentation, the mean of the probabilities of several views: `none`, `flip`, `five-crop`, `ten-crop`.
            num_workers: Loader processes; 0 reads in the process itself.

        Returns:
            One prediction an image, in their order.

        Raises:
            UntrainedError: The model has not been trained.
            UsageError: An argument is out of its range, or an image is of another type.
        """
        from fgzoo.zoo.prediction import predict

        return list(predict([self], images, top_k, batch_size, tta, num_workers))

    def embed(
        self,
        images: ImageLike | Sequence[ImageLike],
        batch_size: int = 32,
        tta: TestTime = "none",
        num_workers: int = 0,
    ) -> Tensor:
        """The features of images, see [features][].

        Args:
            images: As in [predict][].
            batch_size: As in [predict][].
            tta: As in [predict][]; the features of the views are averaged.
            num_workers: As in [predict][].

        Returns:
            (N, D) on the CPU, one row an image, in their order.

        Raises:
            DataError: An image cannot be read.
            UntrainedError: The model has not been trained.
            UsageError: An argument is out of its range, or an image is of another type.
        """
        from fgzoo.zoo.prediction import embed

        rows: list[Tensor] = []
        for answers in embed([self], images, batch_size, tta, num_workers):
            for error in answers.errors:
                if error is not None:
                    raise DataError(f"embed: {error}")
            rows.append(answers.values)
        return torch.cat(rows) if rows else torch.empty(0, 0)

    def image_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of RGB / 255 that the (first) backbone's weights were trained with."""
        for module in self.network.modules():
            if isinstance(module, Backbone):
                return module.mean, module.std
        return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    # ------------------------------------------------------------------ Lightning's hooks

    def setup(self, stage: str) -> None:
        """Learn what data this is, and say what cannot be frozen."""
        backbones = self._backbones()
        if stage == "fit" and self.freeze_norm != "none" and not any(backbone.frozen_norms for backbone in backbones):
            rank_zero_warn(f"model.freeze_norm: '{self.backbone}' has no batch-norms, so there is nothing to freeze")
        card = getattr(self._datamodule(), "card", None)
        if card is None:
            return
        if self.card is not None and stage != "fit":
            self.card.check_classes(card)
        self.card = card

    def _prepare(self, batch: Batch) -> Batch:
        """Normalise on the device; mirror and mix images (mixup, cutmix) there too, in training.

        Part of the step, because Lightning's hook for transferred batches comes before the step is seeded.
        """
        images, targets, index = batch
        data = self._datamodule() if self._trainer is not None and self.trainer.training else None
        flip, mix = getattr(data, "flip", None), getattr(data, "mix", None)
        if flip is not None:
            images = flip(images, self.sample_keys(index))
        images = self.normalize(images).contiguous(memory_format=torch.channels_last)
        if mix is not None:
            images, targets = mix(images, targets, self.num_classes)
        return images, targets, index

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch: an optimiser step on the sum of the loss terms, or several."""
        images, targets, index = self._prepare(batch)
        classes = targets if targets.ndim == 1 else targets.argmax(dim=1)
        totals: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        shown: dict[str, Tensor] = {}
        for output in self.training_outputs(images, classes, self.sample_keys(index)):
            step_terms = self.loss(output, targets)
            total = self._reach_everything(torch.stack(list(step_terms.values())).sum(), step=len(totals))
            if not self.automatic_optimization:
                self._optimize(total, last=len(totals) == self.steps_per_batch - 1)
            totals.append(total)
            terms.update({f"loss_{name}": term.detach() for name, term in step_terms.items()})
            shown.update({name.removeprefix("log_"): x for name, x in output.extra.items() if name.startswith("log_")})
        if len(totals) != self.steps_per_batch:
            raise RuntimeError(f"training_outputs() gave {len(totals)} outputs, steps_per_batch says {self.steps_per_batch}")
        loss = totals[0] if self.automatic_optimization else torch.stack(totals).detach().sum()
        values = {f"train/{name}": value for name, value in ({**terms, **shown} if len(terms) > 1 else shown).items()}
        how: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(images), "sync_dist": True}
        self.log("train/loss", loss, prog_bar=True, **how)
        self.log_dict(values, **how)
        self.train_top1.update(output.logits.detach(), classes)
        return loss

    def _optimize(self, loss: Tensor, last: bool) -> None:
        """One of several optimiser steps of a batch; the last one counts the batch and advances the schedule.

        The others go through the strategy, so that mixed precision and hooks are the same, but are not counted: `global_step`,
        `max_steps`, the schedule and the moving average mean batches for every method.
        """
        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.zero_grad()
        self.manual_backward(loss)
        if last:
            optimizer.step()
            cast(torch.optim.lr_scheduler.LRScheduler, self.lr_schedulers()).step()
        else:
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)

    def _reach_everything(self, loss: Tensor, step: int) -> Tensor:
        """With several processes, let the loss reach every parameter, some of them times zero.

        DistributedDataParallel waits for a gradient of every parameter, and a frozen backbone or a head that another step trains
        has none. Searching for unused parameters at every step, its own remedy, would cost time and an argument to remember;
        which they are depends on stage and step alone. Their gradients are dropped again before the optimiser's step.
        """
        self._idle = []
        if self.trainer.world_size == 1:
            return loss
        place = (self._stage, step)
        if place not in self._unreached:
            reached = reached_by(loss)
            self._unreached[place] = [p for p in self.network.parameters() if p.requires_grad and p not in reached]
        self._idle = self._unreached[place]
        return loss + sum(parameter.flatten()[0] * 0.0 for parameter in self._idle)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Enter the stage that this batch belongs to."""
        self._enter_stage(stage_at(self._stage_ends, self.global_step))

    def _enter_stage(self, index: int) -> None:
        self._stage = index
        if hasattr(self.network, "stage"):
            setattr(self.network, "stage", index)  # noqa: B010 - modules type their attributes as tensors
        stage = self.stages()[index]
        frozen = {name for name in self.learning_rates() if stage.rate(name) == 0}
        for name in self._frozen - frozen:
            self._freeze(name, False)
        # At every batch, because callbacks may set the whole model to training mode at any time.
        for name in frozen:
            self._freeze(name, True)
        self._frozen = frozen

    def _freeze(self, name: str, frozen: bool) -> None:
        module = self.network.get_submodule(name)
        module.train(not frozen)
        if isinstance(module, Backbone):
            module.frozen = frozen

    def on_train_epoch_start(self) -> None:
        """Note the stage beside the metrics, where there are several."""
        if len(self._stage_ends) > 1:
            stage = stage_at(self._stage_ends, self.global_step)
            self.log("train/stage", float(stage), on_step=False, on_epoch=True)

    def _agree_on_statistics(self) -> None:
        """With several processes, take the mean of their batch-norm statistics.

        Each process counts its own images, and torch overwrites the others' statistics by the first one's only when the next
        batch begins (never, where a batch takes several steps). Without this, every process would validate a network of its
        own, and none of them but the first the one that is saved.
        """
        if self.trainer.world_size == 1:
            return
        for module in self.network.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
                for statistic in (module.running_mean, module.running_var):
                    statistic.copy_(cast(Tensor, self.trainer.strategy.reduce(statistic.clone(), reduce_op="mean")))

    def on_train_epoch_end(self) -> None:
        """Log the training accuracy of the epoch."""
        self._agree_on_statistics()
        self.log("train/top1", self.train_top1.compute())
        self.train_top1.reset()

    def on_train_end(self) -> None:
        """From here on the model may be tested."""
        self.trained = True
        for name in self._frozen:
            self._freeze(name, False)
        self._frozen = set()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Collect the metrics of a batch, and hand on what single images were given: `logits`, `targets` and `index`."""
        return self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Collect the metrics of a batch, and hand on what single images were given: `logits`, `targets` and `index`."""
        return self._evaluate(batch)

    def _evaluate(self, batch: Batch) -> dict[str, Tensor]:
        images, targets, index = self._prepare(batch)
        output = self(images, None, self.sample_keys(index))
        logits = output.logits.float()
        self.evaluation.update(logits, targets)
        self.confusion.update(logits, targets)
        if len(output.heads) > 1:
            for name, head in output.heads.items():
                hits = MeanMetric() if name not in self._head_hits else self._head_hits[name]
                self._head_hits[name] = hits.to(logits.device)
                hits.update((head.argmax(dim=1) == targets).float(), weight=(targets != IGNORED).float())
        return {"logits": logits, "targets": targets, "index": index}

    def on_validation_epoch_start(self) -> None:
        """Forget the counts of earlier rounds; refuse to score what was never trained, unless it is being trained."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._require_training("validate")
        else:
            self._agree_on_statistics()
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
        values.update({f"{split}/top1_{name}": hits.compute() for name, hits in self._head_hits.items()})
        self.log_dict(values, prog_bar=False)

    def configure_optimizers(self) -> Any:
        """The optimiser over [parameter_groups][], and its schedule, advanced every batch."""
        groups = self.parameter_groups()
        for group in groups:
            group["lr"] *= self.lr_factor()
        # Fused steps unscale half-precision gradients themselves, which leaves clipping nothing unscaled to measure.
        fused = not (self.clip_norm is not None and str(self.trainer.precision) == "16-mixed")
        optimizer: torch.optim.Optimizer
        if self.optimizer_name == "sgd":
            # Its fused step fails where a group's parameters had their first gradients at different steps, as those of a method
            # with stages or several steps a batch do.
            optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)
        else:
            optimizer = torch.optim.AdamW(groups, lr=self.lr, fused=fused)
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise UsageError("trainer.max_epochs: a schedule needs an end; give a number of epochs")
        per_epoch = total / max(1, self.trainer.max_epochs or 1)
        stages = self.stages()
        self._stage_ends = stage_ends(stages, int(total), per_epoch)

        def factor_over(batches: int) -> Callable[[int], float]:
            return schedule_factor(self.schedule, batches, per_epoch, self.warmup_epochs, self.milestones, self.gamma)

        factors = [staged_factor(stages, self._stage_ends, group["name"], factor_over) for group in groups]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_factor(self) -> float:
        """By what this run's batch changes the learning rates, see `lr_batch`."""
        size = getattr(self._datamodule(), "batch_size", None)
        if self.lr_batch is None or size is None:
            return 1.0
        times: float = size * self.trainer.world_size * self.trainer.accumulate_grad_batches / self.lr_batch
        return times if self.optimizer_name == "sgd" else math.sqrt(times)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of what stands still in this step; clip the norm of the others, where that is asked for."""
        for parameter in self._idle:
            parameter.grad = None
        stage = self.stages()[self._stage]
        for group in optimizer.param_groups:
            if stage.rate(group["name"]) == 0:
                for parameter in group["params"]:
                    parameter.grad = None
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)

    def configure_callbacks(self) -> list[Callback]:
        """The moving average of the weights, where it is asked for; and a last look at the trainer, before it starts."""
        if not self.automatic_optimization and self.trainer.state.fn == TrainerFn.FITTING:
            self._check_trainer()
        if self.ema_decay is None:
            return []
        # By interpolation, so that the average of what stands still is what it is, to the bit.
        return [WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(self.ema_decay))]

    def _check_trainer(self) -> None:
        """Refuse what Lightning cannot do where a batch takes several optimiser steps."""
        name = type(self).__name__
        if self.trainer.accumulate_grad_batches != 1:
            raise UsageError(
                f"trainer.accumulate_grad_batches: {name} takes {self.steps_per_batch} optimiser steps a batch, and steps "
                "cannot be accumulated over batches; lower the learning rate or the batch size instead"
            )
        if self.trainer.gradient_clip_val:
            raise UsageError(
                f"trainer.gradient_clip_val: {name} takes {self.steps_per_batch} optimiser steps a batch, which the trainer "
                "cannot clip; use --model.clip_norm, which clips for every method"
            )

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
            "stage": getattr(self.network, "stage", None),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what the checkpoint knows of its data."""
        data = checkpoint.get("fgzoo", {}).get("data")
        if data is not None:
            self.card = DataCard(**data)
        stage = checkpoint.get("fgzoo", {}).get("stage")
        if stage is not None:
            setattr(self.network, "stage", stage)  # noqa: B010 - modules type their attributes as tensors
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

    def _backbones(self) -> list[Backbone]:
        return [module for module in self.network.modules() if isinstance(module, Backbone)]

    def _datamodule(self) -> Any:
        return None if self._trainer is None else getattr(self._trainer, "datamodule", None)


def evaluation_metrics(num_classes: int) -> MetricCollection:
    """The protocol's metrics over logits (N, K) and classes (N,).

    Args:
        num_classes: K.

    Returns:
        `top1`, `top5` (the best of min(5, K)), `macro` (mean accuracy over classes), `nll` (nats) and `ece` (expected
        calibration error, 15 bins), all but `nll` as fractions of one. Samples of the class [IGNORED][] do not count.
    """
    return MetricCollection(
        {
            "top1": MulticlassAccuracy(num_classes, average="micro", ignore_index=IGNORED, validate_args=False),
            "top5": MulticlassAccuracy(
                num_classes, average="micro", top_k=min(5, num_classes), ignore_index=IGNORED, validate_args=False
            ),
            "macro": MulticlassAccuracy(num_classes, average="macro", ignore_index=IGNORED, validate_args=False),
            "nll": NegativeLogLikelihood(),
            "ece": MulticlassCalibrationError(num_classes, n_bins=15, norm="l1", ignore_index=IGNORED, validate_args=False),
        },
        compute_groups=False,
    )


class NegativeLogLikelihood(MeanMetric):
    """Mean negative log-likelihood of the true class, in nats."""

    def update(self, preds: Tensor, target: Tensor) -> None:  # type: ignore[override]
        """Add a batch: logits (B, K) and classes (B,)."""
        nll = F.cross_entropy(preds, target, reduction="none", ignore_index=IGNORED)
        super().update(nll, weight=(target != IGNORED).to(nll.dtype))
