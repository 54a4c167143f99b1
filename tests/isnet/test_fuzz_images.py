"""PNG files of every kind by a reader of our own, and files of drawn bytes: pixels or one line."""

import io
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from isnet_jax import data
from isnet_jax.images import read
from tests.drawn import refused, spoilt_bytes

HEIGHT, WIDTH = 4, 5
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
KINDS = [
    (colour, depth, key)
    for colour, depths in DEPTHS.items()
    for depth in depths
    for key in (False, True)
    if not (key and colour in (4, 6))  # they have an alpha of their own
]


def chunk(kind: bytes, content: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def png(head: tuple[int, ...], rows: Iterable[bytes], *extra: bytes) -> bytes:
    """A PNG file: (width, height, depth, colour type), rows of packed pixels, more chunks."""
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    first = chunk(b"IHDR", struct.pack(">IIBBBBB", *head, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + first
        + b"".join(extra)
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )


def packed(values: np.ndarray, depth: int) -> bytes:
    if depth >= 8:
        return values.astype(f">u{depth // 8}").tobytes()
    bits = "".join(f"{value:0{depth}b}" for value in values)
    return np.packbits(np.array(list(bits), np.uint8)).tobytes()


def drawn(colour: int, depth: int, key: bool, seed: int) -> tuple[bytes, np.ndarray]:
    """(a PNG file of random pixels, what they are on white, float64 (h, w, 3))."""
    rng, top = np.random.default_rng(seed), 2**depth - 1
    values = rng.integers(0, top + 1, (HEIGHT, WIDTH, CHANNELS[colour]))
    extra, alpha = [], np.ones((HEIGHT, WIDTH))
    colours = values[..., :3] / top if colour in (2, 6) else np.repeat(values[..., :1], 3, 2) / top
    if colour == 3:
        palette = rng.integers(0, 256, (top + 1, 3)).astype(np.uint8)
        colours = palette[values[..., 0]] / 255
        extra.append(chunk(b"PLTE", palette.tobytes()))
    elif colour in (4, 6):
        alpha = values[..., -1] / top
    if key and colour == 3:
        alphas = rng.integers(0, 256, top + 1).astype(np.uint8)
        alpha = alphas[values[..., 0]] / 255
        extra.append(chunk(b"tRNS", alphas.tobytes()))
    elif key:
        clear = values[1, 2]
        alpha = 1.0 - (values == clear).all(-1)
        extra.append(chunk(b"tRNS", clear.astype(">u2").tobytes()))
    rows = [packed(row.ravel(), depth) for row in values]
    on_white = colours * alpha[..., None] + 1 - alpha[..., None]
    return png((WIDTH, HEIGHT, depth, colour), rows, *extra), on_white


@pytest.mark.parametrize(("colour", "depth", "key"), KINDS)
def test_every_kind_of_png(colour: int, depth: int, key: bool, tmp_path: Path) -> None:
    # Of 16 bits Pillow keeps the upper eight, of grey all.
    steps = 2 / 255 if depth == 16 and colour else 1e-6
    for seed in range(3):
        raw, expected = drawn(colour, depth, key, seed)
        (tmp_path / "a.png").write_bytes(raw)
        np.testing.assert_allclose(read(tmp_path / "a.png"), expected, rtol=0, atol=steps)


# ---------------------------------------------------------------- damage


def _saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _wholes() -> list[bytes]:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8))
    exif, texts = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112], exif[0x010E] = 6, "x" * 20
    texts.add_text("a", "b" * 50, zip=True)
    options = {"exif": exif, "icc_profile": b"a" * 99}
    return [
        *(
            _saved(image.convert(mode), "PNG", pnginfo=texts, **options)
            for mode in ("RGBA", "P", "1")
        ),
        *(_saved(image.convert(mode), "JPEG", **options) for mode in ("RGB", "L", "CMYK")),
        _saved(image, "PNG", save_all=True, append_images=[image.rotate(90), image]),
        _saved(image, "MPO", save_all=True, append_images=[image]),
        drawn(0, 16, True, 0)[0],
    ]


def _signed(raw: bytes) -> bytes:
    """A PNG file with the checksums that its chunks should have, so that they are looked into."""
    made, at = raw[:8], 8
    while at + 12 <= len(raw):
        size = struct.unpack_from(">I", raw, at)[0]
        made += chunk(raw[at + 4 : at + 8], raw[at + 8 : at + 8 + size])
        at += 12 + size
    return made


# Pillow's own remarks on damage; a user sees them beside the error.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
@given(st.sampled_from(_wholes()).flatmap(spoilt_bytes), st.booleans())
def test_damaged_images(tmp_path: Path, raw: bytes, signed: bool) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(_signed(raw) if signed and raw.startswith(b"\x89PNG") else raw)
    if not refused(read, path, names="a.png: not a readable PNG or JPEG image"):
        found = read(path)
        assert found.dtype == np.float32 and found.shape[2:] == (3,)
        assert found.min() >= 0 and found.max() <= 1  # neither NaN


def _claims(width: int, height: int, form: str) -> bytes:
    if form == "png":
        return png((width, height, 8, 2), [bytes(64)])
    raw = _saved(Image.new("L", (8, 8)), "JPEG")
    at = raw.index(b"\xff\xc0") + 5  # start of frame: length, precision, height, width
    return raw[:at] + struct.pack(">HH", height, width) + raw[at + 4 :]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("form", ["png", "jpg"])
@pytest.mark.parametrize("sides", [(65535, 65535), (65535, 2000), (9900, 10200)])
def test_claimed_sizes(sides: tuple[int, int], form: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("ill", "well"):
            path = tmp_path / split / name / f"a.{form}"
            path.parent.mkdir(parents=True)
            path.write_bytes(_claims(*sides, form))
    with pytest.raises(ValueError, match=f"a.{form}: not a readable .* pixels"):
        read(path)
    # Told when the data set is opened, not when training comes to the item.
    with pytest.raises(ValueError, match=rf"train: .*ill/a.{form} is no PNG or JPEG .* pixels"):
        data.load("image_folder", folder=str(tmp_path), size=8)
