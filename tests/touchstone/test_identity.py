"""Prepared data are known by plan and cases wherever they lie; a task predicts from the plan."""

import json
import shutil

import jax
import optax
import pytest

from tests.touchstone.toy_prepared import plan, write_set
from touchstone_jax.patches import read_set
from touchstone_jax.tasks import Segmenter

MODEL = {"name": "unet", "widths": (2, 4), "convs": 1, "decoder_convs": 1}


def task(data) -> Segmenter:
    return Segmenter(optimizer=optax.sgd(0.1), data=data, model=MODEL, patch=8, validation=0.4)


def test_a_copy_is_the_same_and_another_case_is_not(tmp_path):
    here, there = write_set(tmp_path / "here", 2), tmp_path / "there"
    first = read_set(here).identity()
    assert first["plan"] == plan().to_json() and first["cases"] == 2
    assert json.loads(json.dumps(first)) == first
    shutil.copytree(here, there)
    assert read_set(there).identity() == first
    meta = there / "case_1" / "meta.json"
    meta.write_text(meta.read_text().replace('"case_1"', '"case_2"'))
    assert read_set(there).identity()["digest"] != first["digest"]
    other = read_set(write_set(tmp_path / "other", 2, plan(mean_hu=1.0))).identity()
    assert other["plan"] != first["plan"]


def test_a_task_of_an_identity_is_the_network_without_its_data(tmp_path):
    whole = task(str(write_set(tmp_path / "data", 3)))
    alone = task(whole.identity["data"])
    assert whole.test_splits == ("tiles",) and alone.test_splits == ()
    assert alone.val_split is None
    states = [jax.eval_shape(one.init, jax.random.key(0)) for one in (whole, alone)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    assert jax.tree.leaves(states[0]) == jax.tree.leaves(states[1])
    # The same plan and labels; the network is the third.
    assert whole.predictor(states[0])[1:] == alone.predictor(states[1])[1:]
    with pytest.raises(ValueError, match="split 'train': the task was made without data"):
        alone.dataset("train")
    with pytest.raises(ValueError, match="data: expected the keys"):
        task({"cases": 3})
