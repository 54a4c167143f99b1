"""The segmentation task: training, scores, devices, prediction, and what it says of bad input."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from launch import mesh as meshes
from launch.experiment import Mesh
from launch.stream import Stream, feeder
from launch.train import abstract_state, compile_step
from tests.touchstone.toy_prepared import plan, volume, write_case, write_set
from touchstone_jax import counts as voxel_counts
from touchstone_jax import tasks
from touchstone_jax.losses import IGNORE
from touchstone_jax.prepare.plan import Plan

SMALL = {"model": {"name": "unet", "widths": (4, 8), "convs": 1, "decoder_convs": 1}, "patch": 8}
PLAIN = {"augmentation": {"preset": "none"}, "validation": 0.3, "batch_dice": True}
NOISY = {"preset": "none", "noise_p": 1.0}


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam and schedules mix dtypes
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_set(tmp_path_factory.mktemp("prepared")))


def make(folder, **changes):
    return tasks.Segmenter(optimizer=optax.adam(2e-2), data=folder, **{**SMALL, **PLAIN, **changes})


@pytest.fixture(scope="module")
def task(folder):
    return make(folder, ema=0.9, per_case=8, val_patches=8, margin=2, augmentation=NOISY)


@pytest.fixture(scope="module")
def one():
    return meshes.make(Mesh(data=1))


@pytest.fixture(scope="module")
def trained(task, one):
    """(states by step, losses, update): 40 steps on one device, as launch takes them."""
    with jax.numpy_dtype_promotion("standard"):
        stream = Stream(task.dataset("train"), 0, 8, one)
        placed = abstract_state(task, one)
        update = compile_step(task, placed, stream, one)
        state = jax.jit(task.init, out_shardings=meshes.shardings(placed))(jax.random.key(0))
        states, losses = {0: jax.device_get(state)}, []
        for step in range(40):
            state, values = update(state, stream[step], jax.random.key(step))
            losses.append({name: float(value) for name, value in values.items()})
            if step == 0:
                states[1] = jax.device_get(state)
        states[40] = jax.device_get(state)
    return states, losses, update


def test_training_falls(trained):
    losses = trained[1]
    assert set(losses[0]) == {"loss", "cross_entropy", "dice_loss", "gradient_norm"}
    assert losses[0]["loss"] == pytest.approx(
        losses[0]["cross_entropy"] + losses[0]["dice_loss"], rel=1e-5
    )
    first, last = (np.mean([one["loss"] for one in part]) for part in (losses[:3], losses[-3:]))
    assert last < 0.6 * first


def test_scores_of_patches_and_tiles(task, trained, one):
    states = trained[0]
    for split, with_loss in (("val", True), ("tiles", False)):
        before, after = (
            dict(task.evaluate(states[step], split, feeder(8, one))) for step in (0, 40)
        )
        assert ("loss" in after) == with_loss
        assert set(after) - {"loss"} == {"dice", "dice_aorta", "dice_liver"}
        organs = [after["dice_aorta"], after["dice_liver"]]
        assert after["dice"] == pytest.approx(np.mean(organs)) and 0 <= min(organs) <= 1
        assert after["dice"] > before["dice"] + 0.1


@pytest.fixture(scope="module")
def run():
    """A predictor is a pytree: its parameters are arguments of the program, not constants."""
    return jax.jit(lambda pair, x: pair[1](pair[0](x)))


def test_dice_of_tiles_is_that_of_the_whole_case(task, trained, one, run):
    state = trained[0][40]
    (case,) = task._val
    network, _, _ = task.predictor(state)
    seen = []
    for batch in feeder(8, one)(task.dataset("tiles")):
        predicted = np.asarray(run(network, batch["image"].astype("float32")))
        for labels, logits, valid in zip(batch["labels"], predicted, batch["valid"], strict=True):
            if valid:
                seen.append((np.asarray(labels).ravel(), logits.argmax(-1).ravel()))
    labels, predicted = (np.concatenate(column) for column in zip(*seen, strict=True))
    real = volume(int(case[-1]))[1]
    assert np.bincount(labels[labels != IGNORE], minlength=10).tolist() == (
        np.bincount(real.ravel(), minlength=10).tolist()
    )
    scores = dict(task.evaluate(state, "tiles", feeder(8, one)))
    for name, number in (("aorta", 1), ("liver", 5)):
        ours, theirs = (predicted == number) & (labels != IGNORE), labels == number
        expected = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
        assert scores[f"dice_{name}"] == pytest.approx(expected, abs=0.01)


def test_the_running_mean_follows_its_formula_and_predicts(task, trained):
    states = trained[0]
    first, after = states[0], states[1]
    keep = 0.1  # (1 + 0) / (10 + 0), below 0.9
    for mean, old, new in zip(
        *(jax.tree.leaves(t) for t in (after["ema"]["params"], first["params"], after["params"])),
        strict=True,
    ):
        np.testing.assert_allclose(mean, keep * old + (1 - keep) * new, rtol=1e-5, atol=1e-7)
    assert int(states[40]["ema"]["steps"]) == 40
    network, _, _ = task.predictor(states[40])
    for part in network:
        for held, mean in zip(
            jax.tree.leaves(part), jax.tree.leaves(states[40]["ema"]["params"]), strict=True
        ):
            np.testing.assert_array_equal(held, mean)


def test_predictor_gives_network_plan_and_scheme(task, trained, run):
    network, stored, labels = task.predictor(trained[0][40])
    assert Plan.from_json(stored) == plan(patch=(8, 8, 8)) and labels == "abdomenatlas_1.0"
    x = jnp.linspace(-1, 1, 8**4).reshape(8, 8, 8, 8, 1)
    logits = run(network, x)
    assert logits.shape == (8, 8, 8, 8, 10) and logits.dtype == jnp.float32
    features, _ = network
    assert features(x).shape[-1] != 10
    np.testing.assert_allclose(
        logits, task._part(task._logits, trained[0][40])(x), rtol=1e-5, atol=1e-5
    )


def test_eight_devices_take_the_step_of_one(task, trained):
    states, losses, _ = trained
    eight = meshes.make(Mesh())
    placed = abstract_state(task, eight)
    stream = Stream(task.dataset("train"), 0, 8, eight)
    update = compile_step(task, placed, stream, eight)
    state = jax.device_put(states[0], meshes.shardings(placed))
    state, values = update(
        state, stream[0], jax.device_put(jax.random.key(0), meshes.replicated(eight))
    )
    assert float(values["loss"]) == pytest.approx(losses[0]["loss"], rel=1e-5)
    assert float(values["gradient_norm"]) == pytest.approx(losses[0]["gradient_norm"], rel=1e-4)
    # Devices send sums of gradients, never their samples.
    assert "all-gather" not in update.as_text()


def test_random_changes_follow_the_steps_key(task, trained, one):
    states, _, update = trained
    assert task.dataset("train")[0]["image"].shape == (12, 12, 12, 1)  # with its margin
    batch = Stream(task.dataset("train"), 0, 8, one)[0]
    losses = []
    for key in (0, 0, 1):
        state = jax.device_put(states[0], meshes.shardings(abstract_state(task, one)))
        losses.append(float(update(state, batch, jax.random.key(key))[1]["loss"]))
    assert losses[0] == losses[1] != losses[2]


def test_organs_nobody_looked_for_reach_the_loss(tmp_path):
    image, labels = volume(0)
    write_case(
        tmp_path, "part", image, np.where(labels == 5, 0, labels), plan(), missing=("liver",)
    )
    (tmp_path / "dataset.json").write_text(
        json.dumps({"plan": plan().to_json(), "cases": ["part"]})
    )
    task = make(str(tmp_path), validation_cases=["part"])
    known = task.dataset("train")[0]["annotated"]
    assert np.flatnonzero(~known).tolist() == [5]
    assert task.val_split == "val" and task.test_splits == ("tiles",)
    nothing = make(str(tmp_path), validation=0)
    assert nothing.val_split is None and nothing.test_splits == ()


def test_counts_and_their_dice():
    rng = np.random.default_rng(0)
    predicted, labels = rng.integers(0, 3, (2, 4, 3, 2, 2)).astype(np.uint8)
    labels[0, 0] = IGNORE
    labels[labels == 2] = 0
    case = np.array([1, 0, 1, 1])
    got = np.asarray(voxel_counts.counts(predicted, labels, case, 2, 3))
    for number in range(2):
        mine = [i for i in range(4) if case[i] == number]
        for k in range(3):
            p, g = (a[mine][labels[mine] != IGNORE] == k for a in (predicted, labels))
            assert got[number, k].tolist() == [(p & g).sum(), p.sum(), g.sum()]
    dice = voxel_counts.dice_by_organ(got[0])
    assert np.isnan(dice[2]) and dice[1] == 2 * got[0, 1, 0] / got[0, 1, 1:].sum()
    assert voxel_counts.dice_by_organ(np.array([[5, 5, 5], [0, 3, 4], [0, 3, 0]]))[:2].tolist() == [
        1,
        0,
    ]
    mean = voxel_counts.mean_dice_by_organ(np.array([[[1, 1, 1]], [[0, 2, 0]], [[1, 2, 2]]]))
    assert mean.tolist() == [0.75]  # the case without the organ has no say


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"name": "unett"}}, "unknown model 'unett'; did you mean 'unet'"),
        ({"model": {}}, "model: the key 'name' is missing"),
        ({"model": {"name": "unet", "widht": 3}}, "unknown option of model 'unet' 'widht'"),
        ({"patch": (8, 8)}, r"patch=\(8, 8\); expected an integer"),
        ({"patch": 8, "model": {"name": "unet", "widths": (4, 4, 4)}}, "has room for 2 stages"),
        ({"patch": 9}, r"volume \(9, 9, 9\) must be a multiple of \(2, 2, 2\)"),
        ({"margin": -1}, "margin=-1; expected an integer from 0"),
        ({"augmentation": {"preset": "non"}}, "unknown augmentation preset 'non'"),
        ({"augmentation": {"noise": 1}}, "unknown option of augmentation 'noise'; did you mean"),
        ({"augmentation": {"noise_p": 2.0}}, "noise_p=2.0; expected a probability"),
        ({"smooth": 0.0}, "smooth=0.0; expected above 0"),
        ({"ema": 1.0}, r"ema=1.0; expected a decay in \[0, 1\)"),
        ({"val_patches": 0}, "val_patches=0; expected at least 1"),
        ({"foreground": 2.0}, "foreground=2.0, zoom_out=0.0, per_case=1"),
        ({"zoom_out": -0.1}, "zoom_out=-0.1, per_case=1: expected two probabilities"),
        ({"zoom_out": 0.5, "margin": 2}, "zoom_out=0.5 with margin=2; expected a margin of 0"),
        (
            {"loss": "dice_bce"},
            "loss of networks with a softmax 'dice_bce'; .*legal: dice_ce, tver",
        ),
        ({"validation_cases": ["case_9"]}, "validation='case_9' is none of the 3 cases"),
        ({"seed": -1}, "seed=-1; expected 0"),
    ],
)
def test_bad_arguments_are_told(folder, changes, said):
    with pytest.raises(ValueError, match=said):
        make(folder, **changes)


def test_an_unknown_split_and_a_missing_folder_are_told(task, tmp_path):
    with pytest.raises(ValueError, match="split 'test'; legal: train, val, tiles"):
        task.dataset("test")
    with pytest.raises(FileNotFoundError, match="run `prepare` first"):
        make(str(tmp_path))
