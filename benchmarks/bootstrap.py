"""Bootstrap, rankings and paired tests of a benchmark: all columns at once against scipy in a loop.

``python benchmarks/bootstrap.py [--results DIR] [--rounds 5] [--out FILE.json]``

Without --results a table of the released results' shape is drawn (19 algorithms, 743 cases, 9
organs and their average, six tenths of the cells empty). Both sides give 95 % intervals of all 190
means from 2,000 resamples each; scipy's is called column by column with its vectorised mean. Sides
alternate in one process, the first round warms up, the median of the others' ratios is printed, in
wall and in CPU seconds (which a busy machine disturbs less). Answers are compared before. BLAS gets
one thread unless OPENBLAS_NUM_THREADS says otherwise: scipy's side uses one, and on a busy machine
the second only waits.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from scipy import stats as scipy_stats

from touchstone_jax import stats
from touchstone_jax.benchmark.reading import read_results
from touchstone_jax.benchmark.results import mean_of_there

RESAMPLES = 2000


def drawn() -> np.ndarray:
    """(algorithm, case, organ) with gaps shared by the algorithms, as organs out of view are."""
    rng = np.random.default_rng(0)
    table = rng.beta(6, 1.5, (19, 743, 9)) ** rng.uniform(0.5, 2, (19, 1, 1))
    table[:, rng.random((743, 9)) < 0.5] = np.nan
    table[:, rng.random(743) < 0.17] = np.nan
    return table


def columns(table: np.ndarray) -> np.ndarray:
    """(case, 19 x 10): the organs and the average of every algorithm."""
    table = np.concatenate([table, mean_of_there(table)[..., None]], axis=2)
    return table.transpose(1, 0, 2).reshape(table.shape[1], -1)


def scipy_bootstrap(values: np.ndarray, method: str) -> np.ndarray:
    """(low and high, column), one column after the other."""
    found = []
    for column in values.T:
        kept = column[~np.isnan(column)]
        done = scipy_stats.bootstrap(
            (kept,), np.mean, n_resamples=RESAMPLES, method=method, rng=np.random.default_rng(0)
        )
        found.append(done.confidence_interval)
    return np.array(found).T


def our_bootstrap(values: np.ndarray, method: str) -> np.ndarray:
    """(low and high, column)."""
    found = stats.bootstrap_means(values, resamples=RESAMPLES, method=method)
    return np.array([found.low, found.high])


def scipy_ranks(scores: np.ndarray) -> np.ndarray:
    """Mean place of each method over resamples, one resample after the other."""
    rng, found = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        some = scores[:, rng.integers(0, scores.shape[1], scores.shape[1])]
        found.append(scipy_stats.rankdata(-some.mean(axis=1)))
    return np.mean(found, axis=0)


def our_ranks(scores: np.ndarray) -> np.ndarray:
    """Mean place of each method over resamples."""
    means = stats.weighted_means(stats.draw_counts(scores.shape[1], RESAMPLES, seed=0), scores.T)
    return stats.rank_stability(means, scores.mean(axis=1)).mean_place


def scipy_pairs(scores: np.ndarray) -> np.ndarray:
    """One-sided p of every ordered pair, one test after the other."""
    p = np.full((len(scores),) * 2, np.nan)
    for i, j in itertools.permutations(range(len(scores)), 2):
        both = ~np.isnan(scores[i]) & ~np.isnan(scores[j])
        test = scipy_stats.wilcoxon(scores[i, both], scores[j, both], alternative="greater")
        p[i, j] = test.pvalue
    return p


def our_pairs(scores: np.ndarray) -> np.ndarray:
    """One-sided p of every ordered pair."""
    return stats.compare_pairs(scores).p


def agree(name: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference; refuses an answer that is not the same.

    Draws of intervals and ranks differ where columns have gaps, so they agree but statistically.
    """
    apart = float(np.nanmax(np.abs(ours - theirs)))
    limit = {"pairs": 1e-12, "ranks": 1e-9}.get(name, 0.02)
    if apart > limit:
        raise SystemExit(f"{name}: answers differ by {apart}, more than {limit}")
    return apart


def timed(function: Callable, *arguments) -> tuple[float, float, np.ndarray]:
    """(wall s, CPU s, answer)."""
    wall, cpu = time.perf_counter(), time.process_time()
    answer = function(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu, answer


def measure(table: np.ndarray, rounds: int) -> list[dict]:
    """Medians of each comparison over the rounds after the first."""
    values, average = columns(table), mean_of_there(table)
    first, second = np.triu_indices(len(average), 1)
    differences = (average[first] - average[second]).T
    common = average[:, ~np.isnan(average).any(axis=0)]
    sides = {
        "intervals, BCa": (our_bootstrap, scipy_bootstrap, (values, "bca")),
        "intervals, percentile": (our_bootstrap, scipy_bootstrap, (values, "percentile")),
        "differences, BCa": (our_bootstrap, scipy_bootstrap, (differences, "bca")),
        "ranks": (our_ranks, scipy_ranks, (common,)),
        "pairs": (our_pairs, scipy_pairs, (average,)),
    }
    rows = []
    for name, (ours, theirs, arguments) in sides.items():
        seconds = []
        for _ in range(rounds + 1):
            mine, rival = timed(ours, *arguments), timed(theirs, *arguments)
            apart = agree(name, mine[2], rival[2])
            seconds.append((*mine[:2], *rival[:2]))
        kept = np.array(seconds[1:])
        ratios = (kept[:, 2] / kept[:, 0]).tolist()
        rows.append(
            {
                "what": name,
                "seconds": float(np.median(kept[:, 0])),
                "cpu_seconds": float(np.median(kept[:, 1])),
                "scipy_seconds": float(np.median(kept[:, 2])),
                "scipy_cpu_seconds": float(np.median(kept[:, 3])),
                "times_faster": statistics.median(ratios),
                "range": [min(ratios), max(ratios)],
                "times_less_cpu": float(np.median(kept[:, 3] / kept[:, 1])),
                "largest_difference": apart,
            }
        )
    return rows


def main() -> None:
    """Runs the comparison and prints it; ``--out`` also writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", help="folder of results; default: a table drawn at random")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out")
    options = parser.parse_args()
    table = read_results(options.results).scores["dsc"] if options.results else drawn()
    about = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "scipy")},
        "table": "released results" if options.results else "drawn",
        "shape": table.shape,
        "resamples": RESAMPLES,
        "rounds": options.rounds,
        "blas_threads": os.environ["OPENBLAS_NUM_THREADS"],
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }
    print(about)
    rows = measure(table, options.rounds)
    for row in rows:
        print(
            f"{row['what']:22s} {row['seconds']:7.3f} s  scipy {row['scipy_seconds']:7.3f} s  "
            f"{row['times_faster']:6.1f}x [{row['range'][0]:.1f}, {row['range'][1]:.1f}]  "
            f"cpu {row['times_less_cpu']:.1f}x"
        )
    if options.out:
        text = json.dumps({"about": about, "rows": rows}, indent=1)
        Path(options.out).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
