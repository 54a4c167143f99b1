"""A job over the files of a folder: it upper-cases their text; what a text says can go wrong."""

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Shout:
    places = ("texts",)
    seen: tuple[str, ...] = ()  # the cases that ran in this process, for the tests

    def __init__(
        self,
        *,
        texts: str,
        suffix: str = "!",
        ids: tuple = (),
        limit: Any = None,
        repeat: int = 1,
        window: Sequence[int] | None = None,
        margin: int | Sequence[int] = 0,
    ) -> None:
        if not Path(texts).is_dir():
            raise FileNotFoundError(f"texts = {texts!r} is no folder")
        self.folder, self.suffix, self.ids = Path(texts), suffix, ids
        self.limit, self.repeat, self.window, self.margin = limit, repeat, window, margin
        self.barrier = threading.Barrier(2)

    def cases(self) -> Sequence[str]:
        return self.ids or sorted(p.stem for p in self.folder.glob("*.txt"))

    def fingerprint(self, case: str) -> str:
        return (self.folder / f"{case}.txt").read_text()

    def run(self, case: str, folder: Path) -> Mapping[str, Any]:
        Shout.seen += (case,)
        text = (self.folder / f"{case}.txt").read_text()
        (folder / "half.txt").write_text(text[:1])
        if text == "broken":
            raise ValueError(f"{case}:\n{case}.txt is broken")
        if text == "bug":
            raise RuntimeError("a bug")
        if text == "interrupt":
            raise KeyboardInterrupt
        if text == "full":
            raise OSError(28, "No space left on device")
        if text == "kill":
            (self.folder / f"{case}.txt").write_text("sound")
            os.kill(os.getpid(), signal.SIGKILL)
        if text == "SIGTERM":  # as from a scheduler, in the middle of the case
            (self.folder / f"{case}.txt").write_text("sound")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        if text == "together":
            self.barrier.wait(timeout=30)
        if text == "nested":
            return {"a": [1]}
        (folder / "loud.txt").write_text(text.upper() * self.repeat + self.suffix)
        return {"letters": len(text), "share": float("nan"), "name": case}

    def finish(self, rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
        if any(row["letters"] == 13 for row in rows):
            raise ValueError("13 letters")
        (folder / "all.txt").write_text(" ".join(f"{r['case']}={r['letters']}" for r in rows))


class Score:
    """A job that is given a trained state: the norm of the toy's first array and the case."""

    def __init__(self, *, ids: tuple) -> None:
        self.ids = ids

    def cases(self) -> Sequence[str]:
        return self.ids

    def restore(self, task: Any, state: Mapping[str, Any]) -> None:
        if "narrow" in self.ids:
            raise ValueError("the state is too wide")
        self.width, self.total = task.width, float(abs(state["params"]["first"]).sum())

    def run(self, case: str, folder: Path) -> Mapping[str, Any]:
        return {"total": self.total, "width": self.width}
