"""Colours at known values, the geometry of grids, and files that other readers open."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isnet_jax.draw import grid, heatmap_rgb, image_rgb, save_png


def test_heatmap_is_white_at_zero_blue_below_red_above() -> None:
    rgb = heatmap_rgb(np.array([[0.0, 2.0], [-2.0, 1.0]]))
    assert rgb.dtype == np.uint8 and rgb.shape == (2, 2, 3)
    assert rgb[0, 0].tolist() == [255, 255, 255]
    assert rgb[0, 1].tolist() == [103, 0, 31]
    assert rgb[1, 0].tolist() == [5, 48, 97]
    assert rgb[1, 1].tolist() == [214, 96, 77]


def test_heatmap_lightness_falls_with_magnitude_on_both_sides() -> None:
    values = np.linspace(0, 1, 40)[None]
    for sign in (1, -1):
        lightness = heatmap_rgb(sign * values)[0].astype(int).sum(1)
        assert (np.diff(lightness) < 0).all()


def test_heatmap_scale() -> None:
    relevance = np.random.default_rng(0).normal(size=(4, 5))
    np.testing.assert_array_equal(heatmap_rgb(relevance * 1e-30), heatmap_rgb(relevance))
    fixed = heatmap_rgb(np.array([[5.0, 1.0]]), scale=1.0)
    np.testing.assert_array_equal(fixed[0, 0], fixed[0, 1])
    for scale in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="scale="):
            heatmap_rgb(relevance, scale=scale)


def test_heatmap_sums_channels_and_shows_broken_pixels_in_grey() -> None:
    relevance = np.random.default_rng(0).normal(size=(4, 5, 3))
    np.testing.assert_array_equal(heatmap_rgb(relevance), heatmap_rgb(relevance.sum(2)))
    assert (heatmap_rgb(np.zeros((3, 3))) == 255).all()
    assert heatmap_rgb(np.zeros((0, 3))).shape == (0, 3, 3)
    broken = heatmap_rgb(np.array([[np.nan, 1.0, -np.inf]]))
    assert broken[0, 0].tolist() == broken[0, 2].tolist() == [128] * 3
    assert broken[0, 1].tolist() == [103, 0, 31]
    assert (heatmap_rgb(np.full((2, 2), np.nan)) == 128).all()
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        heatmap_rgb(np.zeros(3))


def test_image_rgb() -> None:
    grey = np.array([[0.0, 0.5], [1.0, 0.2]], np.float32)
    rgb = image_rgb(grey)
    assert rgb.dtype == np.uint8
    for channel in range(3):
        assert rgb[..., channel].tolist() == [[0, 128], [255, 51]]
    np.testing.assert_array_equal(image_rgb(grey[..., None]), rgb)
    colour = np.stack([grey, 1 - grey, grey], axis=2)
    assert image_rgb(colour)[1, 0].tolist() == [255, 0, 255]
    for bad in (grey + 1, -grey, grey * np.nan):
        with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
            image_rgb(bad)
    with pytest.raises(ValueError, match="shape"):
        image_rgb(np.zeros((2, 2, 2)))


def _columns(n: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 255, (n, 4, 4, 3), np.uint8),
        "a heatmap": rng.integers(0, 255, (n, 5, 7, 3), np.uint8),
    }


def test_grid_shows_every_pixel_as_a_block_under_a_header() -> None:
    columns = _columns()
    picture = grid(columns, cell=32)
    assert picture.dtype == np.uint8 and picture.shape[1] == 2 * 35 + 3
    header = picture.shape[0] - 2 * 35
    assert 15 < header < 60
    for row in range(2):
        block = picture[header + row * 35 :][:32, 3:35]
        for y, x in np.ndindex(4, 4):
            small = block[8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
            assert (small == columns["image"][row, y, x]).all()
    # Wide pictures keep their proportions: 5×7 in 32 pixels is 23×32, in the middle.
    cell = picture[header:][:32, 38:70]
    assert (cell[:4] == 255).all() and (cell[27:] == 255).all()
    assert (cell[4] == np.repeat(columns["a heatmap"][0, 0], 5, axis=0)[:32]).mean() > 0.5
    # Letters over both columns, in dark ink on white.
    for left in (3, 38):
        title = picture[:header, left : left + 32]
        assert title.min() < 90 and (title == 255).mean() > 0.5


def test_grid_header_wraps_and_stays_in_its_column() -> None:
    def tall(name: str) -> int:
        return grid({name: np.zeros((1, 8, 8, 3), np.uint8)}, cell=64).shape[0]

    assert tall("one two three four five") > tall("one")
    wide = grid({"W" * 60: _columns()["image"], "i": _columns()["image"]}, cell=32)
    alone = grid({"W" * 60: _columns()["image"], " ": _columns()["image"]}, cell=32)
    header = wide.shape[0] - 2 * 35
    assert (alone[:header, 37:] == 255).mean() > 0.95
    assert (wide[:header, 37:] != 255).any()


@pytest.mark.parametrize(
    ("columns", "cell", "message"),
    [
        ({}, 32, "no columns"),
        (_columns(), 8, "cell=8"),
        ({**_columns(), "c": np.zeros((3, 4, 4, 3), np.uint8)}, 32, "different lengths"),
        ({"c": np.zeros((2, 4, 4, 3))}, 32, "'c': float64"),
        ({"c": np.zeros((2, 4, 4), np.uint8)}, 32, "expected uint8"),
        ({"c": np.zeros((0, 4, 4, 3), np.uint8)}, 32, "expected uint8"),
    ],
)
def test_grid_refuses(columns: dict, cell: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid(columns, cell=cell)


def test_png_round_trip(tmp_path: Path) -> None:
    picture = grid(_columns(), cell=32)
    for path in (tmp_path / "new folder" / "a.png", str(tmp_path / "b.png")):
        save_png(picture, path)
        with Image.open(path) as read:
            assert read.format == "PNG"
            np.testing.assert_array_equal(np.asarray(read), picture)
    with pytest.raises(ValueError, match="float64"):
        save_png(picture / 255, tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()
