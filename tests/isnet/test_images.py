"""Image files of every kind become RGB in [0, 1]; damaged ones say which file they are."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isnet_jax.images import PHOTOS, Preprocessing, listing, read, resized

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def saved(folder: Path, image: Image.Image, name: str = "a.png", **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


def test_kinds_of_png(tmp_path: Path) -> None:
    def got(image: Image.Image, **options: object) -> np.ndarray:
        found = read(saved(tmp_path, image, **options))
        assert found.dtype == np.float32 and found.shape == (5, 7, 3)
        return found

    np.testing.assert_array_equal(got(Image.fromarray(RGB)), np.float32(RGB) / np.float32(255))
    grey = RGB[..., 0]
    expected = np.repeat(np.float32(grey)[..., None], 3, 2) / np.float32(255)
    np.testing.assert_array_equal(got(Image.fromarray(grey)), expected)
    # 16 bits: steps finer than 1/255 are kept, and nothing is clipped.
    fine = (np.arange(35, dtype=np.uint16) * 1872).reshape(5, 7)
    np.testing.assert_allclose(got(Image.fromarray(fine))[..., 1], fine / 65535, atol=1e-7)
    # Transparent is white, half transparent half way there.
    alpha = np.full((5, 7, 1), 255, np.uint8)
    alpha[0], alpha[1] = 0, 51
    rgba = got(Image.fromarray(np.concatenate([RGB, alpha], 2)))
    assert (rgba[0] == 1).all()
    np.testing.assert_allclose(rgba[1], RGB[1] / 255 * 0.2 + 0.8, atol=1e-6)
    np.testing.assert_allclose(rgba[2:], RGB[2:] / 255, atol=1e-6)
    la = np.stack([grey, alpha[..., 0]], 2)
    np.testing.assert_allclose(got(Image.fromarray(la))[1, :, 2], grey[1] / 255 * 0.2 + 0.8, 1e-5)
    # A palette, with and without a colour that is transparent; black and white.
    palette = Image.fromarray(RGB // 64 * 64).quantize(64)
    np.testing.assert_allclose(got(palette), np.asarray(palette.convert("RGB")) / 255, atol=1e-6)
    index = int(np.asarray(palette)[0, 0])
    assert (got(palette, transparency=index)[np.asarray(palette) == index] == 1).all()
    assert set(np.unique(got(Image.fromarray(grey > 99)))) == {0.0, 1.0}


def test_jpeg_upright_and_cmyk(tmp_path: Path) -> None:
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated: the left of the file is the top of the picture
    upright = read(saved(tmp_path, Image.fromarray(wide), "a.jpg", exif=exif, quality=100))
    assert upright.shape == (16, 8, 3)
    assert upright[:7].min() > 0.9 and upright[9:].max() < 0.1
    cmyk = read(saved(tmp_path, Image.fromarray(wide).convert("CMYK"), "b.jpeg", quality=100))
    assert cmyk.shape == (8, 16, 3) and cmyk[:, :7].min() > 0.9 and cmyk[:, 9:].max() < 0.1


def _claiming(pixels: int) -> bytes:
    """A PNG of a few bytes whose header claims `pixels` × `pixels`."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", pixels, pixels, 8, 0, 0, 0, 0)
    head = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + head


def test_damaged_files_are_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    whole, gif = buffer.getvalue(), io.BytesIO()
    Image.fromarray(RGB).save(gif, "GIF")
    for data in (
        *(b"", b"hello", whole[:20], whole[: len(whole) // 2], gif.getvalue()),
        *(whole[:60] + b"\0\0\0\0" + whole[64:], _claiming(2**30)),
    ):
        (tmp_path / "bad.png").write_bytes(data)
        with pytest.raises(ValueError, match="bad.png: not a readable PNG or JPEG image"):
            read(tmp_path / "bad.png")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.png")


def test_listing(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "b.png", "c.jpeg", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    found = listing(str(tmp_path))
    assert {case: path.name for case, path in found.items()} == {
        "a": "a.png",
        "b.JPG": "b.JPG",
        "b.png": "b.png",
        "c": "c.jpeg",
    }
    assert list(listing(str(tmp_path / "a.png"))) == ["a"]
    assert [path.name for path in listing("skimage").values()] == list(PHOTOS)
    for place, error in (("none", FileNotFoundError), ("folder.png", FileNotFoundError)):
        with pytest.raises(error, match=f"images = .*{place}"):
            listing(str(tmp_path / place))
    with pytest.raises(ValueError, match=r"notes.txt' is not one of \*.png"):
        listing(str(tmp_path / "notes.txt"))


# ------------------------------------------------------------------------- to the model's input


def test_resize_averages_and_keeps_the_range() -> None:
    image = np.random.default_rng(0).random((12, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(resized(image, 12, 8), image, atol=1e-6)
    small = resized(image, 6, 4)
    assert small.dtype == np.float32 and small.shape == (6, 4, 3)
    # A triangle of twice the step's width, by hand for one inner pixel.
    weights = np.array([1, 3, 3, 1]) / 8
    by_hand = np.einsum("h,w,hwc->c", weights, weights, image[3:7, 1:5])
    np.testing.assert_allclose(small[2, 1], by_hand, atol=1e-6)
    assert (resized(np.ones((9, 9, 3)), 7, 5) == 1).all()


def test_the_middle_is_cut_out() -> None:
    ramp = np.repeat(np.linspace(0, 1, 40, dtype=np.float32)[None, :, None], 3, 2)
    image = np.repeat(ramp, 20, axis=0)  # 20 × 40, brighter to the right
    cut = Preprocessing(size=(10, 8), resize=20).cut(image)
    np.testing.assert_allclose(cut, image[5:15, 16:24], atol=1e-6)
    squeezed = Preprocessing(size=10, resize=0).cut(image)
    assert squeezed.shape == (10, 10, 3) and squeezed[0, 0, 0] < 0.05 and squeezed[0, -1, 0] > 0.95
    assert Preprocessing(size=24, resize=24).cut(image[:3, :2]).shape == (24, 24, 3)


def test_normalised_images_lie_in_the_box() -> None:
    """Exactly: z^B refuses an input one bit outside."""
    how = Preprocessing(size=4, resize=4, mean=(0.485, 0.456, 1 / 3), std=(0.229, 0.7, 1 / 255))
    image = np.zeros((4, 4, 3), np.float32)
    image[:2] = 1
    x = how.normalised(how.cut(image))
    low, high = (np.float32(side) for side in how.box())
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x.min((0, 1)), low)
    np.testing.assert_array_equal(x.max((0, 1)), high)
    np.testing.assert_allclose(x[0, 0], (1 - np.array(how.mean)) / how.std, rtol=1e-6)
    grey = Preprocessing(size=4, resize=4, mean=(0.5,), std=(2.0,))
    colour = np.broadcast_to(np.float32([0.2, 0.6, 1.0]), (4, 4, 3))
    expected = (0.299 * 0.2 + 0.587 * 0.6 + 0.114 - 0.5) / 2
    np.testing.assert_allclose(grey.normalised(colour), np.full((4, 4, 1), expected), rtol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"size": 0}, {"size": 2.5}, {"size": (8, 8, 8)}, {"resize": 8}, {"resize": -1}),
        *({"mean": (0.5, 0.5)}, {"std": (1.0,)}, {"std": (1, 1, 0)}, {"mean": ("a", 0, 0)}),
        {"mean": (float("nan"), 0, 0)},
    ],
)
def test_illegal_preprocessing_is_named(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"preprocessing.*{next(iter(wrong))}="):
        Preprocessing(**wrong)
