"""The phantom card from nothing to scores, as small as it goes, and the job that makes phantoms."""

import csv
import json

import jax
import pytest

from launch import record
from launch.__main__ import main
from touchstone_jax.phantom_jobs import PreparePhantoms

CARD = "configs/touchstone/phantom_smoke.py"
TINY = {
    "task.model.widths": "(2, 4)",
    "task.patch": "(16, 16, 16)",
    "steps": "2",
    "eval_every": "2",
    "optimizer.warmup_steps": "1",
    "jobs.prepare.train": "2",
    "jobs.prepare.test": "1",
    "jobs.prepare.phantom.shape": "(18, 16, 16)",
    "task.validation": "0.5",
}


@pytest.fixture(autouse=True)
def as_a_user_runs_it(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setattr(record, "draw", lambda source, target: None)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam and schedules mix dtypes
        yield


def test_the_card_goes_from_nothing_to_scores(tmp_path):
    work = tmp_path / "work"
    keys = [f"--config.{key}={value}" for key, value in TINY.items()]
    for verb in ("prepare", "train", "predict", "evaluate"):
        more = ["--config.mesh.data=1"] if verb == "train" else []
        where = ["--config", f"{CARD}:{work}", "--workdir", str(work)]
        assert main([verb, *where, *keys, *more]) == 0, verb
    held_out = (work / "phantoms" / "test").iterdir()
    assert [path.name for path in held_out] == ["phantom_00002"]
    dataset = json.loads((work / "prepare" / "dataset.json").read_text())
    assert dataset["cases"] == ["phantom_00000", "phantom_00001"]
    with (work / "evaluate" / "dsc.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["name"] == "phantom_00002" and len(row) == 10
    table = json.loads((work / "table.json").read_text())
    assert "tiles/dice" in table["columns"]


def make(folder, **changes):
    phantom = {"shape": (16, 16, 16)}
    return PreparePhantoms(str(folder), **{"train": 2, "test": 1, "phantom": phantom, **changes})


def test_phantoms_are_made_once_and_never_replaced(tmp_path):
    folder = tmp_path / "phantoms"
    assert list(make(folder).cases()) == ["phantom_00000", "phantom_00001"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    make(folder)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    with pytest.raises(ValueError, match="holds other files: delete it, or name another"):
        make(folder, seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match="holds other files"):
        make(tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_bad_keywords_are_told(tmp_path):
    with pytest.raises(ValueError, match="train=0, test=1: expected at least 1"):
        make(tmp_path / "a", train=0)
    with pytest.raises(TypeError, match="shapes"):
        make(tmp_path / "a", phantom={"shapes": (16, 16, 16)})
    with pytest.raises(TypeError, match="spacings"):
        make(tmp_path / "a", spacings=(1, 1, 1))
