"""The whole analysis in memory: every table, every panel, and what to be careful about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from touchstone_jax.benchmark.caveats import caveats
from touchstone_jax.benchmark.groups import comparison_rows, group_rows
from touchstone_jax.benchmark.metadata import Metadata
from touchstone_jax.benchmark.results import Results
from touchstone_jax.benchmark.rows import Row
from touchstone_jax.benchmark.shift import Published, published, shift_rows
from touchstone_jax.benchmark.significance import Panel, columns, panel, significance_rows
from touchstone_jax.benchmark.stability import SIZES, rank_rows, size_rows
from touchstone_jax.benchmark.table import Estimates, case_rows, estimate, table_rows

Show = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, what was done)."""


@dataclass(frozen=True)
class Options:
    """Settings of `analyse`.

    Attributes:
        resamples: of every bootstrap.
        seed: of every draw.
        least: groups of fewer scored cases are not tested (5 in Touchstone's plots, 6 in its
            composed figures).
        sizes: test-set sizes that are simulated.
    """

    resamples: int = 2000
    seed: int = 0
    least: int = 5
    sizes: Sequence[int] = SIZES

    def __post_init__(self) -> None:
        for name, least in (("resamples", 100), ("seed", 0), ("least", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}; expected at least {least}")


@dataclass(frozen=True, eq=False)
class Analysis:
    """What `analyse` found.

    Attributes:
        tables: name to rows, as in `touchstone_jax.benchmark.rows.COLUMNS`.
        panels: (metric, organ) to the tests on each algorithm's own cases.
        own, common: metric to estimates on each algorithm's own cases, and where all have scores.
        caveats: sentences.
    """

    results: Results
    metadata: Metadata | None
    options: Options
    tables: dict[str, list[Row]] = field(default_factory=dict)
    panels: dict[tuple[str, str], Panel] = field(default_factory=dict)
    own: dict[str, Estimates] = field(default_factory=dict)
    common: dict[str, Estimates] = field(default_factory=dict)
    caveats: list[str] = field(default_factory=list)


def analyse(
    results: Results,
    metadata: Metadata | None = None,
    *,
    against: Results | Published | None = None,
    options: Options | None = None,
    show: Show = lambda done, total, what: None,
) -> Analysis:
    """Everything that the benchmark has to say.

    Args:
        results: the scores.
        metadata: of the cases; without it there are no groups.
        against: another test set of the same algorithms, for the table of shifts.
        options: settings.
        show: told of the progress.

    Raises:
        ValueError: the two test sets share nothing.
    """
    done = Analysis(results, metadata, options or Options())
    if against is not None:
        _refuse_strangers(results, against)
    names = ("tables", "tables_common", "significance", "cases", "ranks", "sizes")
    done.tables.update({name: [] for name in names})
    done.tables.update({name: [] for name in ("groups", "group_tests", "worst_groups", "shift")})
    steps = _steps(done, against)
    for count, (what, step) in enumerate(steps):
        show(count, len(steps), what)
        step()
    show(len(steps), len(steps), "analysed")
    told = caveats(results, metadata, done.own, done.common, done.tables)
    done.caveats.extend(told)
    return done


def _refuse_strangers(results: Results, against: Results | Published) -> None:
    theirs = (
        set(against.algorithms)
        if isinstance(against, Results)
        else {key[1] for key in against.means}
    )
    if not theirs & set(results.algorithms):
        raise ValueError(
            f"the other test set has no algorithm of this one; it has {', '.join(sorted(theirs))}"
        )


def _steps(
    done: Analysis, against: Results | Published | None
) -> list[tuple[str, Callable[[], None]]]:
    steps: list[tuple[str, Callable[[], None]]] = []
    for metric in done.results.metrics:
        upper = metric.upper()
        steps.append((f"{upper}: means", partial(_estimate, done, metric)))
        for organ in columns(done.results):
            steps.append((f"{upper}: tests, {organ}", partial(_test, done, metric, organ)))
        steps.append((f"{upper}: tables", partial(_tables, done, metric)))
        steps.append((f"{upper}: test-set size", partial(_sizes, done, metric)))
        for family in done.metadata.families if done.metadata else ():
            steps.append((f"{upper}: {family}", partial(_groups, done, metric, family)))
    steps.append(("significance over all panels", lambda: _significance(done)))
    if against is not None:
        steps.append(("the other test set", lambda: _shift(done, against)))
    return steps


def _how(done: Analysis) -> dict[str, int]:
    return {"resamples": done.options.resamples, "seed": done.options.seed}


def _estimate(done: Analysis, metric: str) -> None:
    done.own[metric] = estimate(done.results, metric, **_how(done))
    done.common[metric] = estimate(done.results.common(), metric, **_how(done))


def _test(done: Analysis, metric: str, organ: str) -> None:
    done.panels[metric, organ] = panel(done.results, metric, organ, **_how(done))


def _tables(done: Analysis, metric: str) -> None:
    results, common = done.results, done.results.common()
    own = {organ: p for (m, organ), p in done.panels.items() if m == metric}
    done.tables["tables"] += table_rows(results, done.own[metric], own)
    # Tests pair cases that two algorithms share; here those that all share, so they are others.
    fair = {organ: panel(common, metric, organ, resamples=0) for organ in own}
    done.tables["tables_common"] += table_rows(common, done.common[metric], fair)
    done.tables["cases"] += case_rows(results, metric)
    if len(results.algorithms) > 1:
        done.tables["ranks"] += rank_rows(results, done.common[metric])


def _sizes(done: Analysis, metric: str) -> None:
    how = done.options
    done.tables["sizes"] += size_rows(done.results, metric, sizes=how.sizes, seed=how.seed)


def _groups(done: Analysis, metric: str, family: str) -> None:
    assert done.metadata is not None  # which has the family
    groups, least = done.metadata.families[family], done.options.least
    listed = done.metadata.listed[family]
    done.tables["groups"] += group_rows(done.results, metric, family, groups, listed, least=least)
    tests, worst = comparison_rows(done.results, metric, family, groups, least=least)
    done.tables["group_tests"] += tests
    done.tables["worst_groups"] += worst


def _significance(done: Analysis) -> None:
    done.tables["significance"] += significance_rows(list(done.panels.values()))


def _shift(done: Analysis, against: Results | Published) -> None:
    ours = published(done.own, done.results.algorithms)
    if isinstance(against, Results):
        found = {m: estimate(against, m, **_how(done)) for m in against.metrics}
        against = published(found, against.algorithms)
    done.tables["shift"] += shift_rows(ours, against)
