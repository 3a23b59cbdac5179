"""Explanations as one HTML page that needs nothing else: no network, no other file, no fonts but the reader's own.

The page holds each image once, and all maps over it as one sheet of small grey ones, as an article that browsers without scripts
show. With scripts it is text, whose pictures are decoded when the image comes into view, so that a page of a thousand images
opens at once; the maps are drawn over the image as [overlay][fgzoo.interpret.overlays.overlay] does. A content security policy
forbids every request and every script but the page's own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import inspect
import io
import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, features
from torchvision.utils import make_grid

from fgzoo.files import atomic_write, names_handed_on, without_places
from fgzoo.interpret.explanation import Explanation
from fgzoo.interpret.overlays import COLOURS
from fgzoo.methods import method_name
from fgzoo.prediction.inference import required_card
from fgzoo.prediction.rejection import UNKNOWN
from fgzoo.version import __version__

if TYPE_CHECKING:
    from fgzoo.methods.base import FineGrainedClassifier

#: Where the pictures of all images go.
PICTURES = "{{pictures}}"
#: Quality of the embedded image, and of the maps, which are smooth.
IMAGE_QUALITY, MAP_QUALITY = 82, 80
#: Largest side of an embedded image in pixels, which is about how large a card shows it.
IMAGE_SIDE = 384
#: Characters of pictures that are kept in memory while the page is written.
MEMORY = 2**26
#: Side of an embedded map; networks' own grids have 7 to 56 cells a side.
MAP_SIDE = 56


def write_page(
    path: Path,
    model: FineGrainedClassifier,
    names: Sequence[str | Path],
    explanations: Iterable[Explanation],
    checkpoint: str = "",
    explained: str | None = None,
) -> Path:
    """Write explanations as a page while they come; an older page stays until the new one is whole.

    Args:
        path: The HTML file.
        model: The model that explains.
        names: How to call the images, for example their paths, which do not say where they lie on this machine.
        explanations: One an image, as [explain][fgzoo.interpret.explanation.explain] gives them.
        checkpoint: What the model was loaded from.
        explained: The class that all maps explain; `None`: each image's most probable one.

    Returns:
        The file.
    """
    values = _values(model, checkpoint, explained)
    before, after = packaged("page.html").split(PICTURES)
    entries = []
    # The list of all images stands before their pictures, so that the first ones are shown while the others are on their way.
    with (
        atomic_write(path) as part,
        part.open("w", encoding="utf-8", errors="replace", newline="\n") as file,
        SpooledTemporaryFile(MEMORY, "w+", encoding="utf-8", errors="replace", newline="\n") as pictures,
    ):
        for number, (name, found) in enumerate(zip(names_handed_on(names), explanations, strict=True)):
            entries.append(_entry(name, found))
            pictures.write(f'<noscript id="photo-{number}">{_article(entries[-1], found)}</noscript>\n')
        index = {"colours": _colours(), "side": MAP_SIDE, "photos": entries}
        file.write(fill(before, values | {"index": json_data(index)}))
        pictures.seek(0)
        shutil.copyfileobj(pictures, file)
        file.write(after)
    return path


# ---------------------------------------------------------------------- data


def _entry(name: str, found: Explanation) -> dict[str, Any]:
    """What the page says of an image."""
    # A name need not be valid UTF-8.
    entry: dict[str, Any] = {"path": name.encode(errors="replace").decode()}
    if found.error is not None:
        return entry | {"error": without_places(found.error)}
    shares = [round(share, 4) for share in found.probabilities]
    answer = {"classes": found.classes, "shares": shares, "explained": found.explained, "share": round(found.share, 4)}
    answer |= {"accepted": found.accepted}
    shown = {"maps": found.names, "map_shares": [round(share, 4) for share in found.map_shares], "cam": found.cam is not None}
    return entry | answer | shown


def _article(entry: Mapping[str, Any], found: Explanation) -> str:
    """An image, its answers and its maps as they are shown without scripts."""
    name = html.escape(entry["path"])
    title = f'<h2 dir="auto">{name}</h2>'
    if found.error is not None:
        return f'<article class="photo bad">{title}<p class="error">{html.escape(entry["error"])}</p></article>'
    ranked = zip(found.classes, found.probabilities, strict=True)
    answers = (f"<li>{html.escape(what)} {share:.1%}</li>" for what, share in ranked)
    image, maps = Image.fromarray(found.image.permute(1, 2, 0).numpy()), sheet(found)
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
    pictures = [_picture(image, IMAGE_QUALITY, f"{name} as the network saw it")]
    pictures += [] if maps is None else [_picture(maps, MAP_QUALITY, f"Maps of {name}")]
    unknown = "" if found.accepted else f'<p class="badge">{UNKNOWN}; looks most like:</p>'
    return f'<article class="photo plain">{title}{"".join(pictures)}{unknown}<ol>{"".join(answers)}</ol></article>'


def _picture(picture: Image.Image, quality: int, said: str) -> str:
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img loading="lazy" {size} alt="{said}" src="{data_uri(picture, quality)}">'


def sheet(found: Explanation) -> Image.Image | None:
    """The maps, then Grad-CAM, grey and small, in the rows of a square; `None` without any."""
    maps = found.maps if found.cam is None else torch.cat([found.maps, found.cam[None]])
    if not len(maps):
        return None
    small = F.adaptive_avg_pool2d(maps, MAP_SIDE)
    grid = make_grid(small[:, None], nrow=math.ceil(math.sqrt(len(small))), padding=0)[0]
    return Image.fromarray((255 * grid).round().byte().numpy())


def data_uri(picture: Image.Image, quality: int) -> str:
    """A picture, RGB or grey, as a data URI: WebP of a quality from 0 to 100, or JPEG where Pillow lacks WebP."""
    kind = "webp" if features.check("webp") else "jpeg"
    stream = io.BytesIO()
    picture.save(stream, kind, quality=quality)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _colours() -> str:
    """The 256 colours of maps, six hexadecimal digits each."""
    return (255 * COLOURS(np.arange(256))[:, :3]).round().astype(np.uint8).tobytes().hex()


def json_data(value: object) -> str:
    """Data as JSON in which no name can end the element that holds it, or begin another."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # JSON.parse knows no NaN
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


# ---------------------------------------------------------------------- page


def _values(model: FineGrainedClassifier, checkpoint: str, explained: str | None) -> dict[str, str]:
    """What the page says besides the images, by the template's names."""
    style, script = (packaged(name) for name in ("page.css", "page.js"))
    facts = _facts(model, without_places(checkpoint))
    chips = [f"<div><dt>{html.escape(what)}</dt><dd>{html.escape(said)}</dd></div>" for what, said in facts.items()]
    about = inspect.getdoc(type(model)) or ""
    which = "each image's most probable class" if explained is None else f"the class {explained}"
    title = html.escape(facts["Method"])
    return {
        "head": head(f"Where {title} looked", style, policy(style, script)),
        "script": script,
        "title": title,
        "facts": "".join(chips),
        "about": html.escape(about.partition("\n")[0]),
        "which": html.escape(which),
    }


def _facts(model: FineGrainedClassifier, checkpoint: str) -> dict[str, str]:
    card = required_card(model, "explain")
    cls = type(model)
    return {
        "Checkpoint": checkpoint or "in memory",
        "Method": method_name(f"{cls.__module__}.{cls.__qualname__}", dict(model.hparams)),
        "Backbone": without_places(model.backbone),
        "Data set": f"{card.dataset}, {len(card.class_names)} classes",
        "Input": f"{card.image_size} × {card.image_size} pixels",
        "fgzoo": __version__,
    }


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put values where a template says `{{name}}`; what is put in is not looked at again, a name without a value stays."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values.get(match[1], match[0]), template)


def packaged(name: str, package: str = "fgzoo.interpret") -> str:
    """The text of a file in a package."""
    return (files(package) / name).read_text(encoding="utf-8")


def head(title: str, style: str, content_policy: str | None = None) -> str:
    """The head of a page.

    Args:
        title: Markup.
        style: The style sheet, which stands in the page.
        content_policy: Of a page that is a file; a server says it, and that nobody is told where a request came from, in headers.
    """
    alone = f"""
<meta http-equiv="Content-Security-Policy" content="{content_policy}">
<meta name="referrer" content="no-referrer">"""
    return f"""<head>
<meta charset="utf-8">{"" if content_policy is None else alone}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>"""


def policy(style: str, script: str, *more: str) -> str:
    """A content security policy: no request, no style sheet and no script but a page's own.

    Args:
        style: The style sheet.
        script: The script.
        *more: Further directives.
    """
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script))
    own = [f"{kind}-src 'sha256-{digest}'" for kind, digest in zip(("style", "script"), digests, strict=True)]
    return "; ".join(["default-src 'none'", *more, "img-src data:", *own, "base-uri 'none'", "form-action 'none'"])
