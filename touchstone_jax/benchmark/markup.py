"""The leaderboard for papers and web pages: LaTeX and Markdown, in percent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from touchstone_jax.benchmark.names import AVERAGE
from touchstone_jax.benchmark.rows import Row

_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%_#${}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}


def percent(value: float) -> str:
    """A share as the paper prints it: percent with one decimal; "–" for NaN."""
    return "–" if value != value else f"{100 * value:.1f}"


def grid(
    rows: Iterable[Row], metric: str
) -> tuple[tuple[str, ...], tuple[str, ...], dict[tuple[str, str], Row]]:
    """(algorithms by descending average, organs, cell) of one metric of tables.csv's rows."""
    cells = {(row["algorithm"], row["organ"]): row for row in rows if row["metric"] == metric}
    organs = tuple(dict.fromkeys(organ for _, organ in cells))

    def rank(algorithm: str) -> float:
        place = cells[algorithm, AVERAGE]["place"]
        return place if place == place else float("inf")

    return tuple(sorted(dict.fromkeys(a for a, _ in cells), key=rank)), organs, cells


def markdown(rows: Sequence[Row], metric: str) -> str:
    """A Markdown table: mean ± SD, the best in bold, those not significantly worse with °."""
    algorithms, organs, cells = grid(rows, metric)
    lines = [
        f"| {metric.upper()} (%) | " + " | ".join(organ.replace("_", " ") for organ in organs),
        "|---" * (1 + len(organs)),
    ]
    for algorithm in algorithms:
        shown = [algorithm.replace("|", r"\|")]
        for organ in organs:
            cell = cells[algorithm, organ]
            mean = percent(cell["mean"])
            mean = {"best": f"**{mean}**", "not_worse": f"{mean}°"}.get(cell["mark"], mean)
            shown.append(f"{mean} ± {percent(cell['sd'])}")
        lines.append("| " + " | ".join(shown))
    lines.append("| n | " + " | ".join(_counts(cells, algorithms, organ) for organ in organs))
    return "\n".join(f"{line} |" for line in lines) + f"\n\n{LEGEND}\n"


LEGEND = (
    "Mean ± SD (population) in percent. Bold: best. °: the best is not significantly better "
    "(one-sided paired Wilcoxon, Holm over all pairs of the column, p ≥ 0.05). average: mean over "
    "cases of each case's mean; macro: mean of the organs' means (no test). n: cases, the range "
    "over the algorithms; of macro, organs."
)


def latex(rows: Sequence[Row], metric: str) -> str:
    """A booktabs tabular: the best in bold, those not significantly worse underlined."""
    algorithms, organs, cells = grid(rows, metric)
    heads = " & ".join(_escaped(organ.replace("_", " ")) for organ in organs)
    lines = [
        f"% {LEGEND.replace('°', 'underlined')} Needs booktabs.",
        rf"\begin{{tabular}}{{l{'c' * len(organs)}}}",
        r"\toprule",
        rf"{metric.upper()} (\%) & {heads} \\",
        r"\midrule",
    ]
    for algorithm in algorithms:
        shown = [_escaped(algorithm)]
        for organ in organs:
            cell = cells[algorithm, organ]
            mean = percent(cell["mean"]).replace("–", "--")
            wrapped = {"best": rf"\textbf{{{mean}}}", "not_worse": rf"\underline{{{mean}}}"}
            sd = percent(cell["sd"]).replace("–", "--")
            shown.append(rf"{wrapped.get(cell['mark'], mean)}$\pm${sd}")
        lines.append(" & ".join(shown) + r" \\")
    counts = [_counts(cells, algorithms, organ).replace("–", "--") for organ in organs]
    lines += [r"\midrule", f"$n$ & {' & '.join(counts)}" + r" \\", r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def _counts(cells: dict[tuple[str, str], Row], algorithms: Sequence[str], organ: str) -> str:
    found = sorted({cells[algorithm, organ]["n"] for algorithm in algorithms})
    return str(found[0]) if len(found) == 1 else f"{found[0]}–{found[-1]}"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
