"""timm's networks by name: how each is found and built, its weights, and which sizes of image it takes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.models import get_model_input_config
from timm.models._hub import load_model_config_from_hf, load_model_config_from_path
from torch import nn

from fgzoo.errors import CheckpointError, UsageError
from fgzoo.nn import birds_resnet  # noqa: F401 - timm knows it from here on
from fgzoo.nn.weights import read_weights
from fgzoo.wording import did_you_mean

#: Smallest sides of images, by timm's module, of networks that are left without a pixel by smaller ones.
SMALLEST_SIDES = {"inception_v3": 75, "inception_v4": 75, "inception_resnet_v2": 75, "ghostnet": 33} | dict.fromkeys(
    (
        "convnext",
        "densenet",
        "edgenext",
        "fasternet",
        "focalnet",
        "inception_next",
        "nextvit",
        "pvt_v2",
        "rdnet",
        "sequencer",
        "twins",
        "vgg",
        "vovnet",
    ),
    32,
)
#: What the sides of images must be multiples of, by timm's module: windows of whole patches, levels that are added up.
MULTIPLES = {"swin_transformer": 4, "swin_transformer_v2": 4, "vision_transformer_sam": 16, "csatv2": 32, "dla": 32, "hrnet": 32}
#: Networks whose backward pass breaks the process's memory in channels-last format on the CPU (torch 2.14, grouped 7x7).
CONTIGUOUS = ("fastvit",)
#: Networks whose levels are those of several branches, each on a grid of its own.
NO_SINGLE_GRID = ("crossvit",)
#: What a config says of a network's images and weights, as far as it does not depend on where they lie.
KEPT = ("architecture", "mean", "std", "input_size", "fixed_input_size", "interpolation", "crop_pct", "num_classes")
#: Vision transformers and windowed ones, whose image size is free with these; every other network refuses them at once.
FREE_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True, "dynamic_img_pad": True}, {"dynamic_img_size": True}, {})


class NetworkConfig(NamedTuple):
    """What the config of a network on a hub or in a folder says.

    Attributes:
        architecture: Name of the timm network that it is.
        arguments: What timm's class is built with beside its defaults.
        pretrained_cfg: timm's description of the weights and of the images that they expect.
    """

    architecture: str
    arguments: dict[str, Any]
    pretrained_cfg: dict[str, Any]

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> NetworkConfig:
        """One that was kept by [as_dict][]; whatever else stands there, such as files to read, is left out."""
        own = inspect.signature(timm.create_model).parameters
        arguments = {name: value for name, value in written["arguments"].items() if name not in own}
        return cls(written["architecture"], arguments, {k: v for k, v in written["pretrained_cfg"].items() if k in KEPT})

    def as_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that loading it needs neither hub nor folder."""
        kept = {name: value for name, value in self.pretrained_cfg.items() if name in KEPT}
        return {"architecture": self.architecture, "arguments": dict(self.arguments), "pretrained_cfg": kept}


#: Configs that checkpoints brought with them, by name; read where no weights are wanted.
_kept_configs: dict[str, NetworkConfig] = {}


def remember_configs(written: Mapping[str, Mapping[str, Any]]) -> None:
    """From now on, build the networks of these names by what a checkpoint says of them, unless weights are to be fetched."""
    _kept_configs.update({name: NetworkConfig.of(config) for name, config in written.items()})


def timm_name(name: str) -> str:
    """The short name of a network: `hf-hub:timm/resnet18.a1_in1k`, which lies on timm's own hub, is `resnet18.a1_in1k`."""
    source, _, rest = name.partition(":")
    short = rest.removeprefix("timm/")
    if source in ("hf-hub", "hf_hub") and short != rest and timm.is_model(short) and _has_tag(short):
        return short
    return name


def _has_tag(name: str) -> bool:
    """Whether timm knows the weights that a name's tag means, if it has one."""
    try:
        return "." not in name or timm.get_pretrained_cfg(name) is not None
    except RuntimeError:
        return False


def find_config(name: str, pretrained: bool) -> NetworkConfig | None:
    """What timm's config file says of a network of a hub or a folder.

    Args:
        name: `hf-hub:USER/NAME`, `local-dir:PATH`, or a name of timm's.
        pretrained: Its weights are wanted, too.

    Returns:
        `None` for one of timm's own networks.

    Raises:
        UsageError: timm knows no such network, or the config cannot be fetched or read.
    """
    source, colon, where = name.partition(":")
    if not colon or source not in ("hf-hub", "hf_hub", "local-dir"):
        _check_name(name)
        return None
    if name in _kept_configs and not pretrained:
        return _kept_configs[name]
    try:
        if source == "local-dir":
            pretrained_cfg, architecture, arguments = load_model_config_from_path(Path(where).expanduser())
        else:
            pretrained_cfg, architecture, arguments = load_model_config_from_hf(where)
    except Exception as error:  # the hub's clients raise errors of their own families
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"backbone: what '{name}' is could not be read ({type(error).__name__}: {reason}); give the timm name of its "
            "architecture and a weight file, --model.backbone NAME --model.backbone_weights FILE, or local-dir:FOLDER with both "
            "its config.json and its weights"
        ) from error
    if not timm.is_model(architecture):
        raise UsageError(f"backbone: '{name}' is a '{architecture}', which this timm ({timm.__version__}) does not know")
    return NetworkConfig(architecture, dict(arguments or {}), dict(pretrained_cfg))


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = did_you_mean(architecture, timm.list_models(), most=3) or "; timm.list_models() names them all"
        if "/" in name:
            hint = f"; one on the Hugging Face hub is hf-hub:{name}, one in a folder local-dir:{name}"
        raise UsageError(f"backbone: timm knows no network '{name}'{hint}")
    if tag and not _has_tag(name):
        tags = [known.partition(".")[2] for known in timm.list_models(f"{architecture}.*", pretrained=True)]
        known = f"it has {', '.join(tags)}" if tags else "it has none"
        raise UsageError(
            f"backbone: timm knows no weights '{tag}' of '{architecture}'; {known}. Without a tag its default is meant"
        )


def build_network(name: str, config: NetworkConfig | None, pretrained: bool, **given: Any) -> Any:
    """Build a timm network, its image size free where timm can.

    Args:
        name: As for [find_config][].
        config: From there.
        pretrained: Load timm's pretrained weights.
        **given: Further arguments of timm's class.

    Returns:
        The network.

    Raises:
        UsageError: Its weights cannot be fetched, or it gives no feature maps.
        TypeError: Its class does not take an argument.
    """
    described: dict[str, Any] = {} if config is None else {**config.arguments, "pretrained_cfg": config.pretrained_cfg}
    model: Any = None
    for free in FREE_SIZE:
        try:
            model = timm.create_model(
                name if config is None else config.architecture, pretrained=pretrained, **{**described, **free, **given}
            )
            break
        except TypeError:
            if not free:
                raise
        except Exception as error:
            if not pretrained or isinstance(error, AssertionError | NotImplementedError):
                raise
            # The hub's clients raise errors of their own families, so this cannot be narrower.
            raise UsageError(
                f"backbone: the pretrained weights of '{name}' could not be fetched ({type(error).__name__}); give a local file "
                "by --model.backbone_weights PATH (.safetensors or .pth), or train from scratch by --model.pretrained false"
            ) from error
    gives = hasattr(model, "forward_intermediates") and hasattr(model, "prune_intermediate_layers")
    if not gives or _module(model) in NO_SINGLE_GRID:
        raise UsageError(f"backbone: timm's '{name}' gives no feature maps; take another network")
    return model


def _module(model: nn.Module) -> str:
    """The file of timm's that a network comes from."""
    return type(model).__module__.rpartition(".")[2]


def is_fixed(model: nn.Module) -> bool:
    """Whether timm says that a network takes one image size only; some that it says so of take any."""
    return bool(get_model_input_config(model)["fixed_input_size"])


def own_size(model: nn.Module) -> tuple[int, int]:
    """The image size that a network was built for."""
    height, width = get_model_input_config(model)["input_size"][-2:]
    return height, width


class SizeLimits(NamedTuple):
    """Which images a network of free size takes.

    Attributes:
        smallest: Their smallest side.
        multiple: What every side is a multiple of.
    """

    smallest: int = 1
    multiple: int = 1

    @classmethod
    def of(cls, model: nn.Module) -> SizeLimits:
        """Those of one of timm's networks."""
        return cls(SMALLEST_SIDES.get(_module(model), 1), MULTIPLES.get(_module(model), 1))

    def enlarged(self, height: int, width: int) -> tuple[int, int]:
        """The size at which an image is shown: in proportion until no side is too small, then each up to the next multiple."""
        factor = max(1.0, self.smallest / min(height, width))

        def whole(side: int) -> int:
            return self.multiple * math.ceil(math.ceil(side * factor) / self.multiple)

        return whole(height), whole(width)


def needs_contiguous(model: nn.Module) -> bool:
    """Whether a network's weights and images must not be channels-last."""
    return _module(model) in CONTIGUOUS


def load_weights(model: nn.Module, path: Path, name: str, full_keys: set[str]) -> None:
    """Load a file into a pruned network; what the full network has and the pruned one lacks may lie in the file.

    Args:
        model: The network.
        path: `.safetensors`, `.pth` or `.pt`.
        name: Its name, for messages.
        full_keys: Names of the full network's tensors.

    Raises:
        CheckpointError: The file cannot be read or belongs to another network.
    """
    state = read_weights(path)
    own = model.state_dict()
    # A counter that most exporters leave out; timm's networks do not use it.
    missing = sorted(key for key in set(own) - set(state) if not key.endswith("num_batches_tracked"))
    foreign = sorted(set(state) - set(own) - full_keys)
    shapes = sorted(key for key in set(own) & set(state) if own[key].shape != state[key].shape)
    for what, keys in (("lacks", missing), ("has unknown", foreign), ("has other shapes for", shapes)):
        if keys:
            raise CheckpointError(
                f"weights: {path} does not fit timm's '{name}': it {what} {len(keys)} tensors, e.g. {', '.join(keys[:3])}"
            )
    model.load_state_dict({key: state.get(key, own[key]) for key in own})
