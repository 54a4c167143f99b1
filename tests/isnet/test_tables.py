"""Predictions' scores and the tables made of them, against values worked out by hand."""

import csv
import math

import numpy as np
import pytest

from isnet_jax.metrics import roc_auc
from isnet_jax.predictions import Predictions
from isnet_jax.tables import MethodTables, delong_rows, grid, summary_rows


def predicted(right, n=40, classes=2, seed=0, mass=0.5):
    """Logits that are right for the first `right` of n images, half of each class."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % classes
    said = np.where(np.arange(n) < right, label, (label + 1) % classes)
    logits = np.eye(classes)[said] * 3 + rng.normal(size=(n, classes))
    logits[np.arange(n), said] += 3
    return Predictions(logits, label, np.full(n, mass))


def test_scores_of_one_label_an_image():
    said = predicted(30)
    scores = said.scores()
    assert scores["accuracy"] == 0.75 and scores["mass"] == 0.5
    assert scores["macro_f1"] == pytest.approx(0.75, abs=1e-5)  # 15 of 20 in each class
    p = np.exp(said.logits[:, 1]) / np.exp(said.logits).sum(1)
    assert scores["auc"] == pytest.approx(roc_auc(said.label == 1, p))


def test_scores_of_several_findings():
    label = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    logits = np.array([[2, -1], [-1, -2], [-3, 1], [-4, 2]], np.float32)
    said = Predictions(logits, label, np.full(4, np.nan))
    scores = said.scores()
    assert scores["accuracy"] == 7 / 8 and math.isnan(scores["mass"])
    assert scores["auc"] == 1  # each finding is ranked perfectly
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 1) / 2, abs=1e-5)


def test_auc_without_two_of_each_kind_is_nan():
    one = Predictions(np.zeros((3, 2)), np.zeros(3, int), np.zeros(3))
    assert math.isnan(one.auc())


FOUND = {
    "mnist-erm": {s: {"iid": predicted(39, seed=s), "shift": predicted(10 + s)} for s in (0, 1, 2)},
    "mnist-isnet": {s: {"iid": predicted(38), "shift": predicted(36)} for s in (0, 1, 2)},
    "other-erm": {0: {"test": predicted(20)}},
}


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_tables_hold_means_gaps_intervals_and_tests(tmp_path):
    text = MethodTables(f1_samples=200).tables(FOUND, tmp_path)
    assert (tmp_path / "tables.md").read_text() == text
    assert "## mnist" in text and "## other" in text
    row = next(line for line in text.splitlines() if line.startswith("| erm"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    # 39 of 40; 10, 11, 12 of 40; their difference.
    assert cells[:5] == ["erm", "3", "97.5 ± 0.0", "27.5 ± 2.5", "70.0 ± 2.5"]
    assert len(rows(tmp_path / "scores.csv")) == 3 * 2 * 2 + 1
    one = rows(tmp_path / "summary.csv")[1]
    assert float(one["accuracy_mean"]) == pytest.approx(0.275)
    assert float(one["accuracy_sd"]) == pytest.approx(0.025)
    for row in rows(tmp_path / "f1.csv"):
        assert 0 <= float(row["low"]) <= float(row["mean"]) <= float(row["high"]) <= 1
    assert {row["class"] for row in rows(tmp_path / "f1.csv")} == {"0", "1", "macro"}
    tests = rows(tmp_path / "delong.csv")
    assert len(tests) == 3 * 2 * 2 and {row["method"] for row in tests} == {"isnet"}
    shift = [row for row in tests if row["split"] == "shift"]
    assert all(float(r["auc"]) > float(r["reference_auc"]) for r in shift)
    assert all(float(r["log10_p"]) < -1.3 and float(r["z"]) > 0 for r in shift)


def test_without_a_reference_nothing_is_compared():
    assert delong_rows({"a-b": {0: {"t": predicted(30)}}}, "erm") == []


def test_alone_a_method_has_no_tests_but_their_columns(tmp_path):
    found = {"a-b": {0: {"t": predicted(30)}}}
    assert "t - t" not in MethodTables(f1_samples=200).tables(found, tmp_path)
    head = (tmp_path / "delong.csv").read_text().splitlines()
    assert head == ["data,method,seed,split,class,auc,reference_auc,z,log10_p"]


def test_the_gap_is_that_of_one_test_set_with_and_against_its_marker(tmp_path):
    kinds = ("a_biased", "a", "a_deceiving", "z_biased", "z", "z_deceiving")
    found = {"x-erm": {0: {name: predicted(40 - i) for i, name in enumerate(kinds)}}}
    text = MethodTables(f1_samples=200).tables(found, tmp_path)
    head, _, row = text.splitlines()[4:7]
    at = [cell.strip() for cell in head.split("|")].index("a_biased - a_deceiving")
    assert row.split("|")[at].strip() == "5.0"  # 40 and 38 of 40


def test_what_is_not_a_number_is_left_out_of_means():
    base = {"data": "d", "method": "m", "split": "s", "macro_f1": 1.0, "auc": math.nan, "mass": 0.5}
    (row,) = summary_rows([base | {"seed": 0, "accuracy": 0.5}, base | {"seed": 1, "accuracy": 1}])
    assert row["accuracy_mean"] == 0.75 and math.isnan(row["auc_mean"]) and row["seeds"] == 2


def test_a_grid_is_aligned():
    lines = grid(["a", "bb"], [["long", "c"]]).splitlines()
    assert len({len(line) for line in lines}) == 1 and lines[1].startswith("| ----")


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="f1_samples=0"):
        MethodTables(f1_samples=0)
