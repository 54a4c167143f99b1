"""The cases of a job: which are done, running those that are not, one line of record for each.

`cases.jsonl` is the truth about what is done. With several processes each writes a file of its
own beside it, so that no two ever append to one; the first process joins them at the end.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from launch.ending import Terminated
from launch.experiment import REFUSALS, SetupError, told
from launch.workdir import no_space

DONE, FAILED = "done", "failed"
_LONGEST = 200  # bytes of a case's name; file systems end at 255 and we add a prefix
_OURS = re.compile(r"(job\.json|cases(\.\d+)?\.jsonl)(\.part)?")  # files beside the cases' folders
Row = dict[str, Any]


def check_names(cases: Sequence[str], what: str) -> list[str]:
    """The ids as a list, every one of them good as a folder's name and there once.

    Raises:
        SetupError: no case at all, an id that is no folder name, or one that is there twice.
    """
    seen: set[str] = set()
    for case in cases:
        word = isinstance(case, str) and case.isprintable() and 0 < len(case.encode()) <= _LONGEST
        if not word or case.startswith(".") or "/" in case or "\\" in case:
            raise SetupError(
                f"{what}: case {case!r} cannot name a folder (1 to {_LONGEST} bytes, no '/', "
                "no leading '.')"
            )
        if _OURS.fullmatch(case):
            raise SetupError(f"{what}: case {case!r} cannot name a folder: the launcher's own file")
        if case in seen:
            raise SetupError(f"{what}: case {case!r} is there twice")
        seen.add(case)
    if not seen:
        raise SetupError(f"{what}: there are no cases")
    return list(cases)


# ------------------------------------------------------------------------- the record


def _rows(file: Path) -> list[Row]:
    """The sound lines of a record; a damaged one is passed over, so that its case is done again."""
    found = []
    # Not read as text: a disk error may leave bytes that are none.
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:  # or the first process has just joined it to its own
        lines = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        kinds = {"case": str, "status": str, "ended": float}
        if isinstance(row, dict) and all(isinstance(row.get(k), t) for k, t in kinds.items()):
            found.append(row)
    return found


class Record:
    """What is known of the cases in a job's folder; safe to write from several threads."""

    def __init__(self, folder: Path, *, process: int = 0, count: int = 1) -> None:
        """Reads what all processes of earlier starts wrote; `process` of `count` writes its own."""
        self.folder, self._process = folder, process
        self._own = self._file(process)
        self.rows = self._newest(folder.glob("cases*.jsonl"))
        mine = _rows(self._own)
        if process == 0:  # of processes that are no more
            gone = [p for p in self._parts() if int(p.suffixes[0][1:]) >= count]
            mine = [*mine, *(row for path in gone for row in _rows(path))]
            self._write(mine)
            for path in gone:
                path.unlink()
        else:
            self._write(mine)  # without a line cut short, to which the next would be glued
        self._lock = threading.Lock()
        self._stream = self._own.open("a", encoding="utf-8")

    def _file(self, process: int) -> Path:
        return self.folder / (f"cases.{process}.jsonl" if process else "cases.jsonl")

    def _parts(self) -> list[Path]:
        found = self.folder.glob("cases.*.jsonl")
        return [p for p in found if p.suffixes[0][1:].isdecimal()]

    def _newest(self, files: Iterable[Path]) -> dict[str, Row]:
        every = sorted((r for f in files for r in _rows(f)), key=lambda row: row["ended"])
        return {row["case"]: row for row in every}

    def _write(self, rows: Sequence[Row]) -> None:
        part = self._own.with_name(self._own.name + ".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        part.replace(self._own)

    def forget(self) -> None:
        """Drop all rows of this process' file."""
        self.close()
        self._write([])
        self.rows.clear()
        self._stream = self._own.open("a", encoding="utf-8")

    def add(self, row: Row) -> None:
        """Append one row and make it the case's newest."""
        row = {**row, "ended": round(time.time(), 3)}
        with self._lock:
            self._stream.write(json.dumps(row) + "\n")
            self._stream.flush()
            self.rows[row["case"]] = row

    def join(self, cases: Sequence[str]) -> None:
        """On the first process, once all have ended: one file, a row a case, in their order."""
        self.close()
        if self._process == 0:
            self.rows = self._newest([self._own, *self._parts()])
            others = [row for case, row in self.rows.items() if case not in set(cases)]
            self._write([*(self.rows[c] for c in cases if c in self.rows), *others])
            for path in self._parts():
                path.unlink()

    def close(self) -> None:
        """Close the file; what was added is there already."""
        self._stream.close()


# ------------------------------------------------------------------------- one case


def fingerprint_of(job: Any, case: str) -> str:
    """What the job says the case's result depends on; "" where it says nothing."""
    return str(job.fingerprint(case)) if hasattr(job, "fingerprint") else ""


def is_done(job: Any, case: str, record: Record) -> bool:
    """Whether the case has its folder and was made from what its inputs are now."""
    row = record.rows.get(case)
    if row is None or row["status"] != DONE or not isinstance(row.get("row"), dict):
        return False
    if not (record.folder / case).is_dir():
        return False
    try:
        return row.get("fingerprint") == fingerprint_of(job, case)
    except REFUSALS:  # running it will tell what is wrong
        return False


def _plain(row: Any) -> Row:
    """The row as JSON knows it; a number that is not finite becomes null, as in metrics.jsonl."""
    if not isinstance(row, Mapping):
        raise TypeError(f"run must return a mapping, not {type(row).__name__}")
    made: Row = {}
    for name, value in row.items():
        value = value.item() if hasattr(value, "item") else value
        if not isinstance(name, str) or name == "case":
            raise TypeError(f"run returned the key {name!r}; keys are words other than 'case'")
        if not (value is None or isinstance(value, bool | int | float | str)):
            raise TypeError(f"run returned {name} = {value!r}; values are numbers, text or None")
        made[name] = None if isinstance(value, float) and not math.isfinite(value) else value
    return made


def run_case(job: Any, case: str, folder: Path) -> Row:
    """Run one case in a folder of its own that gets its name when it is whole; the record's row.

    Raises:
        OSError: the disk is full; whatever else a case raises is in the row.
    """
    begin, part = time.monotonic(), folder / f".part-{case}"
    row: Row = {"case": case, "status": FAILED}
    shutil.rmtree(part, ignore_errors=True)
    try:
        row["fingerprint"] = fingerprint_of(job, case)
        part.mkdir()
        made = _plain(job.run(case, part))
        shutil.rmtree(folder / case, ignore_errors=True)
        part.rename(folder / case)
        row |= {"status": DONE, "row": made}
    except Exception as error:
        if no_space(error):
            raise
        # What is there was made from other inputs.
        shutil.rmtree(folder / case, ignore_errors=True)
        # Whoever shows the row names the case; messages of data code begin with it, too.
        row["error"] = " ".join(told(error).split()).removeprefix(f"{case}: ")
        row["traceback"] = "".join(traceback.format_exception(error))
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return {**row, "seconds": round(time.monotonic() - begin, 3)}


# ------------------------------------------------------------------------- all of them


def run_cases(
    job: Any,
    cases: Sequence[str],
    record: Record,
    *,
    workers: int = 1,
    show: Callable[[Row], None] = lambda row: None,
) -> None:
    """Run every one of `cases`, in `workers` threads, and record it; `show` is told each row.

    Ctrl-C and SIGTERM end the case at hand; of several, those that are running are let finish
    after Ctrl-C, and given up after SIGTERM.

    Raises:
        OSError: the disk is full; the cases that wait are not begun.
    """

    def one(case: str) -> None:
        row = run_case(job, case, record.folder)
        record.add(row)
        show(row)

    if workers == 1:
        for case in cases:
            one(case)
        return
    pool, waits = ThreadPoolExecutor(workers, thread_name_prefix="case"), True
    futures = [pool.submit(one, case) for case in cases]
    try:
        for future in futures:
            future.result()
    except Terminated:
        waits = False
        raise
    finally:
        pool.shutdown(wait=waits, cancel_futures=True)
