"""Swin UNETR of version 1, both orders of merging, and its CLIP-driven sibling against originals.

``tests/data/swin_unetr_v1.npz`` holds 512 voxels each of float64 results for a cube of 64 and a
width of 12: "fixed" is MONAI 1.6.1's network (torch 2.13.0, ``use_v2=False``), "legacy" the same
with the order of MONAI up to 1.4 put into ``downsample``, "clip" the Universal Model's own code
(commit 43c1239, its legacy Swin UNETR on MONAI 1.6.1's blocks) with the width 12 and 4 and 16
groups. Weights and image are made here as they were there, by NumPy from seeds. torch's own float32
is off by up to 4e-6 (logits) and, with the CLIP-driven head, 6e-6 (gradient).
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.touchstone.test_models import FAST
from touchstone_jax.models import convert

STORED = Path(__file__).parents[1] / "data" / "swin_unetr_v1.npz"
SIDE = 64
CASES = {
    "fixed": ("swin_unetr", {"merging": "fixed"}),
    "legacy": ("swin_unetr", {"merging": "legacy"}),
    "clip": ("swin_unetr_clip", {"groups": (16, 4)}),
}


def made(shapes):
    """Norms, biases and tables that all do something; scales that keep activations near 1."""
    arrays = {}
    for number, key in enumerate(sorted(shapes)):
        values = np.random.default_rng(number).normal(size=shapes[key])
        if key.endswith("table"):
            values = values * 0.5
        elif key.endswith("bias"):
            values = values * 0.1
        elif values.ndim == 1:
            values = 1 + values * 0.2
        else:
            values = values / np.sqrt(int(np.prod(values.shape[1:])))
        arrays[key] = values.astype(np.float32)
    return arrays


@pytest.fixture(scope="module")
def stored():
    with np.load(STORED) as file:
        return dict(file)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_originals(case, stored):
    name, config = CASES[case]
    arrays = made(json.loads(stored[f"{case}/shapes"].tobytes()))
    # Else NumPy draws other numbers than it did, and nothing below can be right.
    total = sum(float(np.abs(a).astype(np.float64).sum()) for a in arrays.values())
    assert total == pytest.approx(float(stored[f"{case}/weights"]), rel=1e-6)
    model = convert.from_torch(name, arrays, **config)
    graphdef, state = nnx.split(model)
    state = nnx.to_pure_dict(state)
    x = np.random.default_rng(7).normal(size=(1, SIDE, SIDE, SIDE, 1)).astype(np.float32)

    def squares(x, state):
        logits = nnx.merge(graphdef, state)(x)
        logits = logits[..., -3:]  # the Universal Model has no background
        return jnp.square(logits).mean(), logits

    differentiated = case == "clip"  # the others' norms of eight voxels magnify errors of kinks
    program = jax.value_and_grad(squares, has_aux=True) if differentiated else squares
    program = jax.jit(program).lower(jnp.asarray(x), state).compile(compiler_options=FAST)
    found = program(jnp.asarray(x), state)
    (_, logits), gradient = found if differentiated else (found, None)
    norm, gradient_norm, most = stored[f"{case}/norms"]
    assert np.linalg.norm(np.asarray(logits, np.float64)) == pytest.approx(norm, rel=1e-5)
    at = stored["at"]
    off = np.asarray(logits).reshape(-1, 3)[at] - stored[f"{case}/logits"]
    assert np.abs(off).max() <= 2e-5 * most
    if gradient is not None:
        assert np.linalg.norm(np.asarray(gradient, np.float64)) == pytest.approx(
            gradient_norm, rel=1e-4
        )
        expected = stored[f"{case}/gradient"]
        off = np.asarray(gradient).reshape(-1)[at] - expected
        assert np.linalg.norm(off) <= 1e-4 * np.linalg.norm(expected)


def test_the_orders_of_merging_are_not_one(stored):
    off = np.abs(stored["fixed/logits"] - stored["legacy/logits"]).max()
    assert off > 0.1 * stored["fixed/norms"][2]
