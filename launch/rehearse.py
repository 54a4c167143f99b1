"""`--rehearse PxD`: the same command in P processes of D CPU devices each, on this machine.

What several hosts do is so tried out, and tested, where there is one. JAX is not loaded here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.experiment import SetupError

LARGEST = 256  # processes, and devices of each
GRACE_SECONDS = 5.0  # for the others to tell what they know when one has ended
# Never what the end of another leads to, so it comes first where several ended between two looks.
_CAUSES = (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS)


def shape(text: str) -> tuple[int, int]:
    """(processes, devices of each) of "2x4".

    Raises:
        SetupError: it is not two numbers from 1.
    """
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found or max(map(int, found.groups())) > LARGEST:
        raise SetupError(
            f"--rehearse {text!r}: write PROCESSESxDEVICES, e.g. 2x4, each 1..{LARGEST}"
        )
    return int(found[1]), int(found[2])


def run(argv: Sequence[str], text: str, workdir: Path) -> int:
    """Run `argv` (without --rehearse) in every process; the exit code of the first that failed.

    What process 0 writes is shown; the others write to `workdir`/rehearse/process1.log ….
    SIGTERM goes to process 0, as from a scheduler; Ctrl-C ends all; so does the end of one by a
    failure, after a few seconds.
    """
    count, devices = shape(text)
    logs = workdir / "rehearse"
    logs.mkdir(parents=True, exist_ok=True)
    port = free_port()
    children: list[subprocess.Popen] = []
    command = [sys.executable, "-m", "launch", *argv]
    before = signal.signal(signal.SIGTERM, lambda *_: _signal(children[:1], signal.SIGTERM))
    try:
        for index in range(count):
            environment = _environment(index, count, devices, port)
            with contextlib.ExitStack() as stack:
                out = None
                if index:
                    out = stack.enter_context(_log(logs, index).open("wb"))
                # In sessions of their own, so that Ctrl-C comes to them through us alone.
                children.append(
                    subprocess.Popen(
                        command,
                        env=environment,
                        stdout=out,
                        stderr=out,
                        start_new_session=True,
                        preexec_fn=_die_with_parent,
                    )
                )
        return _watch(children, logs)
    except KeyboardInterrupt:
        _signal(children, signal.SIGINT)
        _wait(children, GRACE_SECONDS)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
        for child in children:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _die_with_parent() -> None:
    """Where the system can: a SIGKILL of the rehearsal leaves nothing running."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _environment(index: int, count: int, devices: int, port: int) -> dict[str, str]:
    flags = os.environ.get("XLA_FLAGS", "").split()
    kept = [f for f in flags if not f.startswith("--xla_force_host_platform_device_count")]
    return {
        **os.environ,
        "XLA_FLAGS": " ".join(kept),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
    }


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _log(logs: Path, index: int) -> Path:
    return logs / f"process{index}.log"


# ------------------------------------------------------------------------- watching them


def _watch(children: Sequence[subprocess.Popen], logs: Path) -> int:
    while any(child.poll() is None for child in children):
        failed = [i for i, child in enumerate(children) if child.poll()]
        if failed:
            return _failed(children, failed[0], logs)
        time.sleep(0.05)
    failed = [i for i, child in enumerate(children) if child.poll()]
    return _failed(children, failed[0], logs) if failed else 0


def _failed(children: Sequence[subprocess.Popen], index: int, logs: Path) -> int:
    """Tell which process failed and how, end the others; the exit code."""
    _wait(children, GRACE_SECONDS)
    if children[index].returncode > 0:
        index = next((i for i, child in enumerate(children) if child.poll() in _CAUSES), index)
    still = [str(i) for i, child in enumerate(children) if child.poll() is None]
    code, first = children[index].returncode, children[0].poll()
    if first == code and code > 0:  # a refusal that all of them told: once is enough
        index = 0
    how = f"ended with code {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
    if index:
        with contextlib.suppress(OSError):
            text = _log(logs, index).read_text(encoding="utf-8", errors="replace")
            print("\n".join(text.splitlines()[-20:]), file=sys.stderr)
    others = f"; process {', '.join(still)} was ended" if still else ""
    more = f" (all it said: {_log(logs, index)})" if index else ""
    print(f"rehearsal: process {index} {how}{more}{others}", file=sys.stderr)
    return code if code > 0 else 128 - code


def _signal(children: Sequence[subprocess.Popen], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _wait(children: Sequence[subprocess.Popen], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(child.poll() is None for child in children):
        time.sleep(0.05)
