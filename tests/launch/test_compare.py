"""The benchmark of a card: trains what is missing, keeps predictions, prints the tables of all."""

import numpy as np
import pytest

from launch.__main__ import main

CARD = """
def get_config():
    data = {"source": "mnist_bias", "shrink": 4, "limits": (40, 10, 20)}
    model = {"name": "simple_cnn", "widths": (2, 3), "pooled": 1}
    return {
        "task": {
            "name": "isnet_jax.tasks:MaskedClassifier", "data": data, "model": model,
            "method": "erm", "options": {},
        },
        "steps": 2, "batch_size": 8, "seeds": 2,
        "optimizer": {"name": "sgd", "learning_rate": 0.01},
        "runs": {"mnist-erm": {}, "mnist-rrr": {"task": {"method": "rrr"}}},
        "jobs": {"benchmark": {"name": "isnet_jax.tables:MethodTables", "f1_samples": 50}},
    }
"""


@pytest.fixture
def card(tmp_path):
    path = tmp_path / "card.py"
    path.write_text(CARD)
    return path


def run(card, folder, *more):
    return main(["benchmark", "--config", str(card), "--workdir", str(folder), *more])


def test_a_card_s_benchmark_and_its_resumption(card, tmp_path, capsys):
    assert run(card, tmp_path / "w") == 0
    said = capsys.readouterr()
    assert "## mnist" in said.out and "benchmark 2/2 mnist-rrr" in said.err
    for name in ("tables.md", "scores.csv", "summary.csv", "f1.csv", "delong.csv"):
        assert (tmp_path / "w" / name).is_file()
    kept = tmp_path / "w" / "mnist-rrr" / "seed1" / "predictions.npz"
    with np.load(kept) as file:
        assert file["deceiving/logits"].shape == (20, 10)
    kept.unlink()
    assert run(card, tmp_path / "w") == 0  # one run is scored again, none trained
    again = capsys.readouterr()
    assert "benchmark 1/1 mnist-rrr" in again.err and "step 2/2" not in again.err + again.out
    assert again.out.endswith((tmp_path / "w" / "tables.md").read_text())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--config.runs.mnist-rrr.task.options={'wait': 1}"], "option of method 'rrr' 'wait'"),
        (["--config.jobs.benchmark.f1_samples=0"], "f1_samples=0"),
        (["--results", "R"], "either --config or --results"),
    ],
)
def test_what_is_wrong_is_told_before_anything_trains(card, arguments, told, tmp_path, capsys):
    assert run(card, tmp_path / "w", *arguments) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1
    assert not (tmp_path / "w" / "mnist-erm").exists()


def test_a_card_without_tables_says_so(tmp_path, capsys):
    path = tmp_path / "card.py"
    path.write_text(CARD.replace('"jobs"', '"jobs": {}, "runs": {}} or {"jobs"'))
    assert run(path, tmp_path / "w") == 2
    assert "no config.jobs.benchmark" in capsys.readouterr().err
