"""The verb that has no card: scores of many algorithms in, tables and one page out.

What is done with the scores is named here and known elsewhere; no JAX is needed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from launch.experiment import REFUSALS, SetupError, told
from launch.workdir import no_space

if TYPE_CHECKING:
    from rich.progress import Progress

ANALYSIS = "touchstone_jax.benchmark.run:run"
"""Of (results, out, *, metadata, against, split, show) -> what was written, in a line."""
CHECK = "touchstone_jax.benchmark.submit:check"
"""Of (folder, *, results, data) -> problems, a line each."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    about = {
        "results": "benchmark: folder of ALGORITHM/dsc.csv and nsd.csv, or one tidy table",
        "metadata": "benchmark: table of the cases (age, sex, scanner, …), for groups",
        "against": "benchmark: results of another test set, or a table of its means",
        "out": "benchmark: folder for tables, figures and report.html",
        "check": "benchmark: a newcomer's folder: say what is missing, write nothing",
        "data": "benchmark --check: the data set that was predicted",
    }
    for name, text in about.items():
        parser.add_argument(f"--{name}", help=text)


def benchmark(options: argparse.Namespace, _overrides: list[tuple[str, str]]) -> int:
    """Analyse --results into --out, or --check a folder; 1 if the check found something.

    Raises:
        SetupError: whatever must be put right first.
    """
    return _check(options) if options.check else _analyse(options)


def _analyse(options: argparse.Namespace) -> int:
    for name in ("results", "out"):
        if not getattr(options, name):
            raise SetupError(f"benchmark needs --{name}")
    if options.data:
        raise SetupError("benchmark takes --data only beside --check")
    with _Meter() as meter:
        said = _call(
            ANALYSIS,
            options.results,
            options.out,
            metadata=options.metadata,
            against=options.against,
            split=options.split,
            show=meter.show,
        )
    print(said)
    return 0


def _check(options: argparse.Namespace) -> int:
    for name in ("metadata", "against", "out", "split"):
        if getattr(options, name):
            raise SetupError(f"benchmark --check takes no --{name}")
    problems = _call(CHECK, options.check, results=options.results, data=options.data)
    for problem in problems:
        print(problem)
    said = f"{len(problems)} problems in {options.check}" if problems else "nothing is missing"
    print(said, file=sys.stderr)
    return int(bool(problems))


def _call(name: str, *arguments: Any, **keywords: Any) -> Any:
    module, attribute = name.split(":")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        return function(*arguments, **keywords)
    except REFUSALS as error:
        if no_space(error):
            raise
        raise SetupError(told(error)) from error


class _Meter:
    """How far it is: a bar where somebody watches, else a line every tenth of the way."""

    def __enter__(self) -> _Meter:
        self._bar: Progress | None = None
        self._tasks: dict[int, Any] = {}
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, total: int, what: str) -> None:
        """Told of each step; a stage begins with ``done`` = 0."""
        stage = len(self._tasks) if done == 0 else len(self._tasks) - 1
        if not sys.stderr.isatty():
            tenth = done * 10 // max(1, total)
            if self._tasks.setdefault(stage, -1) < tenth:
                self._tasks[stage] = tenth
                print(f"benchmark {done}/{total} {what}", file=sys.stderr)
            return
        if self._bar is None:
            from launch.record import bar

            self._bar = bar()
            self._bar.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task("benchmark", total=total, told="")
        self._bar.update(self._tasks[stage], completed=done, told=what)
