"""Pieces of the page that its sections share."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
from PIL import Image

from fgzoo.prediction.rejection import REJECTED, Calibration
from fgzoo.reporting.photos import embedded
from fgzoo.wording import plural

#: What people call the parts of a run's images.
PARTS: dict[str, str] = {"train": "training", "val": "validation", "test": "test"}
#: Entries of lists that the page shows, the CSV files hold all; and how many of them unasked, as of mistakes.
SHOWN, UNFOLDED = 48, 12


def class_name(name: str) -> str:
    """A class's name: its own direction of writing, and lines may end after an underscore."""
    return f"<bdi>{html.escape(name).replace('_', '_<wbr>')}</bdi>"


def percent(share: float, digits: int = 1) -> str:
    """A share, or a dash where there is none."""
    return "–" if np.isnan(share) else f"{100 * share:.{digits}f}\u00a0%"


def few_below(found: Calibration) -> str:
    """Why photos below the threshold are called unknown: how many of the known ones that were held out are, too."""
    if int(REJECTED * (found.images - 1)) < 1:  # the threshold is the smallest score of all
        return f"as none of only {plural(found.images, 'held-out photo', 'held-out photos')} is, too few to choose it by"
    return f"as at most {100 * REJECTED:g} % of {found.images:,} held-out photos are"


def path_line(path: str) -> str:
    """A file's path, in its own direction of writing."""
    return f'<p class="path" dir="auto">{html.escape(path)}</p>'


def image(picture: Image.Image | None, said: str, style: str = "") -> str:
    """A picture in the page; `None` is said to be missing."""
    if picture is None:
        return '<div class="nothing">This photo is not to be found, or cannot be read.</div>'
    size = f'width="{picture.width}" height="{picture.height}"'
    chosen = f'class="{style}" ' if style else ""
    return f'<img {chosen}loading="lazy" decoding="async" {size} alt="{html.escape(said)}" src="{embedded(picture)}">'


def figure(picture: Image.Image | None, said: str, caption: str, style: str = "") -> str:
    """A picture above its caption, which is markup."""
    chosen = f' class="{style}"' if style else ""
    return f"<figure{chosen}>{image(picture, said)}<figcaption>{caption}</figcaption></figure>"


def folded(cards: Sequence[str], tag: str, style: str) -> str:
    """Cards in an element; all but the first are shown when they are asked for."""
    first, rest = (f'<{tag} class="{style}">{"".join(some)}</{tag}>' for some in (cards[:UNFOLDED], cards[UNFOLDED:]))
    more = len(cards) - UNFOLDED
    return first + (f'<details class="folded"><summary>{more} more</summary>{rest}</details>' if more > 0 else "")


def rest_line(count: int, file: str) -> str:
    """Where the entries are that the page does not show; nothing where it shows all."""
    return f'<p class="more-below">The first {SHOWN} of {count:,}; <code>{file}</code> holds all.</p>' if count > SHOWN else ""
