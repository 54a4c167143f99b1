"""Prompts: what a file may say, where its millimetres are, what each window is told of them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.touchstone.cases import dataset
from tests.touchstone.test_models import FAST, drawn
from tests.touchstone.tiny_models import TINY
from tests.touchstone.toy_network import SCHEME, Thresholds
from tests.touchstone.toy_prepared import write_set
from touchstone_jax import tasks
from touchstone_jax.infer import SlidingWindow
from touchstone_jax.io.geometry import Geometry
from touchstone_jax.predict import Predict
from touchstone_jax.prompts import Prompts

PLACES = {"organs": None, "points": None, "boxes": None}
POINT = {"liver": {"points": [[1.0, 2.0, 3.0, 1]]}}
# Stored as LPS, voxels of 2 x 2 x 4 mm; voxel 0 is at x = 38, y = 38, z = -20.
CT = Geometry(
    (20, 20, 12), np.array([[-2.0, 0, 0, 38], [0, -2, 0, 38], [0, 0, 4, -20], [0, 0, 0, 1]])
)


@pytest.mark.parametrize(
    ("given", "kinds", "said"),
    [
        ({"organs": []}, {}, "prompts: the network takes no prompts"),
        ({"organ": ["liver"]}, PLACES, "key of prompts 'organ'; did you mean 'organs'"),
        ({"organs": "liver"}, PLACES, "organs='liver'; expected a list of names"),
        ({"organs": ["livr"]}, PLACES, "organ of prompts 'livr'; did you mean 'liver'"),
        ({"cases": []}, PLACES, r"prompts: cases: \[\]; expected names"),
        ({"cases": {"a": {"liver": {"boxes": 1}}}}, PLACES, "a, liver 'boxes'; did you mean 'box'"),
        ({"cases": {"a": {"liver": {"box": [1, 2]}}}}, PLACES, r"box=\[1, 2\]; expected \(x, y, z"),
        ({"cases": {"a": {"liver": {"points": [[0, 0, 0, 2]]}}}}, PLACES, "expected .x, y, z, 0"),
        ({"task": 3}, {"task": 3}, r"task=3; expected 0..2"),
        ({"organs": []}, {"task": 3}, "key of prompts 'organs'; legal: task"),
        ({}, {"task": 3}, "task=None; expected 0..2"),
    ],
)
def test_bad_prompts_are_told(given, kinds, said):
    with pytest.raises(ValueError, match=said):
        Prompts(given, kinds, SCHEME)


def test_bad_files_are_told(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a.json: no JSON"):
        Prompts(str(tmp_path / "a.json"), PLACES, SCHEME)
    with pytest.raises(FileNotFoundError, match=r"b.json: no such file"):
        Prompts(str(tmp_path / "b.json"), PLACES, SCHEME)
    with pytest.raises(ValueError, match="case of prompts 'case_7'; did you mean 'case_1'"):
        Prompts({"cases": {"case_7": POINT}}, PLACES, SCHEME).check_cases(["case_1"])


def test_a_task_is_told_to_every_window():
    told = Prompts({"task": 2}, {"task": 3}, SCHEME).of_windows(
        "a", Geometry((4, 4, 4), np.eye(4)), (4, 4, 4), (2, 2, 2)
    )
    assert told((0, 0, 0), (False,) * 3) == {"task": 2}


@pytest.fixture
def told():
    """What is told of `CT`, prepared to half as many voxels along x and y."""
    asked = {
        # Voxel 4 along canonical x is at 8 mm, i.e. 1.75 of the prepared image.
        "liver": {"points": [[8.0, 8.0, -8.0, 1], [8.0, 8.0, 24.0, 0]]},
        "aorta": {"box": [30.0, 2.0, 4.0, 6.0, 10.0, -12.0]},
    }
    prompts = Prompts({"organs": ["spleen"], "cases": {"a": asked}}, PLACES, SCHEME)
    return prompts.of_windows("a", CT, (10, 10, 12), (8, 8, 6))


def test_millimetres_become_voxels_of_the_window(told):
    liver, aorta, spleen = (SCHEME.indices[n] - 1 for n in ("liver", "aorta", "spleen"))
    made = told((0, 1, 2), (False,) * 3)
    assert made["named"].nonzero()[0].tolist() == [spleen]
    assert made["signs"][liver].tolist() == [1, -1]
    np.testing.assert_allclose(made["points"][liver, 0], (1.75, 0.75, 1.0))
    assert made["boxed"].nonzero()[0].tolist() == [aorta]
    # x 6..30 mm is voxels 3..15 of 20, 1.25..7.25 of 10; z -12..4 is voxels 2..6.
    np.testing.assert_allclose(made["boxes"][aorta], (1.25, 0, 0, 7, 1.25, 4), atol=1e-6)
    beyond = told((0, 1, 7), (False,) * 3)
    assert beyond["signs"][liver].tolist() == [0, -1] and not beyond["boxed"].any()


def test_mirrored_windows_mirror_places(told):
    liver, aorta = SCHEME.indices["liver"] - 1, SCHEME.indices["aorta"] - 1
    made = told((0, 1, 2), (True, False, True))
    np.testing.assert_allclose(made["points"][liver, 0], (7 - 1.75, 0.75, 5 - 1.0))
    np.testing.assert_allclose(made["boxes"][aorta], (0, 0, 1, 7 - 1.25, 1.25, 5), atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"points": [[0.0, 0.0, 0.0, 1], [-8.0, 8.0, 0.0, 1]]}, r"point \[-8.0, 8.0, 0.0\]"),
        ({"box": [0.0, 0.0, 27.0, 9.0, 9.0, 90.0]}, r"box \[0.0, 0.0, 27.0, 9.0, 9.0, 90.0\]"),
    ],
)
def test_places_outside_of_the_ct_are_refused(asked, said):
    prompts = Prompts({"cases": {"a": {"liver": asked}}}, PLACES, SCHEME)
    ends = r"from \[-1.0, -1.0, -22.0\] to \[39.0, 39.0, 26.0\] mm"
    with pytest.raises(ValueError, match=f"prompts: a, liver: {said} is outside of the CT.*{ends}"):
        prompts.of_windows("a", CT, (10, 10, 12), (8, 8, 6))


@pytest.mark.parametrize("shape", [(9, 8, 13), (5, 6, 4)])
def test_windows_are_told_where_they_are(shape):
    """A network that says its voxels' places in the volume, whatever was cut or mirrored."""
    window = (4, 6, 5)

    def told(corner, flips):
        return {"corner": np.float32(corner), "flips": np.array(flips)}

    def network(x, where):
        at = jnp.stack(jnp.meshgrid(*map(jnp.arange, window), indexing="ij"), -1)[None]
        last = jnp.asarray(window).reshape(1, 1, 1, 1, 3) - 1
        flips, corner = (where[k][:, None, None, None] for k in ("flips", "corner"))
        return jnp.where(flips, last - at, at).astype(jnp.float32) + corner

    sliding = SlidingWindow(network, window, mirror=(0, 2), batch=3, told=told)
    image = np.zeros(shape, np.float32)
    found = sliding.logits(image, told=told)
    expected = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    with pytest.raises(ValueError, match="told=None: the network is made for being told"):
        sliding.labels(image)


def test_segvol_takes_what_windows_are_told(tmp_path):
    """Traced only."""
    task = tasks.Segmenter(
        optimizer=optax.sgd(0.1),
        data=str(write_set(tmp_path, 1)),
        model={"name": "segvol", **TINY["segvol"]},
        patch=(16, 16, 8),
        validation=("case_0",),
    )
    prompts = Prompts({"cases": {"a": POINT}}, task.prompts, SCHEME)
    told = prompts.of_windows("a", Geometry((20, 20, 12), np.eye(4)), (20, 20, 12), (16, 16, 8))
    made = jax.eval_shape(task.init, jax.random.key(0))
    made = {part: made[part] for part in ("params", "rest")}
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), made)
    network, _, _ = task.predictor(state)
    sliding = SlidingWindow(network, (16, 16, 8), batch=2, told=told)
    assert sliding.num_classes == 10


def test_the_task_of_uniseg_changes_its_masks(tmp_path):
    task = tasks.Segmenter(
        optimizer=optax.sgd(0.1),
        data=str(write_set(tmp_path, 1)),
        model={"name": "uniseg", **TINY["uniseg"], "stems": None},
        patch=8,
        validation=("case_0",),
    )
    assert task.prompts == {"task": 3}
    graphdef, state = nnx.split(drawn("uniseg"))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 8, 2)), jnp.float32)
    x = jnp.broadcast_to(x[:1], x.shape)
    run = jax.jit(lambda state, x, prompts: nnx.merge(graphdef, state)(x, prompts))
    prompts = {"task": jnp.asarray([0, 1, 0])}
    made = run.lower(state, x, prompts).compile(compiler_options=FAST)(state, x, prompts)
    assert np.abs(made[0] - made[1]).max() > 1e-3
    np.testing.assert_allclose(made[0], made[2], rtol=1e-5, atol=1e-5)

    def predicted(state, x, prompts):
        (features, head), _, _ = task.predictor(state)
        return head(features(x, prompts))

    state = jax.eval_shape(task.init, jax.random.key(0))
    logits = jax.eval_shape(predicted, state, x[..., :1], prompts)
    assert logits.shape == (3, 8, 8, 8, 10)


class Prompted(Thresholds):
    """`Thresholds` that looks for organs that are named only."""

    prompts = PLACES

    def predictor(self, state):
        network, told, labels = super().predictor(state)

        def prompted(x, prompts):
            named = jnp.concatenate([jnp.ones((len(x), 1), bool), prompts["named"]], axis=1)
            return jnp.where(named[:, None, None, None], network(x), jnp.float32(-20))

        return prompted, told, labels


def test_only_what_is_asked_for_is_predicted(tmp_path):
    (case,) = dataset(tmp_path / "data", noise_hu=0.0)
    file, rows = tmp_path / "prompts.json", {}
    state, data = {"sharpness": jnp.float32(2)}, str(tmp_path / "data")
    for organs in (["aorta", "postcava"], ["aorta"]):
        file.write_text(json.dumps({"organs": organs, "cases": {case.id: POINT}}))
        job = Predict(data, prompts=str(file), picture=False)
        job.restore(Prompted(), state)
        (tmp_path / str(len(organs))).mkdir()
        rows[len(organs)] = job.run(case.id, tmp_path / str(len(organs)))
        rows[len(organs)]["fingerprint"] = job.fingerprint(case.id)
    both, one = rows[2], rows[1]
    assert both["ml_aorta"] == one["ml_aorta"] > 0
    assert both["ml_postcava"] > 0 and one["ml_postcava"] == 0
    assert both["fingerprint"] != one["fingerprint"]
    with pytest.raises(ValueError, match="the network takes no prompts"):
        Predict(data, prompts=str(file)).restore(Thresholds(), state)
    with pytest.raises(FileNotFoundError, match="prompts .*no.json: no such file"):
        Predict(data, prompts=str(tmp_path / "no.json"))
