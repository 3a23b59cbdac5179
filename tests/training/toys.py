"""Two tiny methods that use what the base offers to methods that train in stages or take several steps a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fgzoo.data.card import DataCard
from fgzoo.methods.base import FineGrainedClassifier
from fgzoo.methods.training_stages import TrainingStage
from fgzoo.nn.backbone import Backbone
from fgzoo.nn.output import MethodOutput

CLASSES = 3


class StagedNetwork(nn.Module):
    """A classifier, and a second one that the last stage adds."""

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.stage = 1
        self.backbone = backbone
        self.first = nn.Linear(backbone.levels[-1].channels, num_classes)
        self.second = nn.Linear(backbone.levels[-1].channels, num_classes)

    def forward(self, images: Tensor, targets: Tensor | None = None, keys: Tensor | None = None) -> MethodOutput:
        pooled = self.backbone(images)[-1].mean(dim=(2, 3))
        heads = {"first": self.first(pooled)}
        if self.stage == 1:
            heads["second"] = self.second(pooled)
        attention = images.new_zeros(len(images), 1, 2, 2)
        return MethodOutput(torch.stack(list(heads.values())).mean(dim=0), heads, attention)


class Staged(FineGrainedClassifier):
    """Stage 0: the backbone is frozen and the second classifier unused. Stage 1: everything, the first head at a tenth."""

    def build_network(self) -> nn.Module:
        return StagedNetwork(self.make_backbone(), self.num_classes)

    def learning_rates(self) -> dict[str, float]:
        return {**super().learning_rates(), "first": 2.0}

    def stages(self) -> tuple[TrainingStage, ...]:
        return TrainingStage("heads", 1 / 3, {"backbone": 0.0}), TrainingStage("all", 2 / 3, {"first": 0.1})


class Unequal(Staged):
    """The same, of classes with 4, 3 and 1 training images."""

    def build_network(self) -> nn.Module:
        names = ["a", "b", "c"]
        self.card = DataCard("folder", names, 64, 64, "squash", "bilinear", "pillow", "0" * 16, class_counts=[4, 3, 1])
        return super().build_network()


class StepsNetwork(nn.Module):
    """One classifier for each step, and a layer that all share."""

    def __init__(self, backbone: Backbone, num_classes: int, steps: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.shared = nn.Linear(backbone.levels[-1].channels, backbone.levels[-1].channels)
        self.heads = nn.ModuleList(nn.Linear(backbone.levels[-1].channels, num_classes) for _ in range(steps))

    def forward(
        self, images: Tensor, targets: Tensor | None = None, keys: Tensor | None = None, step: int | None = None
    ) -> MethodOutput:
        pooled = self.shared(self.backbone(images)[-1].mean(dim=(2, 3)))
        chosen = range(len(self.heads)) if step is None else [step]
        heads = {f"head{i}": self.heads[i](pooled) for i in chosen}
        extra = {"log_answer": torch.tensor(42.0)} if self.training else {}
        return MethodOutput(torch.stack(list(heads.values())).mean(dim=0), heads, images.new_zeros(len(images), 1, 2, 2), extra)


class Steps(FineGrainedClassifier):
    """An optimiser step for each of several heads."""

    def __init__(self, num_classes: int, *arguments: Any, steps: int = 3, given: int | None = None, **training: Any) -> None:
        super().__init__(num_classes, *arguments, **training)
        self.steps = steps
        self.given = given or steps

    def build_network(self) -> nn.Module:
        return StepsNetwork(self.make_backbone(), self.num_classes, self.steps)

    @property
    def steps_per_batch(self) -> int:
        return self.steps

    def training_outputs(self, images: Tensor, targets: Tensor, keys: Tensor) -> Iterator[MethodOutput]:
        for step in range(self.given):
            yield self.network(images, targets, keys, step=step)


class Noise(Dataset[tuple[Tensor, int, int]]):
    """Uint8 noise; a rank sees every second image."""

    def __init__(self, images: int = 8, first: int = 0, every: int = 1) -> None:
        self.indices = range(first, images, every)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        index = self.indices[position]
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8), index % CLASSES, index


def make(cls: type[FineGrainedClassifier], backbone: str = "test_efficientnet", **arguments: Any) -> Any:
    torch.manual_seed(0)
    return cls(CLASSES, backbone, False, **arguments)


def loader(batch_size: int = 2, first: int = 0, every: int = 1) -> DataLoader[Any]:
    return DataLoader(Noise(first=first, every=every), batch_size=batch_size)


def trainer(folder: Any, **arguments: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "max_epochs": 3, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder, "use_distributed_sampler": False,
    }  # fmt: skip
    return L.Trainer(**{**settings, **arguments})
