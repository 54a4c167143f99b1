"""Heatmaps on sheets: nothing of the relevance is lost, colours mean what the bar says."""

import importlib.util

import numpy as np
import pytest

from isnet_jax import montage as sheets
from isnet_jax.draw import heatmap_rgb
from isnet_jax.montage import Line, figure, full_colour, montage, pooled

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "side"), [((12, 8), 6), ((13, 7), 5), ((40, 40), 1), ((3, 9), 4)]
)
def test_pooling_shares_out_by_area_and_keeps_the_total(shape: tuple, side: int) -> None:
    relevance = RNG.normal(size=shape)
    small = pooled(relevance, side)
    assert max(small.shape) == side
    np.testing.assert_allclose(small.sum(), relevance.sum(), atol=1e-12)
    # By hand: enlarge every pixel to a block that both grids divide, then sum.
    h, w = small.shape
    fine = np.repeat(np.repeat(relevance, h, 0), w, 1) / (h * w)
    by_hand = fine.reshape(h, shape[0], w, shape[1]).sum((1, 3))
    np.testing.assert_allclose(small, by_hand, atol=1e-12)
    np.testing.assert_array_equal(pooled(relevance, 40), relevance)


def test_full_colour_is_a_percentile_that_broken_maps_survive() -> None:
    relevance = RNG.normal(size=(50, 50))
    scale = full_colour(relevance)
    assert (np.abs(relevance) > scale).mean() == pytest.approx(0.005, abs=0.001)
    spike = np.zeros((50, 50))
    spike[3, 4] = -7
    assert full_colour(spike) == 7
    for map_ in (np.zeros((3, 3)), np.full((3, 3), np.nan), np.zeros((0, 3))):
        assert full_colour(map_) == 1
    assert full_colour(np.array([[np.nan, 2.0, np.inf]])) == pytest.approx(2)


def _line(maps: int = 2, side: int = 16) -> Line:
    image = RNG.random((side, side, 3))
    relevance = tuple(RNG.normal(size=(side, side)) for _ in range(maps))
    return Line(image, ("a cat  97%", "then a dog  2%"), relevance, ("sum 1",) * maps)


def test_a_sheet_has_a_cell_for_every_map_and_one_bar() -> None:
    lines = [_line(), _line(), _line()]
    one_sign = np.ones((16, 16))
    lines[1] = Line(lines[1].image, lines[1].captions, (one_sign, -one_sign), ("", ""))
    sheet = montage(lines, ["first", "second rule"], cell=32)
    # Narrower sheets than their legend get its width.
    assert sheet.dtype == np.uint8 and sheet.shape[1] == 520
    dark_red, dark_blue = (heatmap_rgb(np.array([[v]]), scale=1.0)[0, 0] for v in (1.0, -1.0))
    top = 32 + 32 + 36  # the second line
    assert (sheet[top : top + 32, 48 : 48 + 32] == dark_red).all()
    assert (sheet[top : top + 32, 88 : 88 + 32] == dark_blue).all()
    assert (sheet[:32] < 100).any() and (sheet[top + 32 : top + 68, :40] < 100).any()
    bar = sheet[-43]
    long = 520 // 3
    ends = (520 - long) // 2, (520 - long) // 2 + long - 1  # between the two captions
    assert [bar[at].tolist() for at in ends] == [dark_blue.tolist(), dark_red.tolist()]
    assert montage(lines, ["a", "b"], title="A title", cell=32).shape[0] > sheet.shape[0]
    with pytest.raises(ValueError, match=r"montage: 1 lines, \[2\] maps for 1 labels"):
        montage([_line()], ["only one"])
    with pytest.raises(ValueError, match="montage: 0 lines"):
        montage([], [])


def test_a_figure_enlarges_by_whole_numbers() -> None:
    relevance = np.zeros((10, 5))
    relevance[2, 1] = 1.0
    picture = figure(RNG.random((10, 5, 3)), relevance, title="rule", subtitle="x", side=45)
    left = 2 * 8 + 40 + (40 - 20) // 2  # 4 × 5 pixels wide in a square of 40
    block = picture[64 + 8 : 64 + 12, left + 4 : left + 8]
    assert (block == heatmap_rgb(np.ones((1, 1)), scale=1.0)[0, 0]).all()
    around = picture[64 + 4 : 64 + 16, left : left + 12].astype(int)
    assert (around == 255).all(2).sum() == 12 * 12 - 16
    assert figure(RNG.random((90, 90, 3)), RNG.normal(size=(90, 90)), title="", subtitle="").size


def test_letters_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        sheets.importlib.util,
        "find_spec",
        lambda name: None if name == "matplotlib" else find(name),
    )
    sheet = montage([_line()], ["a label that is much too wide for its column" * 3, "b"], cell=48)
    assert (sheet[:32, 64:] < 100).any()  # the label is there
