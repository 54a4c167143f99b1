"""The CLIP-driven head: vectors of names, what they change, and predictions."""

import hashlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.touchstone.tiny_models import TINY
from tests.touchstone.toy_prepared import write_set
from touchstone_jax import tasks
from touchstone_jax.labels.schemes import scheme
from touchstone_jax.models import create, text
from touchstone_jax.models.weights import into_state

NINE = scheme("abdomenatlas_1.0").classes


def test_the_shipped_vectors_are_the_stand_ins():
    organs = scheme("abdomenatlas_1.1").classes
    assert organs[:9] == NINE
    shipped = text.read_embeddings(None, 25)
    np.testing.assert_allclose(shipped, text.stand_in(organs), rtol=1e-6)
    np.testing.assert_array_equal(text.read_embeddings(None, 9, NINE), shipped[:9])
    np.testing.assert_array_equal(
        text.read_embeddings(None, 2, ("spleen", "liver")), shipped[[7, 4]]
    )


def test_stand_ins_are_near_where_names_are():
    a, b, c = text.stand_in(("kidney_left", "kidney_right", "aorta"))
    np.testing.assert_allclose([a @ a, b @ b], 100, rtol=1e-5)
    assert a @ c < a @ b < 95
    np.testing.assert_array_equal(text.stand_in(("liver",)), text.stand_in(("liver", "aorta"))[:1])
    assert text.stand_in(()).shape == (0, 512)


def test_a_stand_in_is_the_sum_over_runs_of_letters():
    prompt, total = " a computerized tomography of a gall bladder ", [0] * 512
    for start in range(len(prompt) - 2):
        digest = hashlib.shake_256(prompt[start : start + 3].encode()).digest(64)
        for i, bit in enumerate(f"{int.from_bytes(digest, 'big'):0512b}"):
            total[i] += 1 if bit == "1" else -1
    length = sum(t * t for t in total) ** 0.5
    expected = [10 * t / length for t in total]
    np.testing.assert_allclose(text.stand_in(("gall_bladder",))[0], expected, rtol=1e-6)


def test_vectors_of_ones_own(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(3, 5))
    np.save(tmp_path / "a.npy", vectors)
    names = np.array(["b", "c", "a"])
    np.savez(tmp_path / "a.npz", names=names, embeddings=vectors)
    for source in (tmp_path / "a.npy", str(tmp_path / "a.npz"), vectors):
        got = text.read_embeddings(source, 3)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, vectors.astype(np.float32))
    got = text.read_embeddings(tmp_path / "a.npz", 2, ("a", "b"))
    np.testing.assert_array_equal(got, vectors[[2, 0]].astype(np.float32))
    model = nnx.eval_shape(
        lambda: create(
            "unet_clip", num_classes=4, rngs=nnx.Rngs(0), embeddings=vectors, **TINY["unet_clip"]
        )
    )
    assert model.head.organ_embedding.shape == (3, 5)


@pytest.mark.parametrize(
    ("content", "count", "organs", "said"),
    [
        (np.zeros((2, 4)), 3, None, "a.npy: 2 vectors for 3 organs"),
        (np.zeros(4), 4, None, r"a.npy: float64 (4,); expected floats"),
        (np.zeros((2, 4), int), 2, None, "int64 (2, 4); expected floats"),
        (np.full((2, 4), np.nan), 2, None, "NaN or infinite"),
        (np.zeros((2, 4)), 2, ("a",), "organs=('a',): 1 names for 2 organs"),
        ({"embeddings": np.zeros((2, 4))}, 2, None, "expected arrays 'names' and 'embeddings'"),
        ({"embeddings": np.zeros((2, 4)), "names": ["a"]}, 2, None, "2 vectors with 1 names"),
        ({"embeddings": np.zeros((1, 4)), "names": ["a"]}, 2, None, "for 2 organs"),
        ({"embeddings": np.zeros((2, 4)), "names": ["liver", "b"]}, 1, ("livr",), "'liver'"),
        ({"embeddings": np.zeros((2, 4)), "names": ["a", "a"]}, 1, None, "'a' is named twice"),
        ({"embeddings": np.array([{}]), "names": ["a"]}, 1, None, "cannot be read"),
        (b"anything", 1, None, "expected an .npy or .npz file"),
        (None, 1, None, "no such file"),
    ],
)
def test_bad_vectors_are_told(tmp_path, content, count, organs, said):
    path = tmp_path / "a.npy"
    if isinstance(content, dict):
        path = tmp_path / "a.npz"
        np.savez(path, **content)
    elif isinstance(content, bytes):
        path = tmp_path / "a.pth"
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    error = FileNotFoundError if content is None else ValueError
    with pytest.raises(error, match=re.escape(said)):
        text.read_embeddings(path, count, organs)


@pytest.fixture(scope="module")
def run():
    """(model, vectors or None, image) to logits; compiled once."""
    model = create("unet_clip", num_classes=4, rngs=nnx.Rngs(0), **TINY["unet_clip"])
    graphdef, state = nnx.split(model)

    @jax.jit
    def call(state, x):
        return nnx.merge(graphdef, state)(x)

    def run(vectors, x):
        own = nnx.to_pure_dict(state)
        if vectors is not None:
            own["head"]["organ_embedding"] = jnp.asarray(vectors)
        return np.asarray(call(own, jnp.asarray(x, jnp.float32)))

    return run


def test_a_vector_changes_the_mask_of_its_organ_alone(run):
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 8, 1))
    before = run(None, x)
    assert before.shape == (2, 8, 8, 8, 4) and not before[..., 0].any()
    # The largest logit is the likeliest organ's, or the background's where none reaches a half.
    share = 1 / (1 + np.exp(-before[..., 1:]))
    labels = np.where(share.max(-1) > 0.5, 1 + share.argmax(-1), 0)
    np.testing.assert_array_equal(before.argmax(-1), labels)
    assert len(np.unique(labels)) > 1
    vectors = text.read_embeddings(None, 3)
    vectors[1] = text.stand_in(("a quite different thing",))[0]
    after = run(vectors, x)
    np.testing.assert_allclose(after[..., [1, 3]], before[..., [1, 3]], rtol=1e-5, atol=1e-6)
    assert np.abs(after[..., 2] - before[..., 2]).max() > 0.01
    # The same vector asks for the same mask.
    vectors[:] = vectors[0]
    after = run(vectors, x)
    for organ in (1, 2, 3):
        np.testing.assert_allclose(after[..., organ], before[..., 1], rtol=1e-5, atol=1e-6)


def test_a_prediction_does_not_depend_on_its_neighbours(run):
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 8, 1))
    both = run(None, x)
    x[1] = 100 * x[0]
    np.testing.assert_allclose(run(None, x)[0], both[0], rtol=1e-5, atol=1e-6)


def task_of(folder, **model):
    return tasks.Segmenter(
        optimizer=optax.sgd(0.1),
        data=str(write_set(folder, 1)),
        model={"name": "unet_clip", **model},
        patch=8,
        validation=("case_0",),
    )


def test_an_originals_weights_bring_its_vectors(tmp_path, golden):
    model = {"widths": (8, 16, 32, 64), "groups": (8, 4)}
    state = jax.eval_shape(task_of(tmp_path, **model).init, jax.random.key(0))
    file = golden / "arch" / "clip_universal_unet.npz"
    made, said = into_state(state, {"name": "unet_clip", **model}, file, "sd/")
    with np.load(file, allow_pickle=False) as arrays:
        stored = arrays["sd/organ_embedding"]
    np.testing.assert_array_equal(made["rest"]["head"]["organ_embedding"], stored)
    assert "75 arrays of" in said and "42 that hold nothing" in said


def test_the_task_names_its_organs_and_sums_logits(tmp_path):
    task = task_of(tmp_path, **TINY["unet_clip"])
    network = task._create(nnx.Rngs(0))
    np.testing.assert_array_equal(
        network.head.organ_embedding[...], text.read_embeddings(None, 9, NINE)
    )
    _, params, rest = nnx.split(network, nnx.Param, ...)
    state = {"params": nnx.to_pure_dict(params), "rest": nnx.to_pure_dict(rest)}
    predict, _, _ = task.predictor(state)
    logits = jax.eval_shape(predict, jax.ShapeDtypeStruct((1, 8, 8, 8, 1), jnp.float32))
    assert logits.shape == (1, 8, 8, 8, 10)
