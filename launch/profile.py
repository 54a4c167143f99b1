"""A trace of some steps for TensorBoard's profiler or xprof: what every operation took."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

SKIP = 2  # steps before the first that is recorded: they may still compile and fill caches


class Profile:
    """Records steps number skip + 1 … skip + `steps` into `folder`/profile, then is silent."""

    def __init__(self, folder: Path, steps: int, skip: int = SKIP) -> None:
        self.folder, self.steps, self.skip = folder / "profile", steps, skip
        self._seen, self._running = 0, False

    def wrap(self, update: Callable[..., Any]) -> Callable[..., Any]:
        """`update`, each call a step; the last recorded one is waited for.

        Without steps to record it is `update` itself.
        """
        if not self.steps:
            return update

        def recorded(*arguments: Any) -> Any:
            with self.step():
                made = update(*arguments)
                if self._running and self._seen + 1 == self.skip + self.steps:
                    jax.block_until_ready(made)
                return made

        return recorded

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """The block is one step."""
        if self._seen == self.skip and self.steps:
            jax.profiler.start_trace(str(self.folder))
            self._running = True
        if self._running:
            with jax.profiler.StepTraceAnnotation("step", step_num=self._seen):
                yield
        else:
            yield
        self._seen += 1
        if self._running and self._seen == self.skip + self.steps:
            self.close()

    def close(self) -> None:
        """End the recording, if steps ended before it did, and say where it is."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            print(f"profile of {self._seen - self.skip} steps: {self.folder}", file=sys.stderr)
