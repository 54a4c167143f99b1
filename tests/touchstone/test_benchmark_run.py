"""The whole run on a small folder: files, page, caveats, and the verb."""

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from launch.__main__ import main
from tests.touchstone.benchmark_cases import CASES, NAMES, ORGANS, scores, write, write_metadata
from touchstone_jax.benchmark.analysis import Analysis, Options, analyse
from touchstone_jax.benchmark.boxes import box
from touchstone_jax.benchmark.figures import heat_map
from touchstone_jax.benchmark.groups import AVERAGE_ALGORITHM, controlled
from touchstone_jax.benchmark.markup import latex, markdown
from touchstone_jax.benchmark.metadata import read_metadata
from touchstone_jax.benchmark.page import page
from touchstone_jax.benchmark.reading import read_results
from touchstone_jax.benchmark.rows import COLUMNS
from touchstone_jax.benchmark.run import write as write_analysis
from touchstone_jax.metrics import aggregate
from touchstone_jax.stats import places

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = Options(resamples=200, sizes=(10, 20, 100))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("benchmark")
    write_metadata(top / "meta.csv")
    write(top / "other", 0.8 * scores(seed=1))
    write(top / "results" / "nested")
    return top


@pytest.fixture(scope="module")
def analysis(folder: Path) -> Analysis:
    results = read_results(folder / "results")
    metadata = read_metadata(folder / "meta.csv", results.cases)
    other = read_results(folder / "other")
    return analyse(results, metadata, against=other, options=OPTIONS)


@pytest.fixture(scope="module")
def out(analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("out")
    write_analysis(analysis, made, title="A & B")
    return made


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _rows(analysis: Analysis, table: str, **about: str) -> list[dict]:
    return [row for row in analysis.tables[table] if about.items() <= row.items()]


# ---------------------------------------------------------------- tables


def test_the_table_is_the_aggregate_of_the_scores(analysis: Analysis) -> None:
    table = scores()[0, 3]  # the last algorithm, which lacks two cases
    table[[3, 4]] = np.nan
    told = aggregate(table, ORGANS)
    ours = {r["organ"]: r for r in _rows(analysis, "tables", metric="dsc", algorithm=NAMES[3])}
    for organ in ORGANS:
        mean = told.by_class[organ]
        assert (ours[organ]["mean"], ours[organ]["sd"]) == pytest.approx((mean.mean, mean.sd))
        assert ours[organ]["n"] == mean.n
    assert ours["average"]["mean"] == pytest.approx(told.per_case.mean)
    assert ours["average"]["n"] == CASES - 3 and ours["macro"]["n"] == 3
    assert ours["macro"]["mean"] == pytest.approx(told.macro.mean)
    for row in ours.values():
        assert row["low"] < row["mean"] < row["high"]


def test_the_common_view_counts_what_all_have(analysis: Analysis) -> None:
    for metric in ("dsc", "nsd"):
        for row in _rows(analysis, "tables_common", metric=metric, organ="average"):
            assert row["n"] == CASES - 3
        n = {r["n"] for r in _rows(analysis, "tables", metric=metric, organ="average")}
        assert n == {CASES - 1, CASES - 3}


def test_marks_are_the_best_and_those_it_does_not_beat(analysis: Analysis) -> None:
    for organ in ("average", *ORGANS):
        rows = _rows(analysis, "tables", metric="nsd", organ=organ)
        best = max(rows, key=lambda row: row["mean"])
        beaten = {
            r["other"]
            for r in _rows(analysis, "significance", metric="nsd", organ=organ)
            if r["algorithm"] == best["algorithm"] and r["significant"]
        }
        for row in rows:
            told = "" if row["algorithm"] in beaten else "not_worse"
            assert row["mark"] == ("best" if row is best else told)


def test_marks_of_the_common_view_come_from_the_common_cases(tmp_path: Path) -> None:
    """The second loses on cases that the last algorithm lacks, and on those only."""
    rng, table = np.random.default_rng(0), scores()
    half = range(CASES // 2, CASES)
    table[:, 1] = table[:, 0] + rng.normal(0, 1e-3, table[:, 0].shape) - 2e-4
    table[:, 1, half] = table[:, 0, half] - 0.05
    table[:, 2:] *= 0.5
    results = read_results(write(tmp_path, np.clip(table, 0, 1), absent=half))
    found = analyse(results, options=Options(resamples=100, sizes=(10,)))
    about = {"metric": "dsc", "organ": "liver"}
    marks = [
        [row["mark"] for row in _rows(found, view, **about)] for view in ("tables", "tables_common")
    ]
    assert marks == [["best", "", "", ""], ["best", "not_worse", "", ""]]


def test_heat_map_is_the_paper_s_arrangement(analysis: Analysis) -> None:
    panel = analysis.panels["dsc", "liver"]
    names = [panel.algorithms[i] for i in panel.order]
    assert names == sorted(names, key=lambda n: -panel.medians[panel.algorithms.index(n)])
    drawn = heat_map(panel)
    for y, row in enumerate(reversed(names)):
        for x, column in enumerate(names):
            (found,) = _rows(analysis, "significance", metric="dsc", organ="liver",
                             algorithm=column, other=row) or [None]  # fmt: skip
            told = np.nan if found is None else (1 if found["significant"] else -1)
            np.testing.assert_equal(drawn[y, x], told)


def test_shift_and_ranks(analysis: Analysis) -> None:
    rows = _rows(analysis, "shift", metric="dsc", organ="liver")
    assert {row["algorithm"] for row in rows} == set(NAMES)
    for row in rows:
        assert row["drop"] == pytest.approx(row["mean"] - row["mean_other"])
        assert 0 < row["low"] < row["drop"] < row["high"]
    for organ in ("average", "macro", *ORGANS):
        rows = _rows(analysis, "ranks", metric="dsc", organ=organ)
        assert sum(row["first"] for row in rows) == pytest.approx(1)
        assert sum(row["mean_place"] for row in rows) == pytest.approx(1 + 2 + 3 + 4)
        assert all(row["low"] <= row["place"] <= row["high"] for row in rows)
        told = _rows(analysis, "tables_common", metric="dsc", organ=organ)
        assert [row["place"] for row in rows] == [row["place"] for row in told]
        column = analysis.common["dsc"].columns.index(organ)
        drawn = places(analysis.common["dsc"].distribution[:, :, column])
        assert [row["mean_place"] for row in rows] == drawn.mean(0).tolist()


def test_sizes_include_the_number_at_hand(analysis: Analysis) -> None:
    rows = _rows(analysis, "sizes", metric="dsc")
    assert [row["n"] for row in rows] == [10, 20, CASES - 3, 100]
    assert np.isnan(rows[-1]["significant"]) and rows[0]["width"] > rows[-1]["width"]


# ---------------------------------------------------------------- groups


def test_a_group_that_sees_hard_organs_only_is_told_apart_by_the_control(
    analysis: Analysis,
) -> None:
    """Trauma cases show the aorta only, which is hard for all; on the aorta they are no worse."""
    about = {"metric": "dsc", "family": "diagnosis", "organ": "average"}
    about["algorithm"] = AVERAGE_ALGORITHM
    worst = {row["control"]: row for row in _rows(analysis, "worst_groups", **about)}
    assert worst["none"]["worst"] == "trauma" and worst["none"]["gap"] > 0.1
    assert worst["organs"]["gap"] < 0.06
    gates = {r["control"]: r for r in _rows(analysis, "group_tests", test="kruskal", **about)}
    assert gates["none"]["gate_open"] and not gates["organs"]["gate_open"]
    assert any("not once it is controlled" in told for told in analysis.caveats)


def test_control_is_two_way_centring() -> None:
    table = np.array([[0.9, 0.5], [0.7, np.nan], [np.nan, 0.3], [np.nan, np.nan]])
    # organ means 0.8 and 0.4; residuals +.1 +.1, -.1, -.1; mean of the means 0.6
    np.testing.assert_allclose(controlled(table), [0.7, 0.5, 0.5, np.nan])


def test_families_of_the_metadata(analysis: Analysis) -> None:
    families = analysis.metadata.families
    assert set(families) == {"ages", "sex", "diagnosis", "institute"}  # race is empty
    assert list(families["ages"]) == ["18-29", "30-39", "40-49", "50-59", "60-69"]
    assert families["ages"]["30-39"].sum() == 10 and set(families["sex"]) == {"male", "female"}
    assert any("institute: fewer than two groups" in told for told in analysis.caveats)
    (row,) = _rows(analysis, "groups", family="institute", group="Z", metric="dsc", organ="liver",
                   algorithm="U-Net")  # fmt: skip
    assert (row["n"], row["n_listed"], row["kept"]) == (0, 1, False) and np.isnan(row["mean"])


# ---------------------------------------------------------------- files


def test_every_file_is_there_and_every_csv_holds_the_rows(analysis: Analysis, out: Path) -> None:
    for name, columns in COLUMNS.items():
        rows = _csv(out / f"{name}.csv")
        assert len(rows) == len(analysis.tables[name]) and tuple(rows[0]) == columns
    for row, told in zip(_csv(out / "tables.csv"), analysis.tables["tables"], strict=True):
        assert float(row["mean"]) == told["mean"] and int(row["n"]) == told["n"]
    for metric in ("dsc", "nsd"):
        for kind in ("boxes", "significance", "ranks", "sizes", "groups"):
            assert (out / f"{kind}_{metric}.png").read_bytes()[:4] == b"\x89PNG"
            assert (out / f"{kind}_{metric}.pdf").read_bytes()[:5] == b"%PDF-"


def test_json_is_the_tables_with_null_for_nan(analysis: Analysis, out: Path) -> None:
    told = json.loads((out / "benchmark.json").read_text(), parse_constant=pytest.fail)
    assert told["caveats"] == analysis.caveats and told["cases"] == CASES
    sizes = told["tables"]["sizes"]
    assert sizes["columns"] == list(COLUMNS["sizes"]) and sizes["rows"][3][-1] is None


def test_latex_and_markdown(analysis: Analysis) -> None:
    rows = _rows(analysis, "tables", metric="dsc")
    best = max((r for r in rows if r["organ"] == "average"), key=lambda r: r["mean"])
    text = markdown(rows, "dsc")
    assert f"**{100 * best['mean']:.1f}** ± {100 * best['sd']:.1f}" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {7} and f"| {CASES - 3}–{CASES - 1} |" in text
    odd = [r | {"algorithm": "a_b & 5%"} for r in rows if r["algorithm"] == "U-Net"]
    tex = latex([*rows, *odd], "dsc")
    assert r"a\_b \& 5\% &" in tex and rf"\textbf{{{100 * best['mean']:.1f}}}" in tex
    assert {line.count("&") - line.count(r"\&") for line in tex.splitlines() if "pm" in line} == {5}


# ---------------------------------------------------------------- page


class _Page(HTMLParser):
    """The cells of each table by its id, with the attributes; what the page links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[tuple[str, dict]]]] = {}
        self.outside, self.open, self._table, self._cell = [], [], None, None
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        found = dict(attributes)
        for name in ("src", "href", "action", "data", "xlink:href"):
            if name in found and not found[name].startswith("#"):
                self.outside.append(found[name])
        if tag not in ("meta", "br", "link", "img", "input"):
            self.open.append(tag)
        if tag == "table":
            self._table = self.tables.setdefault(found.get("id", ""), [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._cell = ["", found]

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell[0] += data

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self._table[-1].append(tuple(self._cell))
            self._cell = None


def test_the_page_needs_nothing_from_outside(out: Path) -> None:
    text = (out / "report.html").read_text(encoding="utf-8")
    found = _Page(text)
    assert found.outside == [] and found.open == []
    assert not re.search(r"https?:|@import|url\(|<link|<iframe|fetch\(|XMLHttp", text)
    assert "default-src 'none'" in text and "A &amp; B" in text
    assert "home&lt;made&gt;" in text and "home<made>" not in text


@pytest.mark.parametrize(("view", "table"), [("own", "tables"), ("common", "tables_common")])
def test_the_numbers_of_the_page_are_those_of_the_tables(view: str, table: str, out: Path) -> None:
    boards = _Page((out / "report.html").read_text(encoding="utf-8")).tables
    told = {(r["metric"], r["algorithm"], r["organ"]): r for r in _csv(out / f"{table}.csv")}
    seen = 0
    for metric in ("dsc", "nsd"):
        head, *rows = boards[f"board-{metric}-{view}"]
        organs = [attributes["data-key"] for _, attributes in head[1:]]
        assert organs == ["spleen", "liver", "aorta", "average", "macro"]
        averages = [float(row[4][1]["data-value"]) for row in rows[:-1]]
        assert averages == sorted(averages, reverse=True)
        for name, *cells in rows[:-1]:
            for organ, (text, attributes) in zip(organs, cells, strict=True):
                row = told[metric, name[0], organ]
                assert attributes["data-value"] == row["mean"]
                assert attributes.get("class") == row["mark"]
                mean, sd = (f"{100 * float(row[k]):.1f}" for k in ("mean", "sd"))
                assert text == f"{mean} ± {sd}"
                seen += 1
    assert seen == len(told) == 2 * 4 * 5


def test_the_other_tables_of_the_page(out: Path) -> None:
    text = (out / "report.html").read_text(encoding="utf-8")
    tables = _Page(text).tables
    told = [float(r["tau"]) for r in _csv(out / "sizes.csv") if r["metric"] == "dsc"]
    assert [float(row[1][1]["data-value"]) for row in tables["sizes-dsc"][1:]] == told
    told = {r["p_holm"] for r in _csv(out / "significance.csv")}
    assert set(re.findall(r'data-p="([^"]*)"', text)) == told
    assert len(tables["cases-table"]) == 1 + len(_csv(out / "cases.csv"))
    assert [float(row[7][1]["data-value"]) for row in tables["shift-table"][1:]] == [
        float(row["drop"]) for row in _csv(out / "shift.csv")
    ]


def test_boxes_by_hand() -> None:
    values = np.array([0.0, 0.5, 0.55, 0.6, 0.65, 0.7, np.nan])
    ours = box("a", values)
    assert (ours.n, ours.low, ours.high, list(ours.outliers)) == (6, 0.5, 0.7, [0.0])
    assert (ours.q1, ours.median, ours.q3) == pytest.approx((0.5125, 0.575, 0.6375))
    assert box("a", np.array([np.nan])) is None


# ---------------------------------------------------------------- small results


def test_one_algorithm_alone_has_tables_and_a_page_but_no_tests(tmp_path: Path) -> None:
    write(tmp_path / "r", scores()[:, :1])
    found = analyse(read_results(tmp_path / "r"), options=OPTIONS)
    assert found.tables["significance"] == found.tables["ranks"] == found.tables["sizes"] == []
    assert {row["mark"] for row in found.tables["tables"]} == {"best"}
    assert any("nothing to compare" in told for told in found.caveats)
    assert "Who is significantly better" not in page(found, "one")
    write_analysis(found, tmp_path, title="one")
    assert (tmp_path / "significance.csv").read_text().count("\n") == 1
    assert not (tmp_path / "significance_dsc.png").exists()


def _lacks_an_organ(table: np.ndarray) -> None:
    table[:, 1, :, 0] = np.nan


def _one_case(table: np.ndarray) -> None:
    table[:, :, 2:] = np.nan


def _all_equal(table: np.ndarray) -> None:
    table[:] = 0.5


@pytest.mark.parametrize("spoil", [_lacks_an_organ, _one_case, _all_equal])
def test_odd_results_are_analysed_without_a_warning(spoil, folder: Path, tmp_path: Path) -> None:
    table = scores()
    spoil(table)
    results = read_results(write(tmp_path / "r", table, absent=()))
    metadata = read_metadata(folder / "meta.csv", results.cases)
    found = analyse(results, metadata, against=results, options=OPTIONS)
    assert len(found.tables["tables"]) == 2 * 4 * 5
    shown = _Page(page(found, "odd")).tables["board-dsc-common"]
    assert len(shown) == 1 + 4 + 1
    for row in found.tables["shift"]:
        assert row["drop"] == 0 and row["place"] == row["place_other"]
    for row in _rows(found, "tables", organ="aorta", algorithm="SegVol", metric="dsc"):
        assert np.isnan(row["mean"]) == (row["n"] == 0) == (spoil is _lacks_an_organ)


def test_same_results_same_files(analysis: Analysis, folder: Path, out: Path) -> None:
    results = read_results(folder / "results")
    metadata = read_metadata(folder / "meta.csv", results.cases)
    again = analyse(results, metadata, against=read_results(folder / "other"), options=OPTIONS)
    assert page(again, "A & B") == (out / "report.html").read_text(encoding="utf-8")


def test_a_tidy_table_gives_the_same_results(folder: Path, tmp_path: Path) -> None:
    ours = read_results(folder / "results")
    lines = ["algorithm,organ,metric,score,case"]
    for metric in ours.metrics:
        for i, algorithm in enumerate(ours.algorithms):
            for j, case in enumerate(ours.cases):
                if ours.listed[metric][i, j]:
                    for organ, x in zip(
                        ours.organs, ours.scores[metric][i, j].tolist(), strict=True
                    ):
                        cell = "" if np.isnan(x) else repr(x)
                        lines.append(f"{algorithm},{organ},{metric},{cell},{case}")
    (tmp_path / "tidy.csv").write_text("\n".join(lines))
    tidy = read_results(tmp_path / "tidy.csv")
    assert (tidy.algorithms, tidy.cases, tidy.organs) == (ours.algorithms, ours.cases, ours.organs)
    for metric in ours.metrics:
        np.testing.assert_array_equal(tidy.scores[metric], ours.scores[metric])
        np.testing.assert_array_equal(tidy.listed[metric], ours.listed[metric])


# ---------------------------------------------------------------- the verb


def _guide(kind: str) -> str:
    """The first block of that kind in the guide."""
    text = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")
    return re.search(rf"^```{kind}\n(.*?)^```", text, re.M | re.S)[1]


def test_the_guide_s_command_writes_everything(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"RESULTS": folder / "results", "OUT": tmp_path / "new" / "out"}
    places["metadata.csv"] = folder / "meta.csv"
    words = _guide("").removeprefix("python -m launch ").split()
    words = [str(places.get(word, word)) for word in words]
    assert main([*words, "--split", "test", "--against", str(folder / "other")]) == 0
    said = capsys.readouterr()
    assert f"4 algorithms, {CASES // 4} cases" in said.out and "benchmark 0/" in said.err
    rows = _csv(tmp_path / "new" / "out" / "tables.csv")
    assert {row["n"] for row in rows if row["organ"] == "aorta"} == {str(CASES // 4)}
    assert len(_csv(tmp_path / "new" / "out" / "shift.csv")) == 2 * 4 * 5


def test_the_guide_s_python_runs(folder: Path) -> None:
    names: dict = {}
    code = _guide("python").replace("RESULTS", str(folder / "results")).replace("2000", "200")
    exec(compile(code, "docs/benchmark.md", "exec"), names)
    assert len(names["found"].tables["tables"]) == 2 * 4 * 5


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--results", "R"], "benchmark needs --out"),
        (["--out", "O"], "benchmark needs --results"),
        (["--results", "R/none", "--out", "O"], "no such file or folder"),
        (["--results", "R", "--out", "O", "--split", "test"], "needs the metadata"),
        (["--results", "R", "--out", "O", "--data", "D"], "--data only beside --check"),
        (["--check", "R", "--out", "O"], "--check takes no --out"),
        (["--results", "R", "--out", "O", "--workdir", "W"], "benchmark takes no --workdir"),
        (["--results", "R", "--out", "M/meta.csv"], "exists"),
    ],
)
def test_the_verb_refuses_in_one_line(
    arguments: list[str], told: str, folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    places = {"R": str(folder / "results"), "O": str(tmp_path / "o"), "M": str(folder)}
    real = [re.sub(r"^[ROM](?=/|$)", lambda m: places[m[0]], a) for a in arguments]
    assert main(["benchmark", *real]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and told in said
    assert not (tmp_path / "o" / "tables.csv").exists()


# ---------------------------------------------------------------- a browser


def _browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")
    return next((found for name in names if (found := shutil.which(name))), None)


@pytest.mark.slow
def test_chromium_sorts_the_board_without_a_network(out: Path, tmp_path: Path) -> None:
    if (browser := _browser()) is None:
        pytest.skip("no Chromium on this machine")
    address = f"{(out / 'report.html').as_uri()}#sort=board-dsc-own:liver"
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    done = subprocess.run(
        [browser, *options, offline, "--dump-dom", address],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    head, *rows = _Page(done.stdout).tables["board-dsc-own"]
    assert [a["data-key"] for _, a in head if "aria-sort" in a] == ["liver"]
    column = [float(row[2][1]["data-value"]) for row in rows[:-1]]
    assert column == sorted(column, reverse=True) and len(column) == len(NAMES)
