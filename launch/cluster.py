"""Hosts: joining the other processes, waiting for and agreeing with them, hearing of preemption."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from launch.experiment import SetupError, told

# JAX's own variable and two that go with it; the options of the command line set them.
COORDINATOR, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
TIMEOUT = "LAUNCH_HOST_TIMEOUT"
_LONGEST_WAIT_MS = 30 * 24 * 3600 * 1000


class Preempted(Exception):
    """The scheduler has asked this run to end; what there is has been saved."""


class FailedAlone(Exception):
    """This host has failed and others have not, so that they wait for it where it will not come."""


def join(*, preemptible: bool = False) -> None:
    """Connect to the other processes, if there are any; before any use of a device.

    They are found by a coordinator that the command line or the environment names, else by what
    JAX detects (SLURM, Cloud TPU, Kubernetes, Open MPI). Of one process that is so described, too.

    Args:
        preemptible: SIGTERM on one host is told to all by `Preemption`, instead of ending it.

    Raises:
        SetupError: the description is not whole, or the others cannot be reached.
    """
    address = os.environ.get(COORDINATOR, "")
    if jax.distributed.is_initialized() or address == "none":
        return
    jax.config.update("jax_enable_preemption_service", preemptible)
    how: dict[str, Any] = {"heartbeat_timeout_seconds": _patience()}
    count, index = _whole(COUNT), _whole(INDEX)
    if address and count is not None and index is not None:
        how |= {
            "num_processes": count,
            "process_id": index,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(**how)
    except (ValueError, RuntimeError) as error:
        # Without a coordinator this is what JAX says where it detects no cluster, or where
        # somebody who calls us as a library has used a device already.
        if not address and ("must be defined" in told(error) or "should be" in told(error)):
            return
        if not address and "must be called before" in told(error):
            return
        where = f" at {address}" if address else ""
        raise SetupError(f"the other hosts cannot be joined{where}: {told(error)}") from error


def _whole(name: str) -> int | None:
    text = os.environ.get(name, "")
    if text and not text.isdecimal():
        raise SetupError(f"{name}={text!r} must be a whole number")
    return int(text) if text else None


def _patience() -> int:
    return _whole(TIMEOUT) or 100


# ------------------------------------------------------------------------- together


def barrier(name: str) -> None:
    """Wait until every host has come here, however long that takes (a lost host ends all)."""
    wait = ocp.multihost.get_barrier_sync_fn()
    wait(key=name, timeout_ms=_LONGEST_WAIT_MS)


def first_says(value: bool | int) -> int:
    """What the first host passed, on all of them: for what is read from files that it writes."""
    if jax.process_count() == 1:
        return int(value)
    barrier("first says")  # devices do not wait long for each other
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def all_say(ok: bool) -> bool:
    """Whether every host passed True."""
    if jax.process_count() == 1:
        return ok
    barrier("all say")
    return bool(multihost_utils.process_allgather(np.int32(ok)).all())


def fail_together(error: BaseException) -> None:
    """After `error` on this host: return once every other host has failed, too.

    Raises:
        FailedAlone: some have not within the time after which a silent host is lost.
    """
    if isinstance(error, FailedAlone):
        raise error
    wait = ocp.multihost.get_barrier_sync_fn()
    try:
        wait(key="failed", timeout_ms=_patience() * 1000)
    except jax.errors.JaxRuntimeError:
        raise FailedAlone(f"this host alone failed: {told(error)}") from error


_STATUS = re.compile(r"(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")


def lost(error: BaseException | None) -> bool:
    """Whether an error is what programs and barriers raise when another host is gone."""
    if error is None or not jax.distributed.is_initialized():
        return False
    # Some come as ValueError with the status in the text.
    return isinstance(error, jax.errors.JaxRuntimeError) or bool(_STATUS.match(str(error)))


def leave(code: int | None = None) -> None:
    """Before the process ends: wait for the others, or after a failure do not let them wait.

    With a `code` of a failure that may be of this host alone, the process ends here and now: its
    orderly end would wait for hosts that wait for it.
    """
    if not jax.distributed.is_initialized():
        return
    if code is None:
        barrier("done")
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# ------------------------------------------------------------------------- preemption


class Preemption:
    """Hears SIGTERM while the block runs, of any host, and has all hosts stop at the same step."""

    def __init__(self) -> None:
        self._calls, self._noticed = 0, False
        self._before: Any = None  # the handler of the signal

    def asked(self) -> bool:
        """Whether to save and stop now. Every host must call this equally often, once a step."""
        self._calls += 1
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(self._calls)
        return self._noticed

    def stop(self, told: str) -> None:
        """Raise `Preempted`(told) if it was asked; called as `asked` is."""
        if self.asked():
            raise Preempted(told)

    def __enter__(self) -> Preemption:
        main = threading.current_thread() is threading.main_thread()
        if main and not jax.distributed.is_initialized():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noticed = True
