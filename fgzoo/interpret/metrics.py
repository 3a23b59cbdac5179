r"""How good a map is: where its mass lies, whether the network needs what it shows, and whether it depends on the weights.

Maps are (B, H, W) in the image's resolution, larger where the explanation sees more. Regions are boolean (B, H, W); pixel
(i, j) is the unit square round x = j + 0.5, y = i + 0.5, and belongs to a region where that centre does. Three conventions hold
everywhere, so that no map gains by being undecided:

* A map whose maximum is shared by several pixels scores the share of them that hit: what a fair draw among them would expect.
* A map without any mass says nothing about a place, and counts as a uniform one. So a constant map scores a region's share of
  the image, which is chance.
* An empty region can neither be hit nor missed: its score is NaN, to be left out of means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgzoo.nn.maps import normalize_map

#: Images (N, C, H, W) -> scores of the classes (N, K): probabilities, or logits for Grad-CAM.
Scores = Callable[[Tensor], Tensor]

#: What replaces pixels that are taken away: the blurred image, or zero (the mean colour of normalised images).
Reference = Literal["blur", "zero"]

#: Pixels this close to the maximum, in shares of the map's range, are maxima, too: interpolation breaks ties by rounding.
TIE = 1e-6

# ---------------------------------------------------------------------- regions


def box_region(boxes: Tensor, size: tuple[int, int], tolerance: float = 0.0) -> Tensor:
    """Pixels inside boxes, or at most `tolerance` pixels from them.

    Args:
        boxes: (B, 4), x0, y0, x1, y1 in pixels; NaN where there is none.
        size: H and W.
        tolerance: Largest distance from the box.

    Returns:
        (B, H, W) boolean.
    """
    x, y = _pixel_centres(size, boxes)
    x0, y0, x1, y1 = boxes[:, :, None, None].unbind(dim=1)
    across = torch.maximum(x0 - x, x - x1).clamp_min(0)
    down = torch.maximum(y0 - y, y - y1).clamp_min(0)
    return across.square() + down.square() <= tolerance**2


def disc_region(points: Tensor, radius: float, size: tuple[int, int]) -> Tensor:
    """Pixels at most `radius` pixels from any of an image's points.

    Args:
        points: (B, P, 2), x and y in pixels; NaN where an image has fewer than P. P may be 0.
        radius: Radius of the discs.
        size: H and W.

    Returns:
        (B, H, W) boolean.
    """
    x, y = _pixel_centres(size, points)
    px, py = points[:, :, :, None, None].unbind(dim=2)
    return ((x - px).square() + (y - py).square() <= radius**2).any(dim=1)


def _pixel_centres(size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Where the pixels' centres are: x (W,) and y (H, 1)."""
    y, x = (torch.arange(side, device=like.device, dtype=like.dtype) + 0.5 for side in size)
    return x, y[:, None]


# ---------------------------------------------------------------------- where the map is


def pointing_game(maps: Tensor, regions: Tensor) -> Tensor:
    r"""Whether the map's maximum lies in the region.

    $$\text{hit}_b = |A_b \cap R_b| / |A_b|, \quad A_b = \{p : M_b(p) = \max M_b\}$$

    It is 0 or 1 where the maximum is unique. The published game dilates the region by 15 pixels, see [box_region][].

    Source: Zhang et al., "Top-down Neural Attention by Excitation Backprop", arXiv 1608.00507, section 4.1.

    Args:
        maps: (B, H, W).
        regions: (B, H, W) boolean.

    Returns:
        (B,) in [0, 1], double precision; NaN where the region is empty.
    """
    flat, inside = maps.double().flatten(1), regions.flatten(1)
    low, high = flat.aminmax(dim=1, keepdim=True)
    largest = flat >= high - TIE * (high - low)
    hits = (largest & inside).sum(dim=1).double() / largest.sum(dim=1)
    return hits.masked_fill(~inside.any(dim=1), math.nan)


def energy_inside(maps: Tensor, regions: Tensor) -> Tensor:
    r"""Share of the map's mass that lies in the region.

    $$e_b = \sum_{p \in R_b} M^+_b(p) / \sum_p M^+_b(p), \quad M^+ = \max(0, M)$$

    Source: Wang et al., "Score-CAM", arXiv 1910.01279, section 4.3, there with a box as the region.

    Args:
        maps: (B, H, W).
        regions: (B, H, W) boolean.

    Returns:
        (B,) in [0, 1], double precision; NaN where the region is empty.
    """
    mass, inside = maps.double().clamp_min(0).flatten(1), regions.flatten(1)
    massless = mass.amax(dim=1, keepdim=True) <= 0
    mass = torch.where(massless, torch.ones_like(mass), mass)
    share = (mass * inside).sum(dim=1) / mass.sum(dim=1)
    return share.masked_fill(~inside.any(dim=1), math.nan)


def centered_gaussian(size: tuple[int, int], sigma: float = 0.25) -> Tensor:
    r"""The map of someone who has not seen the image: objects tend to be in the middle.

    $$M(x, y) = \exp\Big(-\frac{(x/W - 1/2)^2 + (y/H - 1/2)^2}{2\sigma^2}\Big)$$

    Source: Judd, Durand, Torralba, "A Benchmark of Computational Models of Saliency to Predict Human Fixations", MIT 2012.

    Args:
        size: H and W.
        sigma: Standard deviation in shares of the sides.

    Returns:
        (H, W) in (0, 1].
    """
    y, x = ((torch.arange(side) + 0.5) / side - 0.5 for side in size)
    return torch.exp(-(y[:, None].square() + x.square()) / (2 * sigma**2))


# ---------------------------------------------------------------------- whether the network needs what the map shows


class Curve(NamedTuple):
    """Scores while pixels come or go.

    Shape:
        - fractions: (N + 1,), shares of the pixels that have been changed, from 0 to 1
        - scores: (B, N + 1), the explained class's score at each of them
        - area: (B,), the area under the scores
    """

    fractions: Tensor
    scores: Tensor
    area: Tensor


def insertion(
    scores: Scores, images: Tensor, maps: Tensor, classes: Tensor, steps: int = 28, reference: Reference | Tensor = "blur"
) -> Curve:
    r"""Start from the reference and put the image's pixels back, the map's largest first; the larger the area, the better.

    With x^(n) holding the round(n HW / N) first pixels of the image and the reference elsewhere,

    $$\text{area} = \frac{1}{N} \sum_{n=1}^{N} \frac{s_y(x^{(n-1)}) + s_y(x^{(n)})}{2}$$

    Equal values of a map come in reading order. Areas compare maps of one network on one class, not networks.

    Source: Petsiuk, Das, Saenko, "RISE", arXiv 1806.07421, section 3.3.

    Args:
        scores: The network.
        images: (B, C, H, W).
        maps: (B, H, W).
        classes: (B,), the class that the maps explain.
        steps: N, in how many equal steps all pixels are changed.
        reference: `blur` (as in the paper, whose code blurs less: by a sigma of 3 of 224 pixels, where this has 10), `zero`, or
            (B, C, H, W).

    Returns:
        The curve.
    """
    return _perturbation_curve(scores, _reference(images, reference), images, maps, classes, steps)


def deletion(
    scores: Scores, images: Tensor, maps: Tensor, classes: Tensor, steps: int = 28, reference: Reference | Tensor = "zero"
) -> Curve:
    """Start from the image and replace its pixels by the reference's, the map's largest first; the smaller the area, the better.

    Otherwise as [insertion][], arguments included. Source: arXiv 1806.07421, section 3.3.
    """
    return _perturbation_curve(scores, images, _reference(images, reference), maps, classes, steps)


def _perturbation_curve(scores: Scores, start: Tensor, end: Tensor, maps: Tensor, classes: Tensor, steps: int) -> Curve:
    """From `start` to `end`, one pass of the batch a step."""
    pixels = maps[0].numel()
    order = maps.flatten(1).sort(dim=1, descending=True, stable=True).indices
    place = order.argsort(dim=1).view_as(maps)[:, None]
    fractions = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=maps.device)
    found = []
    with torch.no_grad():
        for fraction in fractions.tolist():
            mixed = torch.where(place < round(fraction * pixels), end, start)
            found.append(scores(mixed).gather(1, classes[:, None])[:, 0].double())
    curve = torch.stack(found, dim=1)
    return Curve(fractions, curve, torch.trapezoid(curve, fractions, dim=1))


def _reference(images: Tensor, reference: Reference | Tensor) -> Tensor:
    if isinstance(reference, Tensor):
        return reference
    if reference == "blur":
        return gaussian_blur(images, sigma=10 / 224 * min(images.shape[-2:]))
    return torch.zeros_like(images)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, the kernel cut at three standard deviations, the image mirrored at its borders.

    Args:
        images: (B, C, H, W).
        sigma: Standard deviation in pixels.

    Returns:
        (B, C, H, W).
    """
    blurred = images
    for dim in (2, 3):
        # Mirroring needs a side of more pixels than it adds.
        radius = min(math.ceil(3 * sigma), images.shape[dim] - 1)
        offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
        kernel = torch.exp(-offsets.square() / (2 * sigma**2))
        shape = (-1, 1) if dim == 2 else (1, -1)
        padding = (0, 0, radius, radius) if dim == 2 else (radius, radius, 0, 0)
        flat = F.pad(blurred.flatten(0, 1)[:, None], padding, mode="reflect")
        blurred = F.conv2d(flat, (kernel / kernel.sum()).view(1, 1, *shape))[:, 0].unflatten(0, images.shape[:2])
    return blurred


# ---------------------------------------------------------------------- explanations to compare with


def occlusion_map(
    scores: Scores, images: Tensor, classes: Tensor, window: int, stride: int, fill: float = 0.0, batch_size: int = 64
) -> Tensor:
    r"""How far a class's score falls where a square window hides the image.

    $$M_b(p) = \operatorname{mean}_{w \ni p} \big(s_y(x_b) - s_y(x_b \text{ without } w)\big)$$

    Windows stand every `stride` pixels, the last of a row and of a column flush with the border.

    Source: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", arXiv 1311.2901, section 4.2.

    Args:
        scores: The network.
        images: (B, C, H, W).
        classes: (B,): the true classes, or those whose explanation is asked for.
        window: Side of the window in pixels.
        stride: Pixels from one window to the next, at most `window`.
        fill: What the window shows; 0 is the mean colour of normalised images.
        batch_size: Images a pass.

    Returns:
        (B, H, W); negative where hiding helps.
    """
    if not 1 <= stride <= window:
        raise ValueError(f"stride: {stride} is not between 1 and the window's side ({window}); pixels would be left out")
    height, width = images.shape[-2:]
    spots = [(top, left) for top in _starts(height, window, stride) for left in _starts(width, window, stride)]
    windows = torch.zeros(len(spots), height, width, dtype=torch.bool, device=images.device)
    for shown, (top, left) in zip(windows, spots, strict=True):
        shown[top : top + window, left : left + window] = True
    maps = []
    with torch.no_grad():
        unhidden = scores(images).gather(1, classes[:, None])[:, 0]
        for image, target, score in zip(images, classes.tolist(), unhidden, strict=True):
            parts = windows.split(batch_size)
            hidden = torch.cat([scores(image.masked_fill(part[:, None], fill))[:, target] for part in parts])
            maps.append(torch.einsum("n,nhw->hw", score - hidden, windows.to(hidden.dtype)))
    return torch.stack(maps) / windows.sum(dim=0)


def _starts(side: int, window: int, stride: int) -> list[int]:
    last = max(0, side - window)
    return [*range(0, last, stride), last]


def grad_cam(scores: Scores, layer: nn.Module, images: Tensor, classes: Tensor | None) -> Tensor:
    r"""Grad-CAM of a layer's output F: its channels weighted by the mean gradient of the class's logit.

    $$M_b = \max\Big(0, \sum_c \alpha_{bc} F_{bc}\Big), \quad
    \alpha_{bc} = \frac{1}{hw} \sum_{ij} \frac{\partial z_{b y_b}}{\partial F_{bc}(i, j)}$$

    A layer that returns several maps is read at its last one, a layer that runs several times at its first run, where networks
    that look twice see the whole image.

    Source: Selvaraju et al., "Grad-CAM", arXiv 1610.02391, eq. 1 and 2.

    Args:
        scores: The network, as logits; in evaluation mode.
        layer: A module inside it, whose output is (B, C, h, w) or a list that ends in one.
        images: (B, C, H, W).
        classes: (B,); `None`: each image's most probable one.

    Returns:
        (B, H, W) in [0, 1], enlarged bilinearly.
    """
    features: list[Tensor] = []

    def tap(*call: Any) -> Any:
        output = call[-1]
        if features:
            return output
        last: Tensor = output if isinstance(output, Tensor) else output[-1]
        features.append(last.detach().requires_grad_())
        return features[0] if isinstance(output, Tensor) else [*output[:-1], features[0]]

    with layer.register_forward_hook(tap), torch.enable_grad():
        logits = scores(images)
        chosen = logits.argmax(dim=1) if classes is None else classes
        (gradient,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), features)
    cam = torch.einsum("bc,bchw->bhw", gradient.mean(dim=(2, 3)), features[0].detach())
    enlarged = F.interpolate(normalize_map(cam)[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)
    return enlarged[:, 0]


# ---------------------------------------------------------------------- whether the map depends on the weights


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    r"""Spearman's rank correlation of maps.

    $$\rho = \frac{\operatorname{cov}(r, s)}{\sigma_r \sigma_s}$$

    with the ranks r, s of the pixels, tied ones sharing the mean of theirs.

    Args:
        first: (B, H, W).
        second: (B, H, W).

    Returns:
        (B,) in [-1, 1], double precision; 0 where one of the maps is constant.
    """
    r, s = (_centred_ranks(maps.flatten(1)) for maps in (first, second))
    norm = r.norm(dim=1) * s.norm(dim=1)
    return torch.where(norm > 0, (r * s).sum(dim=1) / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0.0)


def _centred_ranks(values: Tensor) -> Tensor:
    ordered = values.sort(dim=1).values.contiguous()
    values = values.contiguous()
    below = torch.searchsorted(ordered, values, right=False)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to - values.shape[1]).double() / 2


def cascading_randomization(explain: Callable[[], Tensor], groups: Sequence[Sequence[nn.Module]], seed: int = 0) -> Tensor:
    """How much a map keeps of itself while the network's layers lose what they have learnt, from the top down.

    Group after group is initialised anew and stays so; after each, the maps are compared with the trained network's by
    [rank_correlation][]. A map that stays the same explains the image, not the network. All weights are restored at the end.

    Source: Adebayo et al., "Sanity Checks for Saliency Maps", arXiv 1810.03292, section 3.1.

    Args:
        explain: Computes the maps (B, H, W), always of the same images and classes.
        groups: Layers in the order of their randomisation, as from [layers_from_top][].
        seed: Seed of the new weights.

    Returns:
        (G, B): the correlations after each of G groups.
    """
    trained = explain()
    correlations = []
    devices = [torch.device(trained.device)] if trained.is_cuda else []
    with _restored(layer for group in groups for layer in group), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for group in groups:
            for layer in group:
                _initialize(layer)
            correlations.append(rank_correlation(trained, explain()))
    return torch.stack(correlations) if correlations else trained.new_zeros(0, len(trained), dtype=torch.float64)


def layers_from_top(network: nn.Module, run: Callable[[], object]) -> list[nn.Module]:
    """The modules that hold parameters of their own, in the reverse order of their last call.

    Args:
        network: The network.
        run: Runs it once.

    Returns:
        Modules from the output to the input; first those that are used without being called.
    """
    called: dict[nn.Module, None] = {}

    def note(module: nn.Module, *_: Any) -> None:
        called.pop(module, None)
        called[module] = None

    layers = [module for module in network.modules() if next(module.parameters(recurse=False), None) is not None]
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(note))
        run()
    return [layer for layer in layers if layer not in called] + list(reversed(called))


def _initialize(layer: nn.Module) -> None:
    """As its class initialises it; a module that has no way of its own draws from a normal of the parameters' moments."""
    reset = getattr(layer, "reset_parameters", None)
    with torch.no_grad():
        if reset is not None:
            reset()
            return
        for parameter in layer.parameters(recurse=False):
            deviation, mean = torch.std_mean(parameter, correction=0)
            parameter.normal_().mul_(deviation).add_(mean)


@contextmanager
def _restored(layers: Iterator[nn.Module]) -> Iterator[None]:
    states = [(layer, {name: value.clone() for name, value in layer.state_dict().items()}) for layer in layers]
    try:
        yield
    finally:
        for layer, state in states:
            layer.load_state_dict(state)
