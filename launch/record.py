"""What a run tells: metrics.jsonl is the truth; the bar, TensorBoard and progress.png are views."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import rich.console
import rich.progress

from launch.card import Leaf
from launch.experiment import SetupError

PLOT_EVERY_SECONDS = 30.0


def check_extras(tensorboard: bool) -> None:
    """Raises SetupError if the card asks for TensorBoard and its writer is not installed."""
    if tensorboard and find_spec("tensorboardX") is None:
        raise SetupError(
            "config.tensorboard = True needs the extra `tensorboard`: "
            "pip install 'isnet-touchstone-jax[tensorboard]'"
        )


def rows(file: Path) -> list[dict[str, Any]]:
    """The sound rows of a metrics.jsonl; a line that a kill or a disk has hurt is left out."""
    found = []
    # Not read as text: a disk error may leave bytes that are none.
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        kinds = {"step": int, "split": str, "seconds": int | float}
        if isinstance(row, dict) and all(isinstance(row.get(k), t) for k, t in kinds.items()):
            numbers = (v for k, v in row.items() if k not in kinds)
            if all(v is None or isinstance(v, int | float) for v in numbers):
                found.append(row)
    return found


def _truncate(file: Path, step: int) -> list[dict[str, Any]]:
    kept = [row for row in rows(file) if row["step"] <= step]
    part = file.with_suffix(".part")
    part.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    part.replace(file)
    return kept


class Recorder:
    """Writes the rows of one leaf and shows how far it is. On hosts other than 0 it is silent."""

    def __init__(self, leaf: Leaf, start: int, *, host: int) -> None:
        """Opens the leaf's metrics.jsonl, without the rows beyond step `start`."""
        self.active = host == 0
        if not self.active:
            return
        self.folder, self.label, self.steps = leaf.folder, leaf.label, leaf.experiment.steps
        kept = _truncate(self.folder / "metrics.jsonl", start)
        self._file = (self.folder / "metrics.jsonl").open("a", encoding="utf-8")
        # Time goes on where the restored row left it, so that it stays monotonic.
        self._begin = time.monotonic() - (kept[-1]["seconds"] if kept else 0.0)
        self._plotted, self._told = time.monotonic(), -1
        self._board = None
        if leaf.experiment.tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=start + 1)
        # Where nobody watches a bar, plain lines are written instead.
        self._bar = bar() if sys.stderr.isatty() else None
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.steps, completed=start, told="")

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Add one row: `values` of `split` after `step` updates."""
        if not self.active:
            return
        seconds = round(time.monotonic() - self._begin, 3)
        told = {k: v if math.isfinite(v) else None for k, v in values.items()}
        row = {"step": step, "split": split, **told, "seconds": seconds}
        self._file.write(json.dumps(row) + "\n")
        # Must reach the system before the checkpoint of this step does.
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{split}/{name}", value, step)
        self._show(step, split, values)

    def _show(self, step: int, split: str, values: Mapping[str, float]) -> None:
        told = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
        if self._bar is not None:
            if split == "train":
                loss = f"loss {values['loss']:.4g}"
                self._bar.update(self._task, completed=step, told=loss)
            else:
                self._bar.console.print(f"{self.label} step {step} {split}: {told}")
        elif split != "train" or step * 10 // self.steps > self._told or step == self.steps:
            self._told = step * 10 // self.steps
            print(f"{self.label} step {step}/{self.steps} {split}: {told}", file=sys.stderr)

    def plot(self, *, last: bool = False) -> None:
        """Draw progress.png anew (not more often than every 30 seconds, save for the `last`)."""
        if not self.active or not (last or time.monotonic() - self._plotted > PLOT_EVERY_SECONDS):
            return
        self._plotted = time.monotonic()
        if find_spec("matplotlib") is None:
            if last:
                print(
                    "no progress.png: it needs the extra `plot`: "
                    "pip install 'isnet-touchstone-jax[plot]'",
                    file=sys.stderr,
                )
            return
        draw(self.folder / "metrics.jsonl", self.folder / "progress.png")

    def close(self) -> None:
        """Close the files and take the bar off the terminal."""
        if self.active:
            self._file.close()
            if self._bar is not None:
                self._bar.stop()
            if self._board is not None:
                self._board.close()


def bar() -> rich.progress.Progress:
    """A progress bar on stderr: how far, what was told last, elapsed time, ETA."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[told]}"),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("ETA"),
        rich.progress.TimeRemainingColumn(),
        console=rich.console.Console(stderr=True),
    )


def draw(source: Path, target: Path) -> None:
    """One panel a metric, one line a split, from `source` (metrics.jsonl) into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows(source):
        for name, value in row.items():
            if name not in ("step", "split", "seconds") and value is not None:
                curves[name][row["split"]].append((row["step"], value))
    if not curves:
        return
    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    figure = Figure(figsize=(4.5 * columns, 3 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (name, splits) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(lines, columns, place)
        for split, points in splits.items():
            axes.plot(*zip(*points, strict=True), label=split, marker="." * (len(points) < 30))
        axes.set(title=name, xlabel="step")
        axes.legend()
    figure.savefig(target, dpi=100)
