"""The checkpoints that lie inside the package: the baseline and the four methods on the synthetic birds, from their trained runs.

    python benchmarks/interpretability.py --train --epochs 30 --runs runs/birds --write
    python benchmarks/publish_birds.py --runs runs/birds

Each run is tested (`fgzoo test`) and published (`fgzoo publish`) in half precision; nothing is chosen between runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fgzoo.cli import main as fgzoo
from fgzoo.zoo.registry import REGISTRY, SUFFIX, find_entry

METHODS = ("baseline", "rra", "iagn", "coarse2fine", "srbn")
#: Bytes; everyone who installs the package downloads them all.
LARGEST = 2_500_000


def run(arguments: list[str]) -> None:
    """Run one verb."""
    status = fgzoo(arguments)
    if status:
        raise SystemExit(status)


def main() -> None:
    """Test and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs METHOD-SEED")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for method in METHODS:
        folder, name = options.runs / f"{method}-{options.seed}", f"{method}_birds"
        run(["test", "--ckpt_path", str(folder)])
        run(["publish", str(folder), "--name", name, "--dtype", "float16", "--output", str(REGISTRY.parent)])
        size = find_entry(name).size
        if size > LARGEST:
            sys.exit(f"{name}{SUFFIX} has {size} bytes; at most {LARGEST} may lie in the package")


if __name__ == "__main__":
    main()
