"""The contract of a method: what it declares, and what can be done with it.

A method overrides at most [build_network][FineGrainedClassifier.build_network], [loss][FineGrainedClassifier.loss],
[learning_rates][FineGrainedClassifier.learning_rates], [explain][FineGrainedClassifier.explain] with
[map_names][FineGrainedClassifier.map_names] and [map_shares][FineGrainedClassifier.map_shares], and
[features][FineGrainedClassifier.features]. One that trains in stages declares them in [stages][FineGrainedClassifier.stages],
one that takes several optimiser steps a batch in [steps_per_batch][FineGrainedClassifier.steps_per_batch] and
[training_outputs][FineGrainedClassifier.training_outputs]. What is done with all that stands beside: arguments in `arguments.py`,
training and scoring in `steps.py`, with `optimization.py`, `evaluation.py`, `training_stages.py` and `ranks.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fgzoo.data.card import DataCard
from fgzoo.errors import DataError, UsageError
from fgzoo.files import user_path
from fgzoo.methods.arguments import require_within
from fgzoo.methods.class_balance import ClassWeights, adjusted_cross_entropy, weighted_cross_entropy
from fgzoo.methods.distillation import check_teachers, teacher_logits
from fgzoo.methods.evaluation import tail_classes
from fgzoo.methods.optimization import Schedule, parameter_groups
from fgzoo.methods.steps import LightningSteps
from fgzoo.methods.training_stages import TrainingStage
from fgzoo.nn.backbone import Backbone, FreezeNorm, Tuning
from fgzoo.nn.evidence import distillation_loss
from fgzoo.nn.output import MethodOutput
from fgzoo.nn.passes import shared_passes
from fgzoo.nn.timm_networks import timm_name
from fgzoo.prediction import Reject, TestTime
from fgzoo.prediction.inference import ImageLike, Prediction, classify, embed, required_card
from fgzoo.prediction.rejection import Calibration
from fgzoo.version import __version__
from fgzoo.wording import did_you_mean


class FineGrainedClassifier(LightningSteps):
    """A fine-grained classifier: a network, its loss, and everything around training it.

    Args:
        num_classes: Number of classes K; the command line takes it from the data.
        backbone: Name of a timm network, with or without the tag of its weights; `hf-hub:USER/NAME` or `local-dir:PATH` for one
            whose config and weights lie on the Hugging Face hub or in a folder.
        pretrained: Start from timm's pretrained weights.
        backbone_weights: A local `.safetensors` or `.pth` file with the backbone's weights, used instead of timm's.
        optimizer: `sgd` (with momentum) or `adamw`.
        lr: Peak learning rate of the new layers.
        backbone_lr_factor: The backbone's learning rate relative to `lr`.
        layer_decay: Factor of the learning rate from each backbone layer to the one below; `None`: one rate for all. Meant for
            vision transformers.
        momentum: Momentum of `sgd`.
        weight_decay: Weight decay of weights; norms, biases, tokens and position embeddings have none.
        schedule: `cosine`, `step`, `one_cycle` or `constant`, advanced every batch.
        warmup_epochs: Epochs of linear warm-up (`one_cycle` has its own).
        milestones: Epochs at which `step` multiplies the rate by `gamma`.
        gamma: See `milestones`.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        class_weights: What a class weighs in the cross-entropies of all heads: as much as any other (`none`), or in inverse
            proportion to its number of training images (`full`) or to that number's square root (`sqrt`), with a mean of 1 over
            training images. The numbers are the data module's, and are kept in checkpoints. Other terms have no weights.
        logit_adjustment: Adds the logarithms of the classes' shares in the training images, times this, to the logits of the
            cross-entropies in training (arXiv 2007.07314, where it is 1); answers stay unadjusted. The third way to learn classes
            of unequal size beside `class_weights` and `data.balance`, of which a run takes one.
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
        backbone_size: Side of the images that backbones of a single size are built for (CoAtNet, MaxViT, BEiT), where timm can.
            Images, crops and patches are resized to it. `None`: each network's own. Most networks take any size and need none.
        backbone_tuning: What of the backbones learns: what `freeze` leaves (`full`), nothing (`frozen`), or sums of low rank
            beside the projections of attention (`lora`, arXiv 2106.09685), of vision transformers.
        lora_rank: Their rank.
        teacher: Trained checkpoints of the same classes to learn from, too: names, runs' folders or files. The command line loads
            them; in Python, set `teachers`. The output's logits (of Coarse2Fine and WS-DAN the first view's) learn from the
            average of their probabilities for the same view.
        teacher_weight: What the teachers count; the loss terms of the classes have the rest, in the step of a batch whose output
            is scored (of methods that take several, the others learn from labels alone).
        teacher_temperature: Divides the logits of teachers and student before both are compared.
        recompute_backbone: Compute the backbone's activations again in the backward pass instead of keeping them: less memory,
            about a third more time.

    Attributes:
        arguments: Every argument by name, see [HasArguments][fgzoo.methods.arguments.HasArguments].
        network: The torch network that [build_network][] made; it alone is compiled and exported.
        card: The data the weights were trained on, and how its images were prepared; `None` before that is known.
        teachers: Trained models to learn from, see `teacher`; no part of this one, nor of its checkpoints.
        trained: Whether the weights have been trained. An untrained model is not tested.
        calibration: The temperature of its probabilities and the thresholds below which an image is unknown, fitted to images
            that were held out of training; `None` where there were none, and as soon as the weights change.
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
        class_weights: ClassWeights = "none",
        logit_adjustment: float = 0.0,
        clip_norm: float | None = None,
        ema_decay: float | None = None,
        lr_batch: int | None = None,
        compile: bool = False,  # noqa: A002 - the field's word for it
        recompute_backbone: bool = False,
        freeze: int = 0,
        freeze_norm: FreezeNorm = "none",
        output_stride: int | None = None,
        backbone_size: int | None = None,
        backbone_tuning: Tuning = "full",
        lora_rank: int = 8,
        teacher: Sequence[str] | str | None = None,
        teacher_weight: float = 0.5,
        teacher_temperature: float = 2.0,
    ) -> None:
        super().__init__(num_classes)
        if num_classes < 2:
            raise UsageError(f"model.num_classes: {num_classes}; a classifier needs at least 2 classes")
        if clip_norm == 0:
            raise UsageError("model.clip_norm: 0 would take every gradient away; null clips none")
        require_within("[0, 1)", label_smoothing=label_smoothing, momentum=momentum, ema_decay=ema_decay)
        require_within("[0, inf)", lr=lr, backbone_lr_factor=backbone_lr_factor, weight_decay=weight_decay, gamma=gamma)
        require_within("[0, inf)", warmup_epochs=warmup_epochs, logit_adjustment=logit_adjustment)
        require_within("(0, inf)", clip_norm=clip_norm, teacher_temperature=teacher_temperature)
        require_within("(0, 1]", layer_decay=layer_decay, teacher_weight=teacher_weight)
        if class_weights != "none" and logit_adjustment:
            raise UsageError("model.logit_adjustment: model.class_weights evens out the classes, too; give one of them")
        if lr_batch is not None and lr_batch < 1:
            raise UsageError(f"model.lr_batch: {lr_batch}; at least 1, or leave it away to take lr as it is")
        if lora_rank < 1:
            raise UsageError(f"model.lora_rank: {lora_rank}; at least 1")
        if backbone_size is not None and backbone_size < 1:
            raise UsageError(f"model.backbone_size: {backbone_size}; at least 1, or leave it away for each network's own")
        if compile and recompute_backbone:
            raise UsageError(
                "model.recompute_backbone: a compiled network decides by itself what to compute again; leave one away"
            )
        self.num_classes = num_classes
        self.backbone = timm_name(backbone)
        self.card: DataCard | None = None
        self.teachers: Sequence[FineGrainedClassifier] = []
        self.calibration: Calibration | None = None
        self.network: nn.Module
        self.pixel_mean: Tensor
        self.pixel_std: Tensor

    def finish(self, arguments: dict[str, Any]) -> None:
        """Build the network, and remember the arguments under `hparams`, where Lightning's checkpoints keep them."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()}
        self._set_hparams(plain)
        self.network = self.build_network().to(memory_format=torch.channels_last)
        groups = {*self.learning_rates(), "new"}
        parts = dict(self.network.named_modules())
        for name in self.learning_rates():
            if name not in parts:
                near = did_you_mean(name, parts)
                raise UsageError(f"model: learning_rates() has a rate for '{name}', which is no submodule of the network{near}")
        for stage in self.stages():
            if unknown := stage.rates.keys() - groups:
                named = ", ".join(sorted(unknown))
                raise UsageError(
                    f"model: stage '{stage.name}' has a rate for {named}; parameter groups are {', '.join(sorted(groups))}"
                )
        for name in {name for stage in self.stages() for name in self.learning_rates() if stage.rate(name) == 0}:
            if inside := [other for other in self.learning_rates() if other.startswith(f"{name}.")]:
                raise UsageError(f"model: a stage freezes '{name}', and '{inside[0]}' in it has a rate of its own")
            module = self.network.get_submodule(name)
            if isinstance(module, Backbone) and not module.frozen_norms:
                module.freeze_statistics()
        self.automatic_optimization = self.steps_per_batch == 1
        mean, std = self.image_statistics()
        # On the device from the start: a copy at every step would make it wait.
        self.register_buffer("pixel_mean", 255 * torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", 255 * torch.tensor(std).view(-1, 1, 1), persistent=False)
        if self.arguments.recompute_backbone:
            for backbone in self._backbones():
                backbone.recompute()
        if self.arguments.compile:
            self.network.compile()

    # ------------------------------------------------------------------ what a method overrides

    def build_network(self) -> nn.Module:
        """Make the network: `forward(images, targets=None, keys=None)` -> [MethodOutput][], knowing only tensors."""
        raise NotImplementedError(f"{type(self).__name__} must define build_network()")

    def loss(self, output: MethodOutput, targets: Tensor) -> dict[str, Tensor]:
        """Loss terms by name; their sum is minimised. By default the [cross_entropy][] of every head.

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
        return dict.fromkeys(backbones, self.arguments.backbone_lr_factor)

    def stages(self) -> tuple[TrainingStage, ...]:
        """The stages of a run, one after the other in one `fit`; by default a single one.

        A network that computes differently by stage has an integer attribute `stage`, which is set before every training batch
        and kept in checkpoints. Untrained and finished networks are in their last stage.

        Returns:
            The stages in order.
        """
        return (TrainingStage("train", 1.0),)

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

    def map_shares(self, images: Tensor, targets: Tensor) -> Tensor:
        """How much of a class's evidence the maps of [explain][] carry, where a method can say so; pages show the largest first.

        Args:
            images: (B, 3, H, W), normalised.
            targets: (B,), the explained classes.

        Returns:
            (B, N) in [0, 1], the shares of the first N maps, whose sum is 1, or 0 where none speaks for the class. By default
            N = 0. Maps without a share, such as a mean of the others, come before all others.
        """
        return images.new_zeros(len(images), 0)

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

    def logits_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and [features][] (B, D) of normalised images, in single precision; what both need is computed once."""
        # What replaces a backbone's pass would not be seen by a compiled network.
        with torch.compiler.set_stance("force_eager"), shared_passes(self.network):
            return self(images).logits.float(), self.features(images).float()

    def at_size(self, image_size: int) -> Self:
        """This model, whose images have another side in pixels; its calibration, which was found at its own, stays behind.

        Raises:
            UntrainedError, CheckpointError: How images are prepared for it is not known.
        """
        card, other = required_card(self), copy.copy(self)
        if image_size != card.image_size:
            other.card, other.calibration = card.at_size(image_size), None
        return other

    def around(self, network: nn.Module) -> Self:
        """This model with another network of the same kind; all else is shared."""
        other = copy.copy(self)
        other._modules = {**self._modules, "network": network}
        return other

    # ------------------------------------------------------------------ help for methods

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups from [learning_rates][]; norms, biases, tokens and position embeddings do not decay.

        Returns:
            Groups named like their submodule, `new` for the rest, with `/norm+bias` or the layer's number behind it.
        """
        given = self.arguments
        return parameter_groups(self.network, self.learning_rates(), given.lr, given.weight_decay, given.layer_decay)

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
        given = self.arguments
        own = name is None or timm_name(name) == self.backbone
        weights = user_path(weights or (given.backbone_weights if own else None))
        return self.build(Backbone, name=name or self.backbone, weights=weights, max_stride=max_stride)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The network in evaluation mode for a while, [computing][]; afterwards every module is as it was."""
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()
        try:
            with self.computing():
                yield
        finally:
            for module, training in modes:
                module.training = training

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy with this model's label smoothing and `class_weights`, for classes (B,) or probabilities (B, K).

        Raises:
            UsageError: Classes are to weigh by their training images, and how many there are is not known.
        """
        given = self.arguments
        if given.logit_adjustment:
            return adjusted_cross_entropy(logits, targets, self._class_counts(), given.logit_adjustment, given.label_smoothing)
        if given.class_weights != "none":
            return weighted_cross_entropy(logits, targets, self._class_counts(), given.class_weights, given.label_smoothing)
        return F.cross_entropy(logits, targets, label_smoothing=given.label_smoothing)

    def taught(self, terms: dict[str, Tensor], output: MethodOutput, images: Tensor) -> dict[str, Tensor]:
        """Loss terms with that of the teachers, where there are any, see `teacher_weight`.

        Args:
            terms: What [loss][] gave.
            output: The output whose logits are scored.
            images: (B, 3, H, W), what it is of, normalised.

        Returns:
            Scalars by name.
        """
        if not self.teachers:
            return terms
        given = self.arguments
        expected = teacher_logits(self.teachers, self, images, given.teacher_temperature)
        soft = distillation_loss(output.logits, expected, given.teacher_temperature)
        weighed = {name: (1 - given.teacher_weight) * term for name, term in terms.items()}
        return weighed | {"teacher": given.teacher_weight * soft}

    def _class_counts(self) -> tuple[int, ...]:
        """Training images by class, of which each has some."""
        if self.card is None or self.card.class_counts is None:
            raise UsageError(
                "model.class_weights, model.logit_adjustment: how many training images each class has is not known; train with a "
                "data module whose card says so, or set model.card"
            )
        if 0 in self.card.class_counts:
            absent = self.card.class_names[self.card.class_counts.index(0)]
            raise UsageError(f"model.class_weights, model.logit_adjustment: class '{absent}' has no training image")
        return tuple(self.card.class_counts)

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
        with self.computing():
            return cast(MethodOutput, self.network(images, targets, keys))

    def computing(self) -> AbstractContextManager[object]:
        """Autocasting, where the weights themselves are of half precision: not every operation exists in it, nor bears it."""
        own = self.pixel_mean
        return torch.autocast(own.device.type, own.dtype) if own.dtype in (torch.float16, torch.bfloat16) else nullcontext()

    @property
    def transform(self) -> Callable[[Tensor], Tensor]:
        """The evaluation transform of the weights: upright uint8 (3, H, W) to uint8 (3, size, size).

        Raises:
            UntrainedError: The model has seen no data yet, so it has none.
            CheckpointError: It was trained on loaders that say nothing of their data.
        """
        card = self.card or required_card(self, "model.transform")
        return card.transform()

    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 images into what the backbone's weights expect, on their device and of their type; floats pass unchanged.

        Args:
            images: (B, 3, H, W) uint8 in [0, 255], or floats that are normalised already.

        Returns:
            (B, 3, H, W), float32 unless the model has been turned to another precision.
        """
        if images.is_floating_point():
            return images
        wide = images.to(torch.promote_types(self.pixel_mean.dtype, torch.float32))
        return wide.sub_(self.pixel_mean).div_(self.pixel_std).to(self.pixel_mean.dtype)

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        top_k: int = 5,
        batch_size: int = 32,
        tta: TestTime = "none",
        num_workers: int = 0,
        reject: Reject | None = None,
    ) -> list[Prediction]:
        """Classify images on the model's device, whatever its mode; an image that cannot be read has its `error` filled.

        Arguments and errors are those of [classify][fgzoo.prediction.inference.classify]. A model whose `calibration` is `None`
        accepts everything, unless a share to `reject` is asked for, which is an error then.

        Returns:
            One prediction an image, in their order.
        """
        return list(classify([self], images, top_k, batch_size, tta, num_workers, reject=reject))

    def embed(
        self,
        images: ImageLike | Sequence[ImageLike],
        batch_size: int = 32,
        tta: TestTime = "none",
        num_workers: int = 0,
    ) -> Tensor:
        """The features of images, see [features][]; arguments are those of [embed][fgzoo.prediction.inference.embed].

        Returns:
            (N, D) on the CPU, one row an image, in their order.

        Raises:
            DataError: An image cannot be read.
        """
        rows: list[Tensor] = []
        for answers in embed([self], images, batch_size, tta, num_workers):
            for error in filter(None, answers.errors):
                raise DataError(f"embed: {error}")
            rows.append(answers.values)
        return torch.cat(rows) if rows else torch.empty(0, 0)

    def image_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of RGB / 255 that the (first) backbone's weights were trained with."""
        backbones = self._backbones()
        return (backbones[0].mean, backbones[0].std) if backbones else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)

    # ------------------------------------------------------------------ what belongs to the weights

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """What was fitted to the answers of these weights ends with them."""
        self.calibration = None

    def setup(self, stage: str) -> None:
        """Learn what data this is, and say what cannot be frozen and what is resized."""
        weighs = self.arguments.class_weights != "none" or self.arguments.logit_adjustment
        if stage == "fit" and weighs and self._of_data("balance", "none") != "none":
            raise UsageError(
                "data.balance: model.class_weights or model.logit_adjustment evens out the classes, too; give one of them"
            )
        card = self._of_data("card")
        if card is not None and self.card is not None and stage != "fit":
            # Of what they were trained on, the weights themselves know best: sizes, which classes are rare.
            self.card.check_classes(card)
        elif card is not None:
            if len(card.class_names) != self.num_classes:
                raise UsageError(f"model.num_classes: {self.num_classes}, and the data has {len(card.class_names)} classes")
            self.card = card
        if stage == "fit":
            self._check_synchronized_norms()
            check_teachers(self.teachers, self)
            self._say_what_backbones_do()
        self.evaluation.tail = tail_classes(None if self.card is None else self.card.class_counts)

    def _check_synchronized_norms(self) -> None:
        """Refuse to have activations left out: torch's conversion knows nothing of those inside timm's batch-norms."""
        if self._trainer is None or getattr(self._trainer.strategy, "_layer_sync", None) is None:
            return
        if any(isinstance(module, _BatchNorm) and next(module.children(), None) is not None for module in self.network.modules()):
            raise UsageError(
                f"trainer.sync_batchnorm: the batch-norms of '{self.backbone}' apply its activations, too, which Lightning's "
                "synchronised ones would leave out; without it, statistics are averaged over all devices after every epoch"
            )

    def _say_what_backbones_do(self) -> None:
        """Say which arguments change nothing, and which backbone sees images of another size than the data's."""
        given, backbones = self.arguments, self._backbones()
        if given.freeze_norm != "none" and not any(backbone.frozen_norms for backbone in backbones):
            rank_zero_warn(f"model.freeze_norm: '{self.backbone}' has no batch-norms, so there is nothing to freeze")
        fixed = {backbone.name: backbone.size[0] for backbone in backbones if backbone.size is not None}
        if given.backbone_size is not None and not fixed:
            rank_zero_warn(f"model.backbone_size: '{self.backbone}' takes images of any size, so there is nothing to set")
        side = None if self.card is None else self.card.image_size
        for name, own in fixed.items():
            if side is not None and own != side and own != given.backbone_size:
                rank_zero_warn(
                    f"model.backbone: '{name}' is built for {own} pixels, so the data's {side} are resized to {own}; build it "
                    f"for them by --model.backbone_size {side}, or take its own by --data.image_size {own}"
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put everything into the checkpoint that loading needs besides the weights."""
        mean, std = self.image_statistics()
        cls = type(self)
        checkpoint["fgzoo"] = {
            "method": f"{cls.__module__}.{cls.__qualname__}",
            "version": __version__,
            "num_classes": self.num_classes,
            "backbone": self.backbone,
            "networks": {b.name: b.config.as_dict() for b in self._backbones() if b.config is not None},
            "mean": list(mean),
            "std": list(std),
            "data": None if self.card is None else self.card.as_dict(),
            "calibration": None if self.calibration is None else self.calibration.as_dict(),
            "stage": getattr(self.network, "stage", None),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what the checkpoint knows of its data."""
        about = checkpoint.get("fgzoo", {})
        if about.get("data") is not None:
            self.card = DataCard(**about["data"])
        stored = about.get("calibration")
        self.calibration = None if stored is None else Calibration.read(stored, self.num_classes)
        stage = about.get("stage")
        if stage is not None:
            setattr(self.network, "stage", stage)  # noqa: B010 - modules type their attributes as tensors
        self.trained = True

    def _backbones(self) -> list[Backbone]:
        return [module for module in self.network.modules() if isinstance(module, Backbone)]
