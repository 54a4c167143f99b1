"""How the program ends: told to by SIGTERM, by a failure, or with other hosts waiting for it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GOES_ON = "the same command goes on from what is saved"


class Terminated(BaseException):
    """SIGTERM: like KeyboardInterrupt no Exception, as it is no failure of what was being done."""


@contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """Turn SIGTERM into `Terminated` while the block runs, so that half-made files are cleared.

    Training hears it by itself, see `launch.cluster.Preemption`. A second one ends at once. Where
    the caller handles the signal, or calls from a thread, everything stays as it is.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _unwind(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated


def terminated(verb: str) -> None:
    """Say so and end by the signal, as whoever sent it expects (143 in a shell).

    The process waits neither for its threads nor for other hosts, who see its connection break.
    """
    print(f"{verb}: stopped, as SIGTERM asked; {GOES_ON}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def failed(code: int, told: str) -> int:
    """Print the error and take leave of the other hosts; `code`."""
    print(f"error: {told}", file=sys.stderr)
    leave(code)
    return code


def of_several() -> bool:
    """Whether this process has joined others."""
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized()


def leave(code: int | None = None) -> None:
    """`launch.cluster.leave`, if this process has joined others."""
    if of_several():
        from launch import cluster

        cluster.leave(code)
