"""The digits task: data, training, tuning, scores, and what it says of bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isnet_jax import losses
from isnet_jax.tasks import MaskedClassifier

SMALL = {"model": {"name": "simple_cnn", "widths": (4, 4), "pooled": 2}}


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam and schedules mix dtypes
        yield


def make(**changes):
    return MaskedClassifier(optimizer=optax.adam(1e-2), **(SMALL | changes))


def feed(dataset):
    batches = dataset.batch(250)
    for i in range(len(batches)):
        yield {**batches[i], "valid": np.ones(len(batches[i]["label"]), bool)}


def batches_of(task, size=32):
    shuffled = task.dataset("train").shuffle(0).repeat().batch(size)
    return lambda i: {k: jnp.asarray(v) for k, v in shuffled[i].items()}


@pytest.fixture(scope="module")
def task():
    return make()


def test_splits_show_the_same_test_digits_with_other_markers(task):
    biased, standard, deceiving = (task.dataset(s) for s in task.test_splits)
    assert len(biased) == len(standard) == len(deceiving) == 1000
    assert len(task.dataset("train")) == 3500 and len(task.dataset("val")) == 500
    for i in (0, 17, 999):
        a, b, c = biased[i], standard[i], deceiving[i]
        np.testing.assert_array_equal(a["mask"], c["mask"])
        np.testing.assert_array_equal(a["image"] * a["mask"], b["image"] * a["mask"])
        assert a["label"] == b["label"] == c["label"]
        marker, nothing = ((x["image"] * (1 - x["mask"])).sum() for x in (a, b))
        assert marker == 1 and nothing == 0
        assert (a["image"] != c["image"]).any()


def test_training_falls_and_is_scored(task):
    state = jax.jit(task.init)(jax.random.key(0))
    step, batches = jax.jit(task.step), batches_of(task)
    seen = []
    for i in range(12):
        state, values = step(state, batches(i), jax.random.key(0))
        seen.append(float(values["loss"]))
    assert np.mean(seen[-3:]) < 0.8 * np.mean(seen[:3])
    scores = dict(task.evaluate(state, "val", feed))
    assert set(scores) == {"loss", "accuracy", "macro_f1", "auc"}
    assert 0 <= scores["macro_f1"] <= 1 and np.isfinite(scores["loss"])
    scores = dict(task.evaluate(state, "standard", feed))
    assert set(scores) == {"accuracy", "macro_f1", "auc", "mass"}
    assert scores["mass"] == 1  # without a marker all that is not black is in the mask


def test_padding_is_not_counted(task):
    state = jax.jit(task.init)(jax.random.key(0))

    def padded(dataset):
        for batch in feed(dataset):
            n = len(batch["label"])
            wide = {k: np.concatenate([v, v[:50]]) for k, v in batch.items()}
            yield {**wide, "valid": np.arange(n + 50) < n}

    one, other = (dict(task.evaluate(state, "val", f)) for f in (feed, padded))
    assert one["accuracy"] == other["accuracy"]
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_cuts_are_tuned_on_a_throw_away_classifier():
    task = make(tune_steps=10, method="selective")
    state = jax.jit(task.init)(jax.random.key(0))
    tuned = task.prepare(state, batches_of(task))
    low, high = np.asarray(tuned["cuts"])[0, 0]
    assert 0 < low < high <= 25 * low * (1 + 1e-6)
    for a, b in zip(
        jax.tree.leaves(state["params"]), jax.tree.leaves(tuned["params"]), strict=True
    ):
        np.testing.assert_array_equal(a, b)  # the throw-away network is thrown away
    assert make(method="plain", tune_steps=10).prepare(state, None) is state


def test_tuned_cuts_follow_the_formula():
    values = np.random.default_rng(0).normal(5, 1, 200)
    mean, deviation = values.mean(), values.std(ddof=1)
    low, high = losses.tune_cuts(values)
    assert low == pytest.approx(max(mean / 5, mean - 3 * deviation))
    assert high == pytest.approx(min(25 * low, mean + 3 * deviation))


def test_panels_and_their_picture(task, tmp_path):
    state = jax.jit(task.init)(jax.random.key(0))
    panels = task.explain(state, "biased", 10)
    assert list(panels) == ["image", "mask", "heatmap"]
    assert all(p.shape == (10, 32, 32, 3) and p.dtype == np.uint8 for p in panels.values())
    task.draw(panels, tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "selektive"}, "unknown method 'selektive'.*plain, erm, selective, original"),
        ({"composite": {"name": "isnet_flx"}}, "unknown composite 'isnet_flx'.*isnet_flex"),
        ({"composite": {"name": "epsilon", "eps": 1.0}}, "option of composite 'epsilon' 'eps'"),
        ({"composite": {"name": "epsilon", "epsilon": -1.0}}, "epsilon=-1.0; must be >= 0"),
        ({"loss": {"dekay": 0.9}}, "option of heatmap loss.*'dekay'.*decay"),
        ({"loss": {"decay": 1.5}}, "decay.*1.5"),
        ({"loss": {"right": "l3"}}, "'l3'.*l1.*l2.*hybrid"),
        ({"model": {"name": "simple_cn"}}, "unknown model 'simple_cn'.*simple_cnn"),
        ({"data": {"source": "mnist_bias", "kind": "colour"}}, "colour.*position"),
        ({"data": {"source": "mnist_bias", "train_mode": "odd"}}, "odd.*biased.*standard"),
        ({"data": {"source": "mnist_bias", "strength": 1.5}}, "strength"),
        ({"weight": 1.5}, "weight P.*1.5"),
        ({"strategy": "scan"}, "'scan'.*loop.*vmap"),
        ({"cuts": (5.0, 1.0)}, "cuts"),
        ({"cuts": ("a", "b")}, "cuts must be two numbers"),
        ({"loss": {"scale": float("nan")}}, "scale > 0"),
        ({"tune_steps": -1}, "tune_steps"),
    ],
)
def test_bad_arguments_are_named_before_any_compute(changes, said):
    with pytest.raises(ValueError, match=said):
        make(**changes)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make(data={"source": "mnist_bias", "folder": str(tmp_path / "nowhere")})
    with pytest.raises(ValueError, match="unknown split 'test'.*biased"):
        make().dataset("test")
