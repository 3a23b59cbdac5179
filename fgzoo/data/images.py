"""Image files to tensors: one upright RGB picture per file, whatever the format and whichever decoder is installed."""

from __future__ import annotations

import importlib
import io
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION
from torch import Tensor

from fgzoo.errors import DataError, UsageError

DecoderName = Literal["auto", "torchcodec", "pillow"]

#: A larger picture is taken for a decompression bomb; the largest photos of phones have 200 million. Pillow's readers of TIFF and
#: WebP have a limit of their own, 178,956,970.
MAX_PIXELS = 220_000_000
#: The same of an animated WebP, whose decoder keeps several copies: 40 seconds and 7 GiB at Pillow's limit, 3 and 1 at this one.
MAX_ANIMATED_PIXELS = 22_369_621

#: Packages that teach Pillow a format, by the suffixes of its files: name on the index, module, function to call.
_PLUGINS = {
    (".heic", ".heif", ".hif"): ("pillow-heif", "pillow_heif", "register_heif_opener"),
    (".jxl",): ("pillow-jxl-plugin", "pillow_jxl", None),
}
#: Suffixes of cameras' raw files and of drawings, in lower case.
_RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2", ".svg")
#: What to do about them.
_INSTEAD_OF_RAW = "export as JPEG or TIFF"
#: Formats of Pillow's that hold no picture it can decode, that it hands to another program, or whose pixels it decodes, however
#: many they are, while it opens a file (ICO).
_NOT_READ = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "ICO", "IPTC", "MPEG", "WMF"})
#: What Pillow can open before it has imported its other formats.
_COMMON = ("JPEG", "PNG", "GIF", "BMP")

#: EXIF orientations by which rows become columns, and the sides, (3, H, W), along which the picture is mirrored then.
_TRANSPOSED = (5, 6, 7, 8)
_MIRRORED: dict[object, tuple[int, ...]] = {2: (2,), 3: (1, 2), 4: (1,), 5: (), 6: (2,), 7: (1, 2), 8: (1,)}

#: Tags of TIFF: what a picture is beside the file's others (1: a smaller version), and the version of DNG.
_SUBFILE, _DNG_VERSION = 254, 50706

_END_OF_IMAGE = b"\xff\xd9"


def decode(path: Path, decoder: DecoderName = "auto", max_pixels: int = MAX_PIXELS, enough: int | None = None) -> Tensor:
    """Decode one image file, the same way on every machine.

    Pillow reads the header of every file, so that size and completeness are judged before a pixel is decoded. Plain
    gray and RGB JPEG files then go to torchcodec, which returns the same values as Pillow, faster. Everything else
    (CMYK JPEG, PNG, GIF, WebP, BMP, TIFF ...) is decoded by Pillow under both settings, so colours cannot differ.

    * EXIF orientation is applied: the picture is upright.
    * Transparency is dropped: the colours stored in the file are returned as if every pixel were opaque.
    * Of an animation, the first frame is returned. The format is read from the content, never from the file's name.
    * Gray samples of 9 to 16 bits are scaled to 8, of colours of 16 bits Pillow keeps the upper 8; samples of 32 bits have no
      defined range and are refused. So are cameras' raw files, in which a reader of TIFF finds a preview.
    * A JPEG file that breaks off is an error. Damage inside a complete JPEG stream is repaired by libjpeg unnoticed.

    Args:
        path: The image file.
        decoder: `auto` takes torchcodec where it can be imported, otherwise Pillow ([active_decoder][] says which).
        max_pixels: Largest width x height that is decoded.
        enough: A JPEG file may come at a half, a quarter or an eighth of its size, which is much faster, as long as both of its
            sides keep this many pixels; `None`: every picture comes whole.

    Returns:
        uint8 (3, H, W), RGB; in memory the three channels of a pixel lie side by side, as decoders write them.

    Raises:
        DataError: The file is missing, empty, no image, broken off, or larger than `max_pixels`.
        UsageError: `decoder` is `torchcodec` and torchcodec cannot be imported.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    return decode_content(data, str(path), decoder, max_pixels, enough)


def decode_content(
    data: bytes, name: str, decoder: DecoderName = "auto", max_pixels: int = MAX_PIXELS, enough: int | None = None
) -> Tensor:
    """What [decode][] returns of a file with this content; errors call it by the name."""
    decode_jpeg = _torchcodec_jpeg() if active_decoder(decoder) == "torchcodec" else None
    if not data:
        raise DataError(f"{name} is empty (0 bytes).")
    suffix = Path(name).suffix
    stream = io.BytesIO(data)
    try:
        image = open_picture(stream)
        if image.format == "TIFF" and (suffix.lower() in _RAW or _is_preview(image)):
            raise UnidentifiedImageError
        if image.width * image.height > (most := _most_pixels(image, max_pixels)):
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, the limit is {most}")
        # Open leaves a JPEG stream behind the first scan's header: a thumbnail's end lies before it.
        if image.format == "JPEG" and data.find(_END_OF_IMAGE, stream.tell()) < 0:
            raise EOFError("the JPEG stream breaks off before its end marker")
        plain = image.format == "JPEG" and image.mode in ("L", "RGB") and enough is None
        if decode_jpeg is not None and plain and (stored := _without_exif(data)) is not None:
            return _upright(decode_jpeg(stored), image.getexif().get(ExifTags.Base.Orientation))
        if enough is not None:
            image.draft(None, (enough, enough))
        return _decode_with_pillow(image)
    except UnidentifiedImageError as error:
        reason = why_unidentified(data) or why_unread(suffix) or f"it starts with {data[:8]!r}"
        raise DataError(f"{name} is not an image that can be read ({reason}).") from error
    except Exception as error:  # a damaged file makes decoders raise nearly any type
        raise unreadable(name, error) from error


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of the images that can be read: those of Pillow's formats and of its installed plugins."""
    formats = _all_formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


@cache
def picture_suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of all that people call a picture, whether it can be read or not."""
    return image_suffixes().union(_RAW, *_PLUGINS)


def why_unread(suffix: str) -> str | None:
    """What to do about a picture with this suffix; `None` where it can be read, or is none."""
    suffix = suffix.lower()
    if suffix in image_suffixes():
        return None
    if suffix in _RAW:
        return _INSTEAD_OF_RAW
    return next((f"pip install {package}" for suffixes, (package, *_) in _PLUGINS.items() if suffix in suffixes), None)


def from_pillow(image: Image.Image, max_pixels: int = MAX_PIXELS) -> Tensor:
    """A picture that Pillow has opened or made, as [decode][] would return it.

    Args:
        image: The picture.
        max_pixels: Largest width x height that is taken.

    Returns:
        uint8 (3, H, W), upright RGB.

    Raises:
        DataError: It is damaged, closed, too large, or has samples of 32 bits.
    """
    name = getattr(image, "filename", "") or "the picture"
    if image.width * image.height > _most_pixels(image, max_pixels):
        raise unreadable(name, Image.DecompressionBombError(f"{image.width} x {image.height} pixels"))
    try:
        return _decode_with_pillow(image)
    except Exception as error:  # files are read only now, and a damaged one makes decoders raise nearly any type
        raise unreadable(name, error) from error


def unreadable(name: str, error: Exception) -> DataError:
    """What to say of a picture that a decoder refuses, by its error."""
    if isinstance(error, Image.DecompressionBombError):
        # Pillow speaks of an attack.
        return DataError(f"{name} is too large: {str(error).partition(', could be')[0]}. Scale it down.")
    return DataError(f"{name} is damaged or incomplete: {str(error).rstrip('.')}.")


def active_decoder(decoder: DecoderName = "auto") -> Literal["torchcodec", "pillow"]:
    """Which decoder a request leads to on this machine; a run's record should hold the answer.

    Args:
        decoder: The request, as in [decode][].

    Returns:
        The decoder of plain JPEG files.

    Raises:
        UsageError: `decoder` is unknown, or is `torchcodec` and torchcodec cannot be imported.
    """
    if decoder not in ("auto", "torchcodec", "pillow"):
        raise UsageError(f"Unknown decoder {decoder!r}; choose auto, torchcodec or pillow.")
    if decoder == "pillow":
        return "pillow"
    if _torchcodec_jpeg() is not None:
        return "torchcodec"
    if decoder == "torchcodec":
        raise UsageError(
            "decoder=torchcodec, but torchcodec cannot be imported. Install it with `pip install 'torchcodec>=0.16'` "
            "(its version must match torch's), or choose decoder=pillow."
        )
    return "pillow"


@cache
def _all_formats() -> tuple[str, ...]:
    """Names of the formats to try, of the installed plugins, too."""
    Image.init()
    for _, module, register in _PLUGINS.values():
        with suppress(ImportError, OSError):
            plugin = importlib.import_module(module)
            if register is not None:
                getattr(plugin, register)()
    return tuple(name for name in Image.ID if name not in _NOT_READ)


def open_picture(stream: io.BytesIO) -> Image.Image:
    """A picture whose header Pillow understands, whatever its format, but for those that it hands to another program.

    As `Image.open`, but for the limit of that, which is the process's own, and the warning at half of it.
    """
    beginning = stream.read(16)
    for name in _formats():
        factory, accept = Image.OPEN[name]
        with suppress(SyntaxError, IndexError, TypeError, struct.error):  # another format's, after all
            accepted = accept is None or accept(beginning)
            if accepted and not isinstance(accepted, str):  # a text says which library is missing
                stream.seek(0)
                return factory(stream, "")
    raise UnidentifiedImageError


def _formats() -> Iterator[str]:
    """Names of the formats to try; those that are not common are imported when it is their turn."""
    Image.preinit()
    yield from _COMMON
    yield from _all_formats()


def why_unidentified(data: bytes) -> str | None:
    """What to do about a picture in a format that needs a package, by its first bytes."""
    heif = data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
    if heif:
        return why_unread(".heic")
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return why_unread(".jxl")
    # What is no TIFF after all.
    return _INSTEAD_OF_RAW if data.startswith((b"II", b"MM")) else None


@cache
def _torchcodec_jpeg() -> Callable[[bytes], Tensor] | None:
    try:
        decoders = importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError):  # absent, or its shared libraries do not fit this torch
        return None
    return partial(decoders.decode_jpeg, mode="RGB")


def _without_exif(data: bytes) -> bytes | None:
    """A JPEG file with its APP1 segments under another name; `None` where there is more than segments before the first scan.

    In the first of them, whatever it is, torchcodec looks for an orientation; Pillow finds it in all, and in more forms.
    """
    segments, place = [], 2
    while data[place : place + 2] != b"\xff\xda":
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if data[place] != 0xFF or marker < 0xC0 or 0xD0 <= marker <= 0xD9 or marker == 0xFF:
            return None
        if marker == 0xE1:
            segments.append(place)
        place += 2 + length
    if not segments:
        return data
    renamed = bytearray(data)
    for place in segments:
        renamed[place + 1] = 0xE9
    return bytes(renamed)


def _upright(picture: Tensor, orientation: object) -> Tensor:
    """A picture (3, H, W) as it is stored, turned as its EXIF orientation says; one without, or an unknown one, stays."""
    if orientation not in _MIRRORED:
        return picture
    turned = picture.transpose(1, 2) if orientation in _TRANSPOSED else picture
    return turned.flip(_MIRRORED[orientation]).permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _is_preview(image: Image.Image) -> bool:
    """Whether a TIFF's first picture says of itself that it is a smaller version of another one, or is of a DNG file."""
    tags = getattr(image, "tag_v2", {})
    return bool(tags.get(_SUBFILE, 0) & 1) or _DNG_VERSION in tags


def _most_pixels(image: Image.Image, max_pixels: int) -> int:
    """The largest width x height of a picture of this kind."""
    animated = image.format == "WEBP" and getattr(image, "is_animated", False)
    return min(max_pixels, MAX_ANIMATED_PIXELS) if animated else max_pixels


def _decode_with_pillow(image: Image.Image) -> Tensor:
    if image.format == "TIFF":  # whose reader warns of large pictures, too
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image.load()
    tags, wide = getattr(image, "tag_v2", {}), image.format == "PPM" and image.mode == "I"  # whose samples fill 16 bits
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or wide:
        white = 2 ** tags.get(BITSPERSAMPLE, (16,))[0] - 1
        gray = (np.asarray(image).astype(np.uint32) * 255 + white // 2) // white
        if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero
            gray = 255 - gray
        image = Image.fromarray(gray.clip(0, 255).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"samples of 32 bits (Pillow mode {image.mode}) have no defined range; save the picture with 8 bits")
    elif "transparency" in image.info:
        image = image.convert("RGBA")
    return torch.from_numpy(np.array(image if image.mode == "RGB" else image.convert("RGB"))).permute(2, 0, 1)
