"""A user's mistakes at the command line: one line that names the thing and the legal values."""

import re

import jax
import numpy as np
import pytest

from launch.__main__ import main

CARD = '''
"""A user's own images and masks."""

from ml_collections import ConfigDict


def get_config(arg=""):
    config = ConfigDict()
    config.task = ConfigDict({
        "name": "isnet_jax.tasks:MaskedClassifier",
        "data": {"source": "npz_folder", "folder": "DATA", "num_classes": 2},
        "method": "selective",
        "model": {"name": "simple_cnn", "widths": (2, 2), "pooled": 1},
        "composite": {"name": "table", "rows": (("@input", "zb"), ("kind:dense", "epsilon"),
                                                ("kind:conv", "zplus", {"epsilon": 0.1}))},
    })
    config.steps, config.batch_size = 2, 8
    return config
'''


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # as a user has it; optax mixes dtypes
        yield


@pytest.fixture
def card(tmp_path):
    for name in ("train", "val"):
        write(tmp_path / f"{name}.npz")
    path = tmp_path / "card.py"
    path.write_text(CARD.replace("DATA", str(tmp_path)))
    return path


def write(path, **changes):
    rng = np.random.default_rng(0)
    made = {
        "image": rng.random((8, 8, 8, 1), np.float32),
        "mask": rng.random((8, 8, 8, 1)) > 0.5,
        "label": np.arange(8) % 2,
    }
    np.savez(path, **(made | changes))


def run(card, workdir, *more):
    return main(["train", "--config", str(card), "--workdir", str(workdir), *more])


ROWS = "--config.task.composite.rows="
WRONG = {
    "a rule": (
        f"{ROWS}(('.*','epsilonn'),)",
        "unknown rule 'epsilonn'.*did you mean 'epsilon'.*zb",
    ),
    "a layer": (
        f"{ROWS}(('kind:conv','epsilon'),)",
        r"no rule to 1 weighted.*classifier \(dense\)",
    ),
    "a path": (f"{ROWS}(('stem','zb'),('.*','pass'))", "'stem' matches no layer.*blocks/0"),
    "a kind": (f"{ROWS}(('.*','zb'),)", "ZB is not defined for layer.*it exists for.*conv.*dense"),
    "a folder": ("--config.task.data.folder=/no/such", "'/no/such' does not exist"),
    "a model": ("--config.task.model.name=simple_cn", "unknown model 'simple_cn'.*simple_cnn"),
    "a method": ("--config.task.method=x", "unknown method 'x'.*selective"),
    "a key": ("--config.task.modle.name=x", "'config.task.modle.name'.*config.task.model.name"),
    "a type": ("--config.steps=many", "config.steps.*int"),
}


@pytest.mark.parametrize(("argument", "said"), WRONG.values(), ids=list(WRONG))
def test_a_wrong_argument_is_one_line(card, tmp_path, capsys, argument, said):
    check(run(card, tmp_path / "run", argument), capsys, said)


BAD = {
    "sizes": (
        {"mask": np.zeros((8, 9, 9, 1))},
        r"train.npz: masks of shape \(8, 9, 9, 1\) for images",
    ),
    "range": ({"mask": np.full((8, 8, 8, 1), 3.0)}, r"train.npz: mask.*\[0, 1\]"),
    "labels": ({"label": np.full(8, 2)}, r"train.npz: label 2 at item 0, expected 0\.\.1"),
}


@pytest.mark.parametrize(("changes", "said"), BAD.values(), ids=list(BAD))
def test_bad_data_are_one_line(card, tmp_path, capsys, changes, said):
    write(tmp_path / "train.npz", **changes)
    check(run(card, tmp_path / "run"), capsys, said)


def test_an_unwritable_workdir_is_one_line(card, tmp_path, capsys):
    check(run(card, card / "below_a_file"), capsys, "below_a_file")


def check(code, capsys, said):
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), printed.err
    assert "Traceback" not in printed.out + printed.err
    assert re.search(said, lines[0]), lines[0]


def test_the_same_card_trains_when_nothing_is_wrong(card, tmp_path, capsys):
    code = run(card, tmp_path / "run")
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "val/accuracy" in printed.out


JOB = {
    "images": ("--config.jobs.explain.imagse=x", "'config.jobs.explain.imagse': did you mean"),
    "data": ("--config.jobs.explain.model.weights=data:squeezenet", "explain.model.weights: unkn"),
    "verb": ("--config.jobs.expain.images=x", "'config.jobs.expain.images': did you mean"),
    "workers": ("--config.workers=many", "config.workers = 'many' must be int"),
    "steps": ("--config.steps=3", "unknown key 'config.steps'"),
}


@pytest.mark.parametrize(("argument", "said"), JOB.values(), ids=list(JOB))
def test_a_mistake_with_images_to_explain_is_one_line(argument, said, tmp_path, capsys):
    where = ["--config", "configs/isnet/explain.py", "--workdir", str(tmp_path)]
    check(main(["explain", *where, argument]), capsys, said)


def test_what_cannot_be_trained_says_so(tmp_path, capsys):
    where = ["--config", "configs/isnet/explain.py", "--workdir", str(tmp_path)]
    check(main(["train", *where]), capsys, "no config.task, so there is nothing to train")
    check(main(["predict", *where]), capsys, "no config.jobs.predict")
