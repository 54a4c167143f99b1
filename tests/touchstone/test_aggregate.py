"""Averages against loops by hand and against the published table, with all that was left out."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from touchstone_jax.metrics import aggregate, common_cases

NAN, INF = float("nan"), float("inf")


def _table() -> np.ndarray:
    return np.array([[0.5, NAN, 0.9], [NAN, NAN, NAN], [0.7, 0.4, NAN], [0.0, NAN, 1.0]])


def _by_hand(values: list[float]) -> tuple[float, float, int]:
    kept = [v for v in values if not math.isnan(v)]
    mean = sum(kept) / len(kept)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in kept) / len(kept)), len(kept)


# ---------------------------------------------------------------- by hand


def test_every_average_by_hand() -> None:
    table = _table()
    ours = aggregate(table, ["liver", "spleen", "aorta"])
    for name, column in zip(["liver", "spleen", "aorta"], table.T.tolist(), strict=True):
        mean, sd, n = _by_hand(column)
        got = ours.by_class[name]
        assert (got.mean, got.sd) == pytest.approx((mean, sd)) and (got.n, got.dropped) == (
            n,
            4 - n,
        )
    np.testing.assert_allclose(ours.case_means, [0.7, NAN, 0.55, 0.5])
    np.testing.assert_array_equal(ours.case_classes, [2, 0, 2, 2])
    mean, sd, n = _by_hand([0.7, 0.55, 0.5])
    assert (ours.per_case.mean, ours.per_case.sd) == pytest.approx((mean, sd))
    assert (ours.per_case.n, ours.per_case.dropped) == (n, 1)
    mean, sd, n = _by_hand([0.4, 0.4, 0.95])
    assert (ours.macro.mean, ours.macro.sd) == pytest.approx((mean, sd))
    assert (ours.macro.n, ours.macro.dropped) == (n, 0)
    assert (ours.dropped_nan, ours.dropped_infinite) == (6, 0)


def test_a_class_without_scores_and_no_cases_at_all() -> None:
    table = _table()
    table[:, 1] = NAN
    ours = aggregate(table, "abc")
    assert math.isnan(ours.by_class["b"].mean) and math.isnan(ours.by_class["b"].sd)
    assert (ours.by_class["b"].n, ours.by_class["b"].dropped) == (0, 4)
    assert ours.macro.mean == pytest.approx((0.4 + 0.95) / 2) and ours.macro.dropped == 1
    none = aggregate(np.zeros((0, 3)), "abc")
    assert math.isnan(none.per_case.mean) and none.per_case.n == 0 and none.case_means.size == 0


def test_infinite_scores_are_refused_or_counted() -> None:
    table = _table()
    table[0, 2] = INF
    with pytest.raises(ValueError, match=r"case 0, class 'aorta': inf; expected finite"):
        aggregate(table, ["liver", "spleen", "aorta"])
    ours = aggregate(table, ["liver", "spleen", "aorta"], infinite="drop")
    assert (ours.dropped_nan, ours.dropped_infinite) == (6, 1)
    assert ours.by_class["aorta"].mean == 1 and ours.by_class["aorta"].dropped == 3
    assert table[0, 2] == INF  # the caller's table stays


def test_common_cases() -> None:
    other = _table()[::-1]
    np.testing.assert_array_equal(common_cases([_table()]), [True, False, True, True])
    np.testing.assert_array_equal(common_cases([_table(), other]), [True, False, False, True])
    for tables in ([], [np.zeros((2, 3)), np.zeros((3, 3))]):
        with pytest.raises(ValueError, match=r"tables of .* cases; expected one number"):
            common_cases(tables)


@pytest.mark.parametrize(
    ("scores", "classes", "options", "told"),
    [
        (np.zeros(3), "abc", {}, r"scores of shape \(3,\); expected \(cases, 3 classes\)"),
        (np.zeros((2, 3)), "ab", {}, r"scores of shape \(2, 3\); expected \(cases, 2 classes\)"),
        (np.zeros((2, 3)), "aba", {}, "expected each name once"),
        (np.zeros((2, 3)), "abc", {"infinite": "keep"}, "unknown policy for infinite scores"),
    ],
)
def test_refusals(scores: np.ndarray, classes: str, options: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        aggregate(scores, classes, **options)


# ---------------------------------------------------------------- the published table


def _published(folder: Path) -> tuple[list[str], dict[str, dict[str, list[float]]]]:
    """Organs, and DSC of each case of each algorithm, by the paper's names."""
    organs, scores = [], {}
    for file in folder.glob("*/dsc.csv"):
        name = file.parent.name
        for group in ("MONAI_", "nnU-Net_", "Vision_Language_", "_"):
            name = name.removeprefix(group)
        with open(file, newline="") as opened:
            (_, *organs), *rows = csv.reader(opened)
        plain = "".join(letter for letter in name.lower() if letter.isalnum())
        scores[plain] = {case: [float(v) if v else NAN for v in cells] for case, *cells in rows}
    return organs, scores


def test_the_published_table(golden: Path) -> None:
    folder = golden.parent / "data" / "touchstone_results" / "totalsegmentator_results"
    told = json.loads((golden / "touchstone" / "table3.json").read_text())["dsc"]
    organs, scores = _published(folder)
    assert len(scores) == len(told) == 19
    cases = sorted({case for of_cases in scores.values() for case in of_cases})
    tables = {}
    for name, values in told.items():
        of_cases = scores["".join(letter for letter in name.lower() if letter.isalnum())]
        ours = aggregate(np.array(list(of_cases.values())), organs)
        checked = [(ours.by_class[organ], values[organ]) for organ in organs]
        for got, value in [*checked, (ours.per_case, values["average"])]:
            assert (got.mean, got.sd) == pytest.approx((value["mean"], value["sd0"]), rel=1e-12)
            assert (got.n, got.dropped) == (value["n"], len(of_cases) - value["n"])
        assert ours.macro.mean == pytest.approx(values["macro"]["mean"], rel=1e-12)
        tables[name] = np.array([of_cases.get(case, [NAN] * len(organs)) for case in cases])
    # On the cases that all have, the published best is no longer the best.
    common = common_cases(list(tables.values()))
    assert common.sum() == 529
    means = {name: aggregate(table[common], organs).per_case.mean for name, table in tables.items()}
    assert max(means, key=means.get) == "ResEncL"
    assert (round(100 * means["ResEncL"], 2), round(100 * means["STU-Net-L"], 2)) == (79.09, 78.93)
