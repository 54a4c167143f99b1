"""Sliding window: against plain full accumulation, for all shapes with one compilation."""

import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.touchstone import slow_windows
from touchstone_jax.infer import SlidingWindow
from touchstone_jax.infer.windows import columns, gaussian, summed_weights, tile_size, window_starts

WINDOW = (8, 6, 10)
CLASSES = 5


def _arrays(classes: int = CLASSES, features: int = 3) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 3, 1, features)).astype(np.float32)
    top = rng.normal(size=(features, classes)).astype(np.float32)
    return kernel, top, rng.normal(size=classes).astype(np.float32)


def _network(classes: int = CLASSES):
    """(features, head): one random convolution with zeros around a window, then a linear layer."""
    kernel, top, bias = map(jnp.asarray, _arrays(classes))

    def features(x):
        axes = ("NDHWC", "DHWIO", "NDHWC")
        return jax.nn.relu(
            jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=axes)
        )

    def head(x):
        return x @ top + bias[None, None, None, None, :]

    return features, head


def _logits(classes: int = CLASSES):
    features, head = _network(classes)
    return lambda x: head(features(x))


def _image(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _equal_but_for_ties(labels: np.ndarray, logits: np.ndarray) -> None:
    top = np.sort(logits, axis=-1)
    clear = top[..., -1] - top[..., -2] > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], logits.argmax(-1)[clear])


@pytest.fixture(scope="module")
def plain() -> SlidingWindow:
    return SlidingWindow(_logits(), WINDOW, batch=3, cross_section=(16, 14))


# ---------------------------------------------------------------- against full accumulation


@pytest.mark.parametrize("shape", [(8, 6, 10), (16, 14, 23), (13, 7, 31), (9, 14, 10)])
def test_equals_full_accumulation(plain: SlidingWindow, shape: tuple[int, ...]) -> None:
    image = _image(*shape)
    expected = slow_windows.logits(_logits(), image, WINDOW)
    np.testing.assert_allclose(plain.logits(image), expected, atol=1e-5, rtol=1e-5)
    found = plain.labels(image)
    assert found.dtype == np.uint8 and found.shape == shape
    _equal_but_for_ties(found, expected)


def test_columns_of_a_volume_wider_than_the_accumulator_fit_together(plain: SlidingWindow) -> None:
    image = _image(37, 29, 17)
    assert plain.tile == (16, 14)
    expected = slow_windows.logits(_logits(), image, WINDOW)
    np.testing.assert_allclose(plain.logits(image), expected, atol=1e-5, rtol=1e-5)
    _equal_but_for_ties(plain.labels(image), expected)
    whole = SlidingWindow(_logits(), WINDOW, cross_section=(37, 29))
    assert plain.count(image.shape) > whole.count(image.shape)


def test_a_volume_smaller_than_the_window_is_padded(plain: SlidingWindow) -> None:
    image = _image(3, 9, 1)
    padded = np.pad(image, [(2, 3), (0, 0), (4, 5)])
    expected = slow_windows.logits(_logits(), padded, WINDOW)[2:5, :, 4:5]
    np.testing.assert_allclose(plain.logits(image), expected, atol=1e-5, rtol=1e-5)
    assert plain.labels(image).shape == (3, 9, 1)
    other = SlidingWindow(_logits(), WINDOW, pad_value=-3, cross_section=(16, 14))
    assert np.abs(other.logits(image) - expected).max() > 1e-2


@pytest.mark.parametrize(("overlap", "mirror"), [(0.0, ()), (0.75, ()), (0.3, (0, 2))])
def test_other_overlaps_and_mirrors(overlap: float, mirror: tuple[int, ...]) -> None:
    made = SlidingWindow(
        _logits(), WINDOW, overlap=overlap, mirror=mirror, batch=2, cross_section=(12, 13)
    )
    image = _image(12, 13, 21)
    expected = slow_windows.logits(_logits(), image, WINDOW, overlap, mirror)
    np.testing.assert_allclose(made.logits(image), expected, atol=1e-5, rtol=1e-5)
    _equal_but_for_ties(made.labels(image), expected)


def test_summing_features_before_the_head_is_the_same(plain: SlidingWindow) -> None:
    features, head = _network()
    made = SlidingWindow(features, WINDOW, head=head, cross_section=(16, 14))
    image = _image(16, 14, 23)
    np.testing.assert_allclose(made.logits(image), plain.logits(image), atol=2e-5, rtol=1e-5)
    _equal_but_for_ties(made.labels(image), plain.logits(image))
    assert made.num_classes == CLASSES


def test_windows_split_over_devices_are_the_same(plain: SlidingWindow) -> None:
    split = SlidingWindow(_logits(), WINDOW, batch=3, cross_section=(16, 14), mirror=(0,), space=4)
    whole = SlidingWindow(_logits(), WINDOW, batch=3, cross_section=(16, 14), mirror=(0,))
    image = _image(19, 13, 21)
    np.testing.assert_allclose(split.logits(image), whole.logits(image), rtol=1e-5, atol=1e-5)
    _equal_but_for_ties(split.labels(image), whole.logits(image))
    text = split.programs.compiled_add.as_text()
    assert "collective-permute" in text and "f32[3,2,6,10,1]" in text  # borders of parts of two


def test_of_equal_logits_the_lowest_class_wins() -> None:
    flat = SlidingWindow(lambda x: jnp.zeros((*x.shape[:4], 3)), WINDOW, cross_section=(8, 6))
    assert not flat.labels(_image(8, 6, 12)).any()
    one = SlidingWindow(lambda x: x, WINDOW, cross_section=(8, 6))
    assert one.num_classes == 1 and not one.labels(_image(8, 6, 12)).any()


def test_half_precision_is_summed_in_float32() -> None:
    logits = _logits()
    made = SlidingWindow(lambda x: logits(x).astype(jnp.bfloat16), WINDOW, cross_section=(16, 14))
    image = _image(16, 14, 12)
    expected = slow_windows.logits(lambda x: logits(x).astype(jnp.bfloat16), image, WINDOW)
    np.testing.assert_allclose(made.logits(image), expected, atol=2e-2)
    assert made.logits(image).dtype == np.float32


# ---------------------------------------------------------------- one program, bounded memory


def test_three_shapes_one_compilation(caplog: pytest.LogCaptureFixture) -> None:
    traced = []
    logits = _logits()

    def network(x):
        traced.append(x.shape)
        return logits(x)

    made = SlidingWindow(network, WINDOW, batch=2, cross_section=(16, 14))
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        made.labels(_image(16, 14, 23))
        first = [r.getMessage() for r in caplog.records if "Finished XLA" in r.getMessage()]
        caplog.clear()
        for shape in ((9, 12, 31), (30, 14, 5), (3, 3, 3)):
            made.labels(_image(*shape))
        later = [r.getMessage() for r in caplog.records if "ompil" in r.getMessage()]
    # Start, add, labels, clear; JAX may know the last from another test.
    assert len(first) <= 4 and sum("jit(_add)" in message for message in first) == 1
    assert len(traced) == 1
    assert later == []


def _bytes(made: SlidingWindow) -> dict[str, int]:
    found = {}
    for name in ("add", "labels", "clear"):
        memory = getattr(made.programs, f"compiled_{name}").memory_analysis()
        found[name] = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return found


def test_memory_does_not_grow_with_classes() -> None:
    """With a head: none of the programs holds more for 100 classes than one plane of logits."""
    made = {}
    for classes in (9, 100):
        features, head = _network(classes)
        made[classes] = SlidingWindow(features, WINDOW, head=head, cross_section=(16, 14))
    few, many = _bytes(made[9]), _bytes(made[100])
    assert (many["add"], many["clear"]) == (few["add"], few["clear"])
    plane = 16 * 14 * 4
    assert many["labels"] - few["labels"] <= 91 * (2 * plane + 4 * 4)
    # In place: a copy of the accumulator (of three features) would be seen.
    accumulator = plane * WINDOW[2] * 3
    assert few["labels"] < 1.2 * accumulator + 9 * 2 * plane
    assert few["clear"] < 1.2 * accumulator
    assert plane * WINDOW[2] * 3 < few["add"] < plane * WINDOW[2] * 100


def test_memory_of_logits_is_bounded_by_the_accumulator() -> None:
    wide = {"cross_section": (400, 400), "batch": 1}
    few, many = (SlidingWindow(_logits(k), WINDOW, accumulator_mib=0.5, **wide) for k in (9, 100))
    for made in (few, many):
        x, y = made.tile
        assert 4 * x * y * WINDOW[2] * made.num_classes <= max(2**19, 4 * 16 * 12 * 10 * 100)
    assert few.tile > many.tile == (16, 12)  # two windows at least
    image = _image(19, 13, 11)
    np.testing.assert_allclose(
        many.logits(image), slow_windows.logits(_logits(100), image, WINDOW), atol=1e-4
    )


def test_arrays_of_the_network_are_no_constants(plain: SlidingWindow) -> None:
    shapes = {tuple(a.shape) for a in plain.programs._network.arrays}
    assert {(3, 3, 3, 1, 3), (3, CLASSES), (CLASSES,)} <= shapes


def test_a_network_that_has_changed_in_place_is_read_anew() -> None:
    network = nnx.Linear(1, 2, rngs=nnx.Rngs(0))
    image = _image(4, 3, 2)
    before = SlidingWindow(network, (4, 3, 2)).logits(image)
    network.kernel[...] *= 2
    after = SlidingWindow(network, (4, 3, 2)).logits(image)
    np.testing.assert_allclose(after, 2 * before, rtol=1e-5)


# ---------------------------------------------------------------- refusals


def test_logits_that_are_not_finite_name_the_case() -> None:
    made = SlidingWindow(
        lambda x: jnp.where(x > 5, jnp.float32(jnp.nan), x), WINDOW, batch=4, cross_section=(8, 6)
    )
    image = _image(8, 6, 30)
    made.labels(image)  # what fills up a batch may be anything
    image[2, 2, 28] = 6
    with pytest.raises(ValueError, match=r"^BDMAP_7: the network's output.*planes 20 to 29"):
        made.labels(image, case="BDMAP_7")


def test_a_norm_of_filler_windows_does_no_harm() -> None:
    """0 / 0 in windows that only fill up the batch."""

    def network(x):
        return x / jnp.max(jnp.abs(x), axis=(1, 2, 3, 4), keepdims=True)

    made = SlidingWindow(network, WINDOW, batch=4, cross_section=(8, 6))
    image = np.abs(_image(8, 6, 10)) + 1
    np.testing.assert_allclose(made.logits(image)[..., 0], image / image.max(), rtol=1e-5)


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (np.zeros((4, 4), np.float32), r"^c1: image has shape \(4, 4\)"),
        (np.zeros((4, 0, 4), np.float32), r"^c1: image has shape \(4, 0, 4\)"),
        (np.full((9, 9, 9), np.inf, np.float32), r"^c1: image has 729 NaN or infinite of 729"),
    ],
)
def test_bad_images(plain: SlidingWindow, image: np.ndarray, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        plain.labels(image, case="c1")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"window": (8, 8)}, r"window=\(8, 8\); expected three sizes"),
        ({"window": (8, 0, 8)}, "window="),
        ({"overlap": 1.0}, "overlap=1.0"),
        ({"mirror": (0, 3)}, r"mirror=\(0, 3\)"),
        ({"mirror": (1, 1)}, r"mirror=\(1, 1\)"),
        ({"batch": 0}, "batch=0"),
        ({"space": 0}, "space=0"),
        ({"space": 3}, "space=3; expected at most the 8 devices"),
        ({"accumulator_mib": 0}, "accumulator_mib=0"),
        ({"cross_section": (4,)}, r"cross_section=\(4,\)"),
        (
            {"network": lambda x: x[:, 1:]},
            r"network makes \(1, 7, 6, 10, 1\) of \(1, 8, 6, 10, 1\)",
        ),
        ({"network": lambda x: {"a": x}}, "network makes dict"),
        ({"network": lambda x: jnp.zeros((*x.shape[:4], 257))}, "257 classes"),
        ({"head": lambda x: jax.nn.softmax(jnp.concatenate([x, 2 * x], 4))}, "head is not linear"),
        (
            {"head": lambda x: x + jnp.roll(x, 1, 1)},
            "head is not the same for a voxel whatever is beside it",
        ),
    ],
)
def test_bad_arguments(options: dict, told: str) -> None:
    given = {"network": lambda x: x, "window": WINDOW, **options}
    with pytest.raises(ValueError, match=told):
        SlidingWindow(given.pop("network"), given.pop("window"), **given)


# ---------------------------------------------------------------- places and weights


@pytest.mark.parametrize(("window", "overlap"), [(8, 0.5), (7, 0.5), (8, 0.75), (5, 0.0), (4, 0.9)])
def test_starts_and_weights(window: int, overlap: float) -> None:
    for size in range(window, 40):
        starts = window_starts(size, window, overlap)
        assert list(starts) == slow_windows.starts(size, window, overlap), size
        total = summed_weights(starts, window, size)
        assert total.min() > 0 and total.shape == (size,)
    np.testing.assert_allclose(gaussian(window), slow_windows.weights((window,)), rtol=1e-6)


def test_columns_give_every_voxel_all_of_its_windows() -> None:
    for size, overlap in itertools.product(range(8, 70, 3), (0.0, 0.4, 0.5, 0.75)):
        starts = window_starts(size, 8, overlap)
        for tile in (16, 19, 33):
            found = columns(starts, 8, size, tile)
            ends = [c.high for c in found]
            assert [c.low for c in found] == [0, *ends[:-1]] and ends[-1] == size
            for column in found:
                assert column.starts[-1] + 8 - column.starts[0] <= tile
                for voxel in range(column.low, column.high):
                    covering = {s for s in starts if s <= voxel < s + 8}
                    assert covering <= set(column.starts)


@pytest.mark.parametrize(
    ("cross", "channels", "room", "tile"),
    [
        ((40, 30), 2, 10**9, (40, 30)),
        ((4, 30), 2, 10**9, (8, 30)),
        ((40, 30), 2, 4 * 10 * 2 * 600, (24, 25)),
        ((400, 13), 2, 4 * 10 * 2 * 1300, (100, 13)),
        ((400, 400), 100, 1, (16, 12)),
    ],
)
def test_tiles(cross, channels: int, room: int, tile: tuple[int, int]) -> None:
    assert tile_size(cross, WINDOW, channels, room) == tile
