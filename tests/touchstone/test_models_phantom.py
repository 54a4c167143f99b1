"""Every family by the phantom card and the launcher alone: 20 steps, another mesh, a prediction."""

import json

import jax
import numpy as np
import pytest

from launch import record
from launch.__main__ import main
from tests.touchstone.tiny_models import TINY, sides

pytestmark = pytest.mark.slow
CARD = "configs/touchstone/phantom_smoke.py"
PHANTOMS = {"jobs.prepare.train": 3, "jobs.prepare.test": 1}
SHORT = {
    "steps": 20,
    "log_every": 1,
    "eval_every": 20,
    "checkpoint.every": 20,
    "batch_size": 2,
    "task.foreground": 1.0,
    "optimizer.warmup_steps": 0,
    "optimizer.learning_rate": 5e-3,
    "optimizer.schedule": "constant",
}


@pytest.fixture(autouse=True)
def as_a_user_runs_it(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setattr(record, "draw", lambda source, target: None)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        yield


def launch(verb, work, out, **changes):
    keys = [f"--config.{key}={value!r}" for key, value in changes.items()]
    return main([verb, "--config", f"{CARD}:{work}", "--workdir", str(out), *keys])


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("phantoms")


@pytest.mark.parametrize("name", TINY)
def test_a_family_goes_through_the_phantom_card(name, work, tmp_path):
    assert launch("prepare", work, work, **PHANTOMS) == 0  # once, for all families
    fixed = "patch" in TINY[name]
    patch = tuple(n if fixed else max(n, 32) for n in sides(name))
    task = {"task.model": {"name": name, **TINY[name]}, "task.patch": patch}
    assert launch("train", work, tmp_path, **SHORT, **task) == 0
    rows = map(json.loads, (tmp_path / "seed0" / "metrics.jsonl").read_text().splitlines())
    losses = [row["loss"] for row in rows if row.get("split") == "train"]
    assert len(losses) == 20 and np.isfinite(losses).all()
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    moved = {"mesh.data": 1, "mesh.fsdp": 8}
    assert launch("predict", work, tmp_path, **SHORT, **task, **moved) == 0
    assert (tmp_path / "predict" / "phantom_00003" / "combined_labels.nii.gz").is_file()
