"""Tables of scores, cases and means whose content was drawn: read, or one line with the file."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from tests.drawn import refused, spoilt_tables
from touchstone_jax.benchmark.metadata import read_metadata
from touchstone_jax.benchmark.reading import TIDY, read_results
from touchstone_jax.benchmark.shift import read_table
from touchstone_jax.evaluate.score_tables import COLUMNS, read_scores
from touchstone_jax.report.job import read_phases

WIDE = [["name", "liver", "aorta"], ["s1", "0.5", "1"], ["s2", "", "0.25"], ["s3", "0", "nan"]]
LONG = [
    TIDY,
    *([metric, "U-Net", case, "liver", "0.5"] for metric in ("dsc", "nsd") for case in ("a", "b")),
]
CASES = [["image_id", "age", "gender"], ["s1", "61", "m"], ["s2", "34", "F"], ["s3", "nan", ""]]
MEANS = [["metric", "algorithm", "organ", "mean", "n"], ["dsc", "U-Net", "liver", "0.9", "12"]]
SCORES = [
    COLUMNS,
    ["a", "liver", "dsc", "0.5", "12", "13", ""],
    ["b", "liver", "dsc", "", "", "", "x y"],
]
PHASES = [["BDMAP ID", "CT Phase"], ["a", "venous"], ["b", "Plain"]]


@given(spoilt_tables(WIDE))
def test_the_scores_of_an_algorithm(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "U-Net" / "dsc.csv"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(raw)
    if not refused(read_results, tmp_path, names=""):
        found = read_results(tmp_path).scores["dsc"]
        assert ((found >= 0) & (found <= 1) | np.isnan(found)).all()


@given(spoilt_tables(LONG))
def test_a_tidy_table(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(raw)
    if not refused(read_results, tmp_path / "t.csv", names=""):
        for found in read_results(tmp_path / "t.csv").scores.values():
            assert ((found >= 0) & (found <= 1) | np.isnan(found)).all()


@given(spoilt_tables(CASES, delimiter=";"))
def test_the_metadata_of_cases(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "m.csv").write_bytes(raw)
    refused(read_metadata, tmp_path / "m.csv", ["s1", "s2", "s3"], names="m.csv")


@given(spoilt_tables(MEANS))
def test_a_table_of_means(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(raw)
    refused(read_table, tmp_path / "t.csv", names="t.csv")


@given(spoilt_tables(SCORES))
def test_the_scores_that_an_evaluation_left(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "scores.csv").write_bytes(raw)
    refused(read_scores, tmp_path / "scores.csv", names="scores.csv")


@given(spoilt_tables(PHASES))
def test_the_phases_of_cts(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "p.csv").write_bytes(raw)
    refused(read_phases, tmp_path / "p.csv", names="p.csv")


HEAD = b"metric,algorithm,organ,mean"
SPOILT = {
    "a byte that is no UTF-8": ("t.csv", HEAD + b"\ndsc,\xff,liver,1\n", "UTF-8"),
    "a quote without end": ("t.csv", HEAD + b'\n"dsc,a,liver,1\n', "t.csv"),
    "a short row": ("t.csv", HEAD + b"\ndsc,a\n", "t.csv:2: 2 cells; expected 4"),
    "a long row": ("t.csv", HEAD + b"\ndsc,a,liver,1,2\n", "5 cells; expected 4"),
    "a column twice": ("t.csv", HEAD + b",mean\n", "two columns 'mean'"),
    "metadata, twice": ("m.csv", b"name;age;age\ns1;30;90\n", "column 'age' twice"),
    "metadata, no case": ("m.csv", b"name;age\n;30\n", "m.csv:2: no case name"),
    "metadata, a quote": ("m.csv", b'name;age\n"s1;30\n', "m.csv:2: no CSV file"),
    "scores, a digit apart": ("dsc.csv", b"name,liver\ns1,0_9\n", "s1: liver: '0_9' is no number"),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_table_is_told(how: str, tmp_path: Path) -> None:
    name, raw, said = SPOILT[how]
    (tmp_path / "U").mkdir()
    file = tmp_path / "U" / name
    file.write_bytes(raw)
    read = {
        "t.csv": lambda: read_table(file),
        "m.csv": lambda: read_metadata(file, ["s1"]),
        "dsc.csv": lambda: read_results(tmp_path),
    }[name]
    with pytest.raises(ValueError, match=said):
        read()


def test_a_cell_of_several_lines_is_one_cell(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(
        b'\xef\xbb\xbfname,pathology\r\ns1,"a\r\nb"\r\ns2,"c\x0bd"\r\n'
    )
    found = read_metadata(tmp_path / "m.csv", ["s1", "s2"])
    assert found.rows["s1"]["pathology"] == "a\nb" and len(found.rows) == 2
