from __future__ import annotations

import io
import struct
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fgzoo.data import images
from fgzoo.data.images import active_decoder, decode, from_pillow
from fgzoo.errors import DataError, UsageError
from tests.builders import encode, picture

BOTH = pytest.mark.parametrize("decoder", ["torchcodec", "pillow"])


def gradient(width: int = 83, height: int = 61) -> Image.Image:
    """Smooth, with a colour of its own in every corner, so that lossy formats stay close and turns are seen."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 3, y * 4, 255 - x * 3], -1).clip(0, 255).astype(np.uint8))


def with_alpha() -> Image.Image:
    image = gradient().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = value
    return exif


def xmp_oriented(value: int) -> bytes:
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/>'
        b"</rdf:RDF></x:xmpmeta>" % value
    )


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def decoded(tmp_path: Path, data: bytes, decoder: str, name: str = "image.jpg") -> torch.Tensor:
    path = tmp_path / name
    path.write_bytes(data)
    return decode(path, decoder)


GRAY = gradient().convert("L")
ANIMATION = {"save_all": True, "append_images": [gradient().rotate(90), gradient().rotate(180)]}

# file content, the picture it shows, the largest difference that the format's losses explain
FORMATS = {
    "jpeg": (encode(gradient(), quality=95), gradient(), 12),
    "progressive": (encode(gradient(), quality=95, progressive=True), gradient(), 12),
    "gray": (encode(GRAY, quality=95), GRAY, 6),
    "cmyk": (encode(gradient().convert("CMYK"), quality=95), gradient(), 12),
    "rgb without YCbCr": (encode(gradient(), quality=95, keep_rgb=True), gradient(), 6),
    "png": (encode(gradient(), "PNG"), gradient(), 0),
    "rgba": (encode(with_alpha(), "PNG"), gradient(), 0),
    "la": (encode(with_alpha().convert("LA"), "PNG"), GRAY, 0),
    "palette": (encode(gradient().quantize(64), "PNG"), gradient().quantize(64), 0),
    "palette with transparency": (
        encode(gradient().quantize(64), "PNG", transparency=bytes(range(0, 256, 4))),
        gradient().quantize(64),
        0,
    ),
    "colour key": (encode(gradient(), "PNG", transparency=(0, 0, 255)), gradient(), 0),
    "16 bit gray": (encode(Image.fromarray(np.array(GRAY).astype(np.uint16) * 257), "PNG"), GRAY, 0),
    "one bit": (encode(GRAY.convert("1"), "PNG"), GRAY.convert("1"), 0),
    "animated gif": (encode(gradient(), "GIF", **ANIMATION), gradient(), 60),
    "animated webp": (encode(gradient(), "WEBP", lossless=True, **ANIMATION), gradient(), 0),
    "webp": (encode(gradient(), "WEBP", lossless=True), gradient(), 0),
    "bmp": (encode(gradient(), "BMP"), gradient(), 0),
    "tiff": (encode(gradient(), "TIFF"), gradient(), 0),
    "mpo": (encode(gradient(), "MPO", quality=95, **ANIMATION), gradient(), 12),
}


@BOTH
@pytest.mark.parametrize("name", FORMATS)
def test_format_has_right_colours(name: str, decoder: str, tmp_path: Path) -> None:
    data, shown, tolerance = FORMATS[name]
    image = decoded(tmp_path, data, decoder)  # the file is always called image.jpg
    assert image.dtype == torch.uint8
    assert image.shape == (3, 61, 83)
    assert (image.int() - tensor(shown).int()).abs().max() <= tolerance


@pytest.mark.parametrize("name", FORMATS)
def test_decoders_agree(name: str, tmp_path: Path) -> None:
    data = FORMATS[name][0]
    assert torch.equal(decoded(tmp_path, data, "torchcodec"), decoded(tmp_path, data, "pillow"))


@BOTH
@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(file_format: str, value: int, decoder: str, tmp_path: Path) -> None:
    data = encode(gradient(), file_format, exif=oriented(value))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    image = decoded(tmp_path, data, decoder)
    assert torch.equal(image, tensor(upright))
    assert (image.shape == (3, 83, 61)) == (value >= 5)


@BOTH
def test_orientation_in_xmp_alone_is_applied(decoder: str, tmp_path: Path) -> None:
    assert decoded(tmp_path, encode(gradient(), xmp=xmp_oriented(6)), decoder).shape == (3, 83, 61)


def app1(content: bytes) -> bytes:
    return b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content


def tagged(kind: int, value: bytes, order: bytes = b"MM") -> bytes:
    """EXIF of one tag, the orientation, as a number of another kind than cameras write."""
    end: Literal["big", "little"] = "big" if order == b"MM" else "little"
    words = ((42, 2), (8, 4), (1, 2), (274, 2), (kind, 2), (1, 4))
    return b"Exif\0\0" + order + b"".join(number.to_bytes(size, end) for number, size in words) + value.ljust(4, b"\0") + bytes(4)


@pytest.mark.parametrize(
    "segments",
    {
        "XMP before EXIF": app1(b"http://ns.adobe.com/xap/1.0/\0<x/>") + app1(tagged(3, b"\0\6")),
        "another maker's before EXIF": app1(b"FLIR\0\1") + app1(tagged(3, b"\0\6")),
        "a long number": app1(tagged(4, b"\0\0\0\6")),
        "a byte": app1(tagged(1, b"\6", b"II")),
        "another header": app1(tagged(3, b"\0\6").replace(b"Exif\0\0", b"Exif\0\xff")),
        "after a byte that fills up": b"\xff" + app1(tagged(3, b"\0\6")),
        "of no known kind": app1(tagged(3, b"\0\x63")),
    }.items(),
    ids=lambda item: item[0],
)
def test_decoders_agree_on_odd_exif(segments: tuple[str, bytes], tmp_path: Path) -> None:
    data = encode(gradient())
    data = data[:2] + segments[1] + data[2:]
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    for decoder in ("torchcodec", "pillow"):
        assert np.array_equal(decoded(tmp_path, data, decoder).permute(1, 2, 0), expected)


@BOTH
@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0" + b"\xff" * 40, b"Exif\0\0"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_cost_the_image(exif: bytes, decoder: str, tmp_path: Path) -> None:
    assert decoded(tmp_path, encode(gradient(), exif=exif), decoder).shape == (3, 61, 83)


@BOTH
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_extreme_sizes(file_format: str, width: int, height: int, decoder: str, tmp_path: Path) -> None:
    image = decoded(tmp_path, encode(picture(0, 0, width, height), file_format), decoder)
    assert image.shape == (3, height, width)


BROKEN = {
    "empty": b"",
    "text": b"<html>404 Not Found</html>" * 20,
    "only the magic number": b"\xff\xd8\xff",
    "header": encode(gradient())[:300],
    "half": encode(gradient())[:-500],
    "last byte": encode(gradient())[:-1],
    "end marker": encode(gradient())[:-2],
    "progressive half": encode(gradient(), progressive=True)[:-200],
    "progressive end marker": encode(gradient(), progressive=True)[:-2],
    "cmyk half": encode(gradient().convert("CMYK"))[:-500],
    "png half": encode(gradient(), "PNG")[:-100],
    "gif half": encode(picture(0), "GIF")[:-400],
    "webp half": encode(gradient(), "WEBP")[:-100],
    "bmp half": encode(gradient(), "BMP")[:-500],
    "32 bit": encode(GRAY.convert("F"), "TIFF"),
}


@BOTH
@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_named(name: str, decoder: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"broken\.jpg"):
        decoded(tmp_path, BROKEN[name], decoder, "broken.jpg")


@BOTH
def test_end_of_an_embedded_thumbnail_is_not_the_end_of_the_file(decoder: str, tmp_path: Path) -> None:
    data = encode(gradient(), progressive=True, comment=encode(gradient(16, 16)))
    assert decoded(tmp_path, data, decoder).shape == (3, 61, 83)
    with pytest.raises(DataError, match="breaks off"):
        decoded(tmp_path, data[:-2], decoder)


@BOTH
def test_bytes_after_the_end_are_ignored(decoder: str, tmp_path: Path) -> None:
    data = encode(gradient())
    assert torch.equal(decoded(tmp_path, data + b"\xff\xdatrailer" * 9, decoder), decoded(tmp_path, data, decoder))


@BOTH
@pytest.mark.parametrize(("file_format", "before", "order"), [("GIF", b"GIF87a", "<"), ("JPEG", b"\xff\xc0\0\x11\x08", ">")])
def test_decompression_bomb_is_refused(file_format: str, before: bytes, order: str, decoder: str, tmp_path: Path) -> None:
    data = encode(gradient(), file_format)
    at = data.index(before) + len(before)  # where the sides stand
    data = data[:at] + struct.pack(f"{order}HH", 20_000, 20_000) + data[at + 4 :]
    with pytest.raises(
        DataError, match=r"bomb\.jpg is too large: (20000 x 20000 pixels|Image size \(400000000 pixels\)).*limit.*\d+.*\. Sc"
    ):
        decoded(tmp_path, data, decoder, "bomb.jpg")


def test_large_pictures_are_read_without_a_warning_of_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 83 * 61 - 1)
    for file_format in ("JPEG", "PNG", "GIF", "BMP", "TIFF"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert decoded(tmp_path, encode(gradient(), file_format), "auto").shape == (3, 61, 83)


def test_photos_of_200_million_pixels_are_read(tmp_path: Path) -> None:
    data = encode(gradient())
    at = data.index(b"\xff\xc0\0\x11\x08") + 5
    (tmp_path / "phone.jpg").write_bytes(data[:at] + struct.pack(">HH", 12_240, 16_320) + data[at + 4 :])
    assert decode(tmp_path / "phone.jpg", enough=1).shape == (3, 1530, 2040)


@BOTH
def test_pixel_limit_can_be_lowered(decoder: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(gradient()))
    assert decode(path, decoder, max_pixels=83 * 61).shape == (3, 61, 83)
    with pytest.raises(DataError, match=r"is too large: 83 x 61 pixels, the limit is 5000\. Scale it down\."):
        decode(path, decoder, max_pixels=5000)


def test_an_animated_webp_may_have_fewer_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_ANIMATED_PIXELS", 83 * 61 - 1)
    still, moving, frame = tmp_path / "still.webp", tmp_path / "moving.webp", gradient()
    frame.save(still)
    frame.save(moving, save_all=True, append_images=[frame.rotate(180)])
    assert decode(still).shape == (3, 61, 83)
    for refused in (lambda: decode(moving), lambda: from_pillow(Image.open(moving))):
        with pytest.raises(DataError, match=r"moving\.webp is too large: 83 x 61 pixels"):
            refused()


@BOTH
@pytest.mark.parametrize("name", ["absent.jpg", "."])
def test_unreadable_path_is_named(name: str, decoder: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        decode(tmp_path / name, decoder)


@pytest.fixture
def without_torchcodec(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)  # makes the import fail
    images._torchcodec_jpeg.cache_clear()
    yield
    images._torchcodec_jpeg.cache_clear()


@pytest.mark.usefixtures("without_torchcodec")
def test_auto_falls_back_to_pillow(tmp_path: Path) -> None:
    assert active_decoder("auto") == "pillow"
    assert decoded(tmp_path, encode(gradient()), "auto").shape == (3, 61, 83)


@pytest.mark.usefixtures("without_torchcodec")
def test_torchcodec_asked_for_but_absent(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pip install 'torchcodec"):
        decoded(tmp_path, encode(gradient()), "torchcodec")


def test_auto_prefers_torchcodec() -> None:
    assert active_decoder() == "torchcodec"


def test_unknown_decoder() -> None:
    with pytest.raises(UsageError, match="choose auto, torchcodec or pillow"):
        active_decoder("opencv")


@BOTH
def test_a_picture_may_come_smaller_where_that_is_enough(tmp_path: Path, decoder: str) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(encode(gradient(960, 640), exif=oriented(6)))
    whole, small = decode(path, decoder), decode(path, decoder, enough=100)
    assert whole.shape == (3, 960, 640)
    assert small.shape == (3, 240, 160)
    averaged = torch.nn.functional.avg_pool2d(whole.float(), 4)
    assert (averaged - small.float()).abs().max() < 12


# ---------------------------------------------------------------------- formats and suffixes

FLOAT = Image.fromarray(np.linspace(0, 1, 61 * 83, dtype=np.float32).reshape(61, 83))
RGB16 = np.array(gradient()).astype(np.uint16) * 257


def tiff_of_16_bits(pixels: np.ndarray) -> bytes:
    """An uncompressed RGB TIFF of 16 bits a sample, (H, W, 3), which Pillow reads and does not write."""
    height, width, _ = pixels.shape
    data = pixels.astype("<u2").tobytes()
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 14)]
    entries += [(277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(data))]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 14 + len(data)) + struct.pack("<HHH", 16, 16, 16) + data + directory


@BOTH
def test_colours_of_16_bits_are_scaled_to_8(decoder: str, tmp_path: Path) -> None:
    image = decoded(tmp_path, tiff_of_16_bits(RGB16), decoder, "a.tif")
    assert torch.equal(image, tensor(gradient()))


@BOTH
def test_samples_without_a_range_are_named(decoder: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.tif is damaged or incomplete: samples of 32 bits .*save the picture with 8 bits"):
        decoded(tmp_path, encode(FLOAT, "TIFF"), decoder, "a.tif")


@pytest.mark.parametrize("suffix", [".avif", ".jfif", ".jpe", ".jp2", ".ppm", ".tga", ".webp", ".apng"])
def test_what_pillow_writes_is_read_under_its_suffix(suffix: str, tmp_path: Path) -> None:
    assert suffix in images.image_suffixes()
    gradient().save(tmp_path / f"a{suffix}")
    assert decode(tmp_path / f"a{suffix}").shape == (3, 61, 83)


@pytest.mark.parametrize("suffix", [".pdf", ".eps", ".mpg", ".h5", ".txt", ""])
def test_what_is_no_picture_is_not_looked_for(suffix: str) -> None:
    assert suffix not in images.picture_suffixes()


def test_postscript_is_not_handed_to_another_program(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.eps")
    with pytest.raises(DataError, match="is not an image that can be read"):
        decode(tmp_path / "a.eps")


def gray_tiff(samples: list[int], bits: int, photometric: int) -> bytes:
    """An uncompressed gray TIFF of one row, as Pillow reads and does not write them."""
    packed = "".join(f"{value:0{bits}b}" for value in samples)
    data = int(packed, 2).to_bytes(len(packed) // 8, "big") if bits < 16 else struct.pack(f"<{len(samples)}H", *samples)
    entries = [(256, len(samples)), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1)]
    entries.append((279, len(data)))
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4)


@pytest.mark.parametrize(("bits", "photometric"), [(12, 1), (16, 1), (16, 0), (8, 0)])
def test_gray_samples_fill_eight_bits_whatever_white_is(bits: int, photometric: int, tmp_path: Path) -> None:
    white = 2**bits - 1
    image = decoded(tmp_path, gray_tiff([0, white // 2, white, white], bits, photometric), "auto", "a.tif")
    shown = image[0, 0].tolist()
    expected = [0, 127, 255, 255]
    assert shown == pytest.approx(expected if photometric else [255 - value for value in expected], abs=1)


def test_a_gray_portable_map_of_16_bits_is_read(tmp_path: Path) -> None:
    content = b"P5 3 1 65535\n" + struct.pack(">HHH", 0, 32_768, 65_535)
    assert decoded(tmp_path, content, "auto", "a.pgm")[0, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("name", "more"), [("DSC_1.NEF", {}), ("a.tif", {254: 1}), ("a.dng", {}), ("a.tiff", {50706: (1, 4, 0, 0)})]
)
def test_a_preview_in_a_cameras_raw_file_is_not_taken_for_the_photo(name: str, more: dict[int, Any], tmp_path: Path) -> None:
    stream = io.BytesIO()
    gradient().save(stream, "TIFF", tiffinfo=more)
    with pytest.raises(DataError, match=rf"{name} is not an image that can be read \(export as JPEG or TIFF\)"):
        decoded(tmp_path, stream.getvalue(), "auto", name)


@pytest.fixture
def without_plugins(monkeypatch: pytest.MonkeyPatch):
    caches = (images._all_formats, images.image_suffixes, images.picture_suffixes)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name not in ("HEIF", "JXL")])
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)  # makes the import fail
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.usefixtures("without_plugins")
@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("IMG_1.heic", b"\0\0\0\x18ftypheic" + bytes(40), "pip install pillow-heif"),
        ("IMG_1.jpg", b"\0\0\0\x18ftypmif1" + bytes(40), "pip install pillow-heif"),
        ("IMG_1.HEIC", bytes(200), "pip install pillow-heif"),
        ("a.png", b"\xff\x0a" + bytes(40), "pip install pillow-jxl-plugin"),
        ("a.NEF", bytes(200), "export as JPEG or TIFF"),
    ],
)
def test_what_needs_a_package_names_it(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{name} is not an image that can be read \({said}\)"):
        decoded(tmp_path, data, "auto", name)


@pytest.mark.usefixtures("without_plugins")
def test_an_installed_plugin_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def register() -> None:
        Image.register_open("HEIF", lambda stream, name: Image.new("RGB", (4, 3)), lambda prefix: prefix[4:8] == b"ftyp")
        Image.register_extension("HEIF", ".heic")

    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    assert ".heic" in images.image_suffixes()
    assert decoded(tmp_path, b"\0\0\0\x18ftypheic", "auto", "a.heic").shape == (3, 3, 4)
