"""Time of structured reports against the released generator on its own phantoms.

    python benchmarks/report.py [--golden ../shared/golden/report] [--repeats 3]

Per case: CPU seconds of reading, measuring, staging, writing the text and drawing the pictures,
the smallest of the repeats, for both rule sets; and how many times the released generator took
(its CPU seconds are in the golden files, measured with one process on two cores).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

from touchstone_jax.io import read_ct
from touchstone_jax.layouts.case_files import volumes
from touchstone_jax.report.case import report_case
from touchstone_jax.report.masks import Masks
from touchstone_jax.report.pictures import draw_lesions
from touchstone_jax.report.write import write_report

RESULTS = Path(__file__).parent / "results" / "report_cpu.json"


def seconds(folder: Path, rules: str, repeats: int) -> tuple[float, float]:
    """Smallest CPU and wall seconds of one case."""
    cpu, wall = [], []
    for _ in range(repeats):
        begin, clock = time.process_time(), time.perf_counter()
        ct = read_ct(folder / "ct.nii.gz", case=folder.name)
        files = volumes(folder / "segmentations")
        masks = Masks(folder.name, files, ct.geometry, ct.array.shape)
        report = report_case(ct, masks, case=folder.name, rules=rules)
        write_report(report)
        with tempfile.TemporaryDirectory() as place:
            draw_lesions(ct, report, Path(place))
        cpu.append(time.process_time() - begin)
        wall.append(time.perf_counter() - clock)
    return min(cpu), min(wall)


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    beside = Path(__file__).resolve().parents[2] / "shared/golden/report"
    parser.add_argument("--golden", type=Path, default=beside)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rows = []
    for folder in sorted(options.golden.glob("case_*")):
        expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
        theirs = expected["runs"]["th10"]["cpu_seconds"]
        theirs_wall = expected["runs"]["th10"]["seconds"]
        row = {
            "case": folder.name,
            "released_cpu_s": round(theirs, 1),
            "released_wall_s": round(theirs_wall, 1),
        }
        for rules in ("published", "corrected"):
            cpu, wall = seconds(folder, rules, options.repeats)
            row |= {f"{rules}_cpu_s": round(cpu, 2), f"{rules}_wall_s": round(wall, 2)}
            row[f"{rules}_ratio"] = round(theirs / cpu, 1)
        rows.append(row)
        print(row, flush=True)
    total = {"case": "all", "released_cpu_s": round(sum(r["released_cpu_s"] for r in rows), 1)}
    for rules in ("published", "corrected"):
        ours = sum(r[f"{rules}_cpu_s"] for r in rows)
        total |= {f"{rules}_cpu_s": round(ours, 2)}
        total[f"{rules}_ratio"] = round(total["released_cpu_s"] / ours, 1)
    print(total)
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "load_average_1min": round(os.getloadavg()[0], 1),
        "repeats": options.repeats,
    }
    text = json.dumps({**about, "rows": [*rows, total]}, indent=1)
    RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
