"""A run that stands still says where: every thread's stack after so many minutes without a step."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from types import TracebackType
from typing import TextIO


class Watchdog:
    """While the block runs, prints all stacks when `beat` was not called for `minutes`.

    Once for each standstill; nothing is ended, as a slow evaluation looks the same as a hang.
    """

    def __init__(self, minutes: float, what: str, out: TextIO | None = None) -> None:
        """Watches nothing if `minutes` is 0. `out` needs a file descriptor; None is stderr."""
        self._seconds, self._what, self._out = minutes * 60, what, out
        self._since, self._doing, self._told = time.monotonic(), "starting", False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, doing: str) -> None:
        """Something goes on: from now on `doing`."""
        self._since, self._doing, self._told = time.monotonic(), doing, False

    def __enter__(self) -> Watchdog:
        self.beat(self._doing)
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        if self._seconds:
            self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(min(1.0, self._seconds / 4)):
            still = time.monotonic() - self._since
            if still > self._seconds and not self._told:
                self._told = True
                self._tell(still / 60)

    def _tell(self, minutes: float) -> None:
        out = self._out or sys.stderr
        print(
            f"{self._what}: nothing has gone on for {minutes:.2g} minutes ({self._doing}); it is "
            "not ended, and this is where each thread is:",
            file=out,
            flush=True,
        )
        faulthandler.dump_traceback(file=out, all_threads=True)
