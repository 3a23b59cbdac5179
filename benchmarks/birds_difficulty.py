"""How hard are the synthetic birds? A colour histogram must fail, a small network from scratch must learn.

python benchmarks/birds_difficulty.py                       # the demo's settings: about a minute on two cores
python benchmarks/birds_difficulty.py --difficulty easy
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import fields

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from fgzoo.data.records import Record
from fgzoo.data.synthetic import Birds, SyntheticBirds

CONSOLE = Console()


def main() -> int:
    """Measure one set and print the result.

    Returns:
        Exit status.
    """
    args = parse()
    torch.set_num_threads(args.threads)
    birds = SyntheticBirds(Birds(**{field.name: getattr(args, field.name) for field in fields(Birds)}))
    CONSOLE.print(f"{birds.birds}\ntrain_seed={args.train_seed}, threads={args.threads}, {versions()}")

    start = time.perf_counter()
    listing = birds.listing()
    listed = time.perf_counter() - start
    start = time.perf_counter()
    train, test = load(birds, listing.train), load(birds, listing.test)
    painted = (time.perf_counter() - start) / (len(listing.train) + len(listing.test))

    hidden = sum(birds.deciding_part(record) is None for record in listing.test) / max(1, len(listing.test))
    table = Table("quantity", "value", title="synthetic birds")
    table.add_row("listing", f"{listed:.2f} s")
    table.add_row("painting", f"{1000 * painted:.2f} ms / image")
    table.add_row("deciding part hidden", f"{hidden:.1%} of the test images")
    table.add_row("chance", f"{1 / birds.birds.classes:.1%}")
    table.add_row("colour histogram, linear", f"{histogram_accuracy(train, test):.1%}")
    if not args.histogram_only:
        accuracy, twin, seconds, parameters = train_network(args, train, test, birds.birds.classes)
        table.add_row("network", f"{args.network}, {parameters / 1e6:.3f} M parameters")
        table.add_row("network, test top-1", f"{accuracy:.1%}")
        table.add_row("network, right but for the twin", f"{twin:.1%}")
        table.add_row("network, training", f"{seconds:.0f} s, {args.epochs} epochs")
    CONSOLE.print(table)
    return 0


def parse() -> argparse.Namespace:
    """The command line; the arguments of the set are those of `Birds`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Birds):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--network", default="test_resnet", help="a timm name")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--weight_decay", type=float, default=0.05)
    parser.add_argument("--crop", type=int, default=0, help="side of the random training crop; 0: 7/8 of the image")
    parser.add_argument("--train_seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--histogram_only", action="store_true")
    return parser.parse_args()


def versions() -> str:
    """What the figures depend on."""
    return f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}"


def load(birds: SyntheticBirds, records: Sequence[Record]) -> tuple[Tensor, Tensor]:
    """Paint everything: uint8 images (N, 3, H, W) and targets (N,)."""
    return torch.stack([birds.read(record) for record in records]), torch.tensor([r.target for r in records])


def colour_histograms(images: Tensor, bins: int = 8) -> Tensor:
    """Joint RGB histograms of uint8 images (N, 3, H, W): square roots of shares (N, bins^3)."""
    red, green, blue = (images.long() * bins // 256).flatten(2).unbind(1)
    cells = (red * bins + green) * bins + blue
    counts = torch.zeros(len(images), bins**3).scatter_add_(1, cells, torch.ones(cells.shape))
    return (counts / cells.shape[1]).sqrt()


def histogram_accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Test accuracy of a logistic regression on colour histograms, at the best of several weight decays.

    The decay is chosen on the test set, in the classifier's favour: what must be shown is that it fails.
    """
    inputs, targets = colour_histograms(train[0]), train[1]
    mean, std = inputs.mean(0), inputs.std(0) + 1e-3
    best = 0.0
    for decay in (1e-3, 1e-2, 1e-1):
        weight = torch.zeros(inputs.shape[1] + 1, int(targets.max()) + 1, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

        def logits(x: Tensor, weight: Tensor = weight) -> Tensor:
            return (x - mean) / std @ weight[:-1] + weight[-1]

        def closure(optimizer: torch.optim.Optimizer = optimizer, weight: Tensor = weight, decay: float = decay) -> float:
            optimizer.zero_grad()
            loss = F.cross_entropy(logits(inputs, weight), targets) + decay * weight[:-1].square().sum()
            loss.backward()
            return float(loss.detach())

        optimizer.step(closure)
        with torch.no_grad():
            hits = logits(colour_histograms(test[0]), weight).argmax(1) == test[1]
        best = max(best, float(hits.float().mean()))
    return best


def train_network(
    args: argparse.Namespace, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int
) -> tuple[float, float, float, int]:
    """Train from scratch: AdamW, one cycle, random flip and crop.

    Returns:
        Test top-1, share of test images in the right pair of twins, seconds of training, number of parameters.
    """
    torch.manual_seed(args.train_seed)
    images, targets = train
    size = images.shape[-1]
    crop = args.crop or size * 7 // 8
    model = timm.create_model(args.network, num_classes=classes).to(memory_format=torch.channels_last)
    steps = args.epochs * (len(images) // args.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps)
    start = time.perf_counter()
    for epoch in range(args.epochs):
        total = 0.0
        for chosen in torch.randperm(len(images)).split(args.batch):
            if len(chosen) < args.batch:
                continue
            left, top = (int(torch.randint(size - crop + 1, ())) for _ in range(2))
            batch = images[chosen, :, top : top + crop, left : left + crop]
            flip = torch.rand(len(batch), 1, 1, 1) < 0.5
            loss = F.cross_entropy(scores(model, torch.where(flip, batch.flip(-1), batch), args.bf16), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        CONSOLE.log(f"epoch {epoch + 1}: loss {total / (len(images) // args.batch):.3f}", highlight=False)
    seconds = time.perf_counter() - start
    model.eval()
    low = (size - crop) // 2
    with torch.no_grad():
        middle = test[0][:, :, low : low + crop, low : low + crop]
        found = torch.cat([scores(model, part, args.bf16).argmax(1) for part in middle.split(100)])
    hits, twins = (found == test[1]).float(), (found // 2 == test[1] // 2).float()
    return float(hits.mean()), float(twins.mean()), seconds, sum(p.numel() for p in model.parameters())


def scores(model: nn.Module, images: Tensor, bf16: bool) -> Tensor:
    """Logits (B, K) of uint8 images (B, 3, H, W)."""
    inputs = ((images.float() - 127.5) / 64).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return model(inputs).float()


if __name__ == "__main__":
    sys.exit(main())
