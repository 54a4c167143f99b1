"""From a folder of results to a folder of tables, figures and one page."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from touchstone_jax.benchmark.analysis import Analysis, Options, Show, analyse
from touchstone_jax.benchmark.figures import figures, save
from touchstone_jax.benchmark.markup import latex, markdown
from touchstone_jax.benchmark.metadata import read_metadata
from touchstone_jax.benchmark.page import page
from touchstone_jax.benchmark.reading import read_results
from touchstone_jax.benchmark.results import Results
from touchstone_jax.benchmark.rows import COLUMNS, write_csv, write_json
from touchstone_jax.benchmark.shift import Published, read_table


def run(
    results: str | Path,
    out: str | Path,
    *,
    metadata: str | Path | None = None,
    against: str | Path | None = None,
    split: str | None = None,
    options: Options | None = None,
    show: Show = lambda done, total, what: None,
) -> str:
    """Read, analyse and write everything; what was written, in a line.

    Args:
        results: folder or tidy table of `touchstone_jax.benchmark.reading`.
        out: folder for ``tables.csv``, ``significance.csv``, ``groups.csv``, … (all of
            `touchstone_jax.benchmark.rows.COLUMNS`), ``benchmark.json``, ``table_*.tex``,
            ``table_*.md``, figures and ``report.html``; made if need be.
        metadata: table of the cases, for groups.
        against: results of another test set, or a table of its means (.csv with a column "mean").
        split: only cases with that value in the metadata's column "split".
        options: settings.
        show: told of the progress.

    Raises:
        FileNotFoundError, ValueError: whatever the inputs lack, before any computing.
        ImportError: no matplotlib.
    """
    if find_spec("matplotlib") is None:
        raise ImportError("figures need matplotlib: pip install 'isnet-touchstone-jax[benchmark]'")
    if split is not None and metadata is None:
        raise ValueError(f"split={split!r} needs the metadata, whose column 'split' says which")
    found = read_results(results)
    about = None
    if metadata is not None:
        about = read_metadata(metadata, found.cases)
        if split is not None:
            found = found.subset(about.cases("split", split))
            about = read_metadata(metadata, found.cases)
    other = None if against is None else _other(Path(against))
    out = _writable(Path(out))
    analysis = analyse(found, about, against=other, options=options, show=show)
    write(analysis, out, title=f"Benchmark: {Path(results).resolve().name}", show=show)
    return (
        f"{len(found.algorithms)} algorithms, {len(found.cases)} cases: {out / 'report.html'}, "
        f"{len(COLUMNS)} tables, {len(analysis.caveats)} caveats"
    )


def _other(path: Path) -> Results | Published:
    if path.is_file():
        with path.open(encoding="utf-8-sig") as stream:
            header = stream.readline().strip().split(",")
        if "mean" in header:
            return read_table(path)
    return read_results(path)


def _writable(out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise PermissionError(f"{out} cannot be written to")
    return out


def write(
    analysis: Analysis,
    out: Path,
    *,
    title: str = "Benchmark",
    show: Show = lambda done, total, what: None,
) -> None:
    """Write an analysis into a folder that exists; names as in `run`.

    Raises:
        OSError: the folder cannot be written to.
    """
    steps: list[tuple[str, Callable[[], None]]] = [("tables", lambda: write_tables(analysis, out))]
    for name, draw in figures(analysis):
        steps.append((f"figure {name}", partial(_draw, draw, out, name)))
    steps.append(("page", lambda: write_page(analysis, out, title)))
    for count, (what, step) in enumerate(steps):
        show(count, len(steps), what)
        step()
    show(len(steps), len(steps), "written")


def _draw(draw: Callable[[], Any], out: Path, name: str) -> None:
    save(draw(), out, name)


def write_page(analysis: Analysis, out: Path, title: str) -> None:
    """Write ``report.html``."""
    (out / "report.html").write_text(page(analysis, title), encoding="utf-8")


def write_tables(analysis: Analysis, out: Path) -> None:
    """Write every CSV, ``benchmark.json``, and the leaderboards as LaTeX and Markdown."""
    for name, columns in COLUMNS.items():
        write_csv(out / f"{name}.csv", analysis.tables[name], columns)
    for metric in analysis.results.metrics:
        for view, suffix in (("tables", ""), ("tables_common", "_common")):
            rows = analysis.tables[view]
            (out / f"table_{metric}{suffix}.tex").write_text(latex(rows, metric), "utf-8")
            (out / f"table_{metric}{suffix}.md").write_text(markdown(rows, metric), "utf-8")
    results, options = analysis.results, analysis.options
    write_json(
        out / "benchmark.json",
        {
            "metrics": results.metrics,
            "algorithms": results.algorithms,
            "organs": results.organs,
            "cases": len(results.cases),
            "options": {
                "resamples": options.resamples,
                "seed": options.seed,
                "least": options.least,
                "sizes": list(options.sizes),
            },
            "caveats": analysis.caveats,
            "tables": {
                name: {
                    "columns": columns,
                    "rows": [[row[column] for column in columns] for row in analysis.tables[name]],
                }
                for name, columns in COLUMNS.items()
            },
        },
    )
