"""What the benchmark refuses, in one line that names the file, the case and what was expected."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from launch.__main__ import main
from tests.touchstone.benchmark_cases import (
    ALGORITHMS,
    CASES,
    ORGANS,
    scores,
    write,
    write_csv,
    write_metadata,
)
from tests.touchstone.cases import dataset, rewrite, same
from touchstone_jax.benchmark.analysis import Options, analyse
from touchstone_jax.benchmark.metadata import read_metadata
from touchstone_jax.benchmark.names import TOUCHSTONE_ORGANS
from touchstone_jax.benchmark.reading import read_results
from touchstone_jax.benchmark.rows import COLUMNS
from touchstone_jax.benchmark.rows import write_csv as write_rows
from touchstone_jax.benchmark.run import write_page, write_tables
from touchstone_jax.benchmark.shift import Published, read_table, shift_rows
from touchstone_jax.benchmark.submit import check

NAN = float("nan")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "results")


def _refused(function: Callable, *arguments, match: str) -> None:
    """One line, of an error that the launcher turns into exit code 2."""
    with pytest.raises((ValueError, OSError)) as caught:
        function(*arguments)
    assert re.search(match, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- results


def _edit(old: str, new: str) -> Callable[[Path], None]:
    def edit(file: Path) -> None:
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))

    return edit


def _append(line: str) -> Callable[[Path], None]:
    return lambda file: file.write_text(f"{file.read_text()}{line}\n")


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (_edit("name,", "case,"), r"SegVol/dsc.csv: missing column 'name'.*case, aorta, liver"),
        (_edit("liver", "livre"), r"dsc.csv: unknown organ 'livre'; did you mean 'liver'"),
        (
            _edit("aorta,liver", "aorta,aorta"),
            r"columns name, aorta, aorta, spleen; expected .*once",
        ),
        (_append("s0002,0.5,0.5,0.5"), r"dsc.csv:50: case 's0002' twice"),
        (
            _append("s9999,0.5,0.5,1.2"),
            r"dsc.csv: s9999: spleen: 1.2; expected .* 0..1 \(percent\?",
        ),
        (_append("s9999,-0.1,0.5,0.5"), r"s9999: aorta: -0.1; expected a score in 0\.\.1$"),
        (_append("s9999,0.5,inf,0.5"), r"s9999: liver: inf; expected a score in 0\.\.1$"),
        (_append("s9999,0.5,good,0.5"), r"s9999: liver: 'good' is no number"),
        (_append("s9999,0.5,0.5"), r"dsc.csv:50: 3 cells; expected 4"),
        (_append(",0.5,0.5,0.5"), r"dsc.csv:50: no case name"),
        (lambda file: file.write_bytes(b"\xff\xfe\x00name"), r"dsc.csv: no CSV file in UTF-8"),
        (lambda file: file.write_text(""), r"dsc.csv: missing column 'name'"),
        (Path.unlink, r"dsc.csv is missing; other algorithms have dsc.csv"),
    ],
)
def test_a_spoilt_file_is_named(spoil: Callable, match: str, folder: Path) -> None:
    spoil(folder / "MONAI_SegVol" / "dsc.csv")
    _refused(read_results, folder, match=match)


def test_a_column_that_others_have_is_missed(folder: Path) -> None:
    file = folder / "_MedFormer" / "nsd.csv"
    rows = [line.split(",")[:3] for line in file.read_text().splitlines()]
    write_csv(file, rows)
    _refused(
        read_results, folder, match=r"MedFormer/nsd.csv: missing column 'spleen', which .* has"
    )


def test_disjoint_cases_cannot_be_compared(tmp_path: Path) -> None:
    table = scores()
    table[:, 0, : CASES // 2], table[:, 1, CASES // 2 :] = NAN, NAN
    folder = write(tmp_path / "r", table)
    _refused(read_results, folder, match="dsc: U-Net and SegVol have no evaluated case in common")


def test_an_algorithm_without_a_score(tmp_path: Path) -> None:
    table = scores()
    table[1, 2] = NAN
    _refused(read_results, write(tmp_path / "r", table), match="nsd: MedFormer has no score in any")
    _refused(
        read_results, write(tmp_path / "e", table * NAN), match="no score: every cell is empty"
    )


def test_two_folders_of_one_algorithm_and_no_folder_at_all(folder: Path, tmp_path: Path) -> None:
    (folder / "nnU-Net_U-Net").rename(folder / "U-Net")
    write(tmp_path / "again")
    (tmp_path / "again" / "nnU-Net_U-Net").rename(folder / "nnU-Net_U-Net")
    _refused(read_results, folder, match="a second folder for the algorithm 'U-Net'")
    (tmp_path / "empty").mkdir()
    _refused(read_results, tmp_path / "empty", match=r"no <algorithm>/dsc.csv or nsd.csv in it$")
    _refused(read_results, tmp_path, match="did you mean one of .*again, .*results")
    _refused(read_results, tmp_path / "none", match="none: no such file or folder")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("metric,algorithm,case,organ\n", "missing column 'score'"),
        ("metric,algorithm,case,organ,score\n", "no row below the header"),
        ("metric,algorithm,case,organ,score\nhd95,a,1,liver,1\n", "unknown metric 'hd95'"),
        ("metric,algorithm,case,organ,score\ndsc,a,1,livr,1\n", "unknown organ 'livr'"),
        ("metric,algorithm,case,organ,score\ndsc,a,1,liver,2\n", "t.csv:2: 1: liver: 2; expected"),
        ("metric,algorithm,case,organ,score\ndsc,a,1,liver\n", "4 cells; expected 5"),
        ("metric,algorithm,case,organ,score\n" + 2 * "dsc,a,1,liver,1\n", "t.csv:3: .*twice"),
        (
            "metric,algorithm,case,organ,score\ndsc,a,1,liver,1\ndsc,b,1,liver,1\nnsd,a,1,liver,1\n",
            "'b' has no rows of nsd",
        ),
    ],
)
def test_a_spoilt_tidy_table(text: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    _refused(read_results, tmp_path / "t.csv", match=match)


def test_names_that_look_like_places_are_names(tmp_path: Path) -> None:
    """Nothing is written but files of known names in the folder that was asked for."""
    rows = [
        [metric, f"../../{algorithm}</script>", f"/../../{case}", organ, str(0.1 * case)]
        for metric in ("dsc", "nsd")
        for algorithm in "ab"
        for case in range(6)
        for organ in ("liver", "aorta")
    ]
    columns = ["metric", "algorithm", "case", "organ", "score"]
    file = write_csv(tmp_path / "in" / "deep" / "t.csv", [columns, *rows])
    analysis = analyse(read_results(file), options=Options(resamples=100, sizes=(5,)))
    out = tmp_path / "out" / "deep"
    out.mkdir(parents=True)
    write_tables(analysis, out)
    write_page(analysis, out, "../../t")
    tables = {f"table_{m}{s}" for m in ("dsc", "nsd") for s in ("", "_common")}
    named = {f"{t}.{end}" for t in tables for end in ("tex", "md")}
    named |= {f"{name}.csv" for name in COLUMNS} | {"benchmark.json", "report.html"}
    made = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert made == {out / name for name in named} | {file}
    assert (out / "report.html").read_text().count("</script>") == 1


def test_unknown_names_and_empty_subsets(folder: Path) -> None:
    results = read_results(folder)
    _refused(results.of, "dcs", "liver", match="unknown metric 'dcs'; did you mean 'dsc'")
    _refused(results.of, "dsc", "pancreas", match="unknown organ 'pancreas'")
    _refused(results.subset, ["x"], match="none of the 1 cases of the subset")
    _refused(lambda: Options(resamples=3), match="resamples=3; expected at least 100")


# ---------------------------------------------------------------- metadata


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (_edit("image_id", "patient"), r"no column for the case.*columns: patient, age"),
        (_edit("26.00", "old"), r"s0006: age 'old'; expected years in 0..130"),
        (_edit("26.00", "-4"), r"s0006: age '-4'"),
        (_append("s0002;30;m;I;test;tumor;"), r":\d+: case 's0002' twice"),
        (_append("s0099;30"), r":\d+: expected 7 cells"),
        (lambda f: f.write_text("image_id;age\nx;4\n"), r"none of the 48 cases .*'s0000'.*'x'"),
        (lambda f: f.write_bytes(b"image_id\n\xff"), "not UTF-8"),
        (Path.unlink, "no such file"),
    ],
)
def test_spoilt_metadata(spoil: Callable, match: str, folder: Path, tmp_path: Path) -> None:
    file = write_metadata(tmp_path / "meta.csv")
    spoil(file)
    _refused(read_metadata, file, read_results(folder).cases, match=match)


def test_a_split_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    found = read_metadata(write_metadata(tmp_path / "m.csv"), read_results(folder).cases)
    _refused(
        found.cases, "split", "tset", match="unknown value of 'split' 'tset'; did you mean 'test'"
    )
    _refused(found.cases, "splits", "test", match="unknown column of the metadata 'splits'")


def test_groups_that_are_empty_or_small_are_shown_and_not_tested(
    folder: Path, tmp_path: Path
) -> None:
    results = read_results(folder)
    metadata = read_metadata(write_metadata(tmp_path / "m.csv"), results.cases)
    options = Options(resamples=100, sizes=(10,), least=12)
    found = analyse(results, metadata, options=options)
    kept = {(r["family"], r["group"]): r["kept"] for r in found.tables["groups"]
            if (r["metric"], r["algorithm"], r["organ"], r["control"])
            == ("dsc", "U-Net", "average", "none")}  # fmt: skip
    assert kept["sex", "male"] and not kept["ages", "18-29"] and not kept["institute", "Z"]
    assert {row["family"] for row in found.tables["group_tests"]} == {"sex", "diagnosis"}
    assert sum("fewer than two groups" in told for told in found.caveats) == 2


# ---------------------------------------------------------------- the other test set


def test_a_spoilt_table_of_means(tmp_path: Path) -> None:
    head = "metric,algorithm,organ,mean\n"
    for text, match in (
        ("metric,organ,mean\n", "missing column 'algorithm'"),
        (f"{head}dsc,a,liver,94.9\n", "94.9; expected a number in 0..1"),
        (f"{head}dsc,a,liver,x\n", "'x' is no number"),
        (f"{head}dsc,a,livre,0.9\n", "unknown organ 'livre'"),
        (head + 2 * "dsc,a,liver,0.9\n", "dsc, a, liver twice"),
    ):
        (tmp_path / "t.csv").write_text(text)
        _refused(read_table, tmp_path / "t.csv", match=match)


def test_test_sets_without_anything_in_common(folder: Path) -> None:
    results = read_results(folder)
    stranger = Published({("dsc", "X", "liver"): (0.5, 9.0)}, {})
    _refused(lambda: analyse(results, against=stranger), match="no algorithm of this one; it has X")
    ours = Published({("dsc", "Y", "liver"): (0.5, 9.0)}, {})
    _refused(shift_rows, ours, stranger, match="share no algorithm and organ")


def test_a_row_that_does_not_fit_its_columns_is_not_written(tmp_path: Path) -> None:
    _refused(write_rows, tmp_path / "x.csv", [{"a": 1}], ("a", "b"), match=r"row with \['b'\]")


# ---------------------------------------------------------------- a newcomer


@pytest.fixture
def newcomer(folder: Path, tmp_path: Path) -> Path:
    """Complete scores of one algorithm, outside of the others' folder."""
    return (folder / ALGORITHMS[0]).rename(tmp_path / "newcomer")


def test_complete_scores_lack_nothing(newcomer: Path, folder: Path) -> None:
    assert check(newcomer, results=folder) == ()
    assert check(newcomer.rename(folder / "ours"), results=folder) == ()
    assert check("ours", results=folder) == ()
    with pytest.raises(FileNotFoundError, match="submission mine: no such folder, nor .*mine"):
        check("mine", results=folder)
    (folder / "ours").rename(newcomer)
    assert main(["benchmark", "--check", str(newcomer), "--results", str(folder)]) == 0


def test_what_scores_lack_is_told(
    newcomer: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [line.split(",") for line in (newcomer / "dsc.csv").read_text().splitlines()]
    rows = [row for row in rows if row[0] not in {f"s{i:04}" for i in range(10, 20)}]
    rows[2][1] = ""  # the aorta of s0001
    rows[1][2] = "0.5"  # the liver of s0000, where nobody is evaluated
    write_csv(newcomer / "dsc.csv", [*rows, ["s9999", "0.5", "", ""]])
    assert main(["benchmark", "--check", str(newcomer), "--results", str(folder)]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0] == (
        "dsc.csv: 10 of 48 cases missing: s0010, s0011, s0012, s0013, s0014, … (10 in all)"
    )
    assert told[1] == "dsc.csv: 1 cases that the test set lacks: s9999"
    assert told[2] == "dsc.csv: liver: a score in 1 cases where nobody was evaluated: s0000"
    assert told[3].startswith(
        "dsc.csv: aorta: no score in 1 of 37 cases where others have one: s0001"
    )
    assert told[4].startswith("dsc.csv and nsd.csv have scores of other organs in s0000, s0001")
    assert len(told) == 5
    (newcomer / "nsd.csv").unlink()
    assert "nsd.csv: missing" in check(newcomer, results=folder)
    assert any("missing columns kidney_right" in line for line in check(newcomer))
    _append("s0001,2,2,2")(newcomer / "dsc.csv")
    assert any("case 's0001' twice" in line for line in check(newcomer))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases of nine masks, which serve as the data set and as predictions."""
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    dataset(folder, 3)
    return folder


def test_complete_predictions_lack_nothing(phantoms: Path) -> None:
    assert check(phantoms, data=phantoms) == ()
    assert set(ORGANS) < set(TOUCHSTONE_ORGANS)


def test_what_predictions_lack_is_told(phantoms: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    dataset(ours, 3)
    first, second, third = sorted(path for path in ours.iterdir() if path.is_dir())
    third.rename(ours / "stranger")
    (second / "segmentations" / "liver.nii.gz").unlink()
    (first / "segmentations" / "aorta.nii.gz").write_bytes(b"no image")
    rewrite(first / "segmentations" / "spleen.nii.gz", lambda voxels: voxels[:-1])
    rewrite(first / "segmentations" / "stomach.nii.gz", same, affine=np.diag([4, 4.5, 7, 1.0]))
    told = check(ours, data=phantoms)
    assert told[0] == f"predictions: 1 of 3 cases missing: {third.name}"
    assert told[1] == "predictions: 1 cases that the test set lacks: stranger"
    assert told[2].startswith(f"liver: no mask in 1 of 3 cases: {second.name}")
    rest = "\n".join(told[3:])
    assert len(told) == 6 and "spleen and CT have other shapes" in rest
    assert re.search("aorta.*(NIfTI|gzip)", rest) and "stomach lies" in rest


def test_a_folder_that_is_neither(tmp_path: Path) -> None:
    _refused(check, tmp_path, match="neither dsc.csv nor <case>/predictions")
    _refused(check, tmp_path / "none", match="none: no such folder")
