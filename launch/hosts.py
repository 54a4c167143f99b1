"""What the command line says of the processes that run a verb together; JAX is not loaded here."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from launch import rehearse
from launch.experiment import SetupError
from launch.workdir import probe

OPTIONS = ("rehearse", "coordinator", "processes", "process", "host_timeout")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every verb that several processes can run."""
    parser.add_argument(
        "--rehearse", metavar="PxD", help="run in P processes of D CPU devices each, here"
    )
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="where process 0 is, if no scheduler tells; none: join no other process",
    )
    parser.add_argument("--processes", type=int, help="how many processes there are")
    parser.add_argument("--process", type=int, help="which of them this is, from 0")
    parser.add_argument(
        "--host-timeout",
        type=int,
        metavar="SECONDS",
        help="a process silent for so long is lost, which ends the others (default 100)",
    )


def announce(options: argparse.Namespace) -> None:
    """Hand what was said to `launch.cluster`, by the environment as a scheduler does.

    Raises:
        SetupError: numbers that do not go together.
    """
    count, index = options.processes, options.process
    if (count is None) != (index is None):
        raise SetupError("--processes and --process go together: how many, and which this is")
    if count is not None and not 0 <= index < count:
        raise SetupError(f"--process {index} must be 0..{count - 1} (--processes - 1)")
    if options.host_timeout is not None and options.host_timeout < 1:
        raise SetupError(f"--host-timeout {options.host_timeout} must be at least 1")
    for name, value in (
        ("JAX_COORDINATOR_ADDRESS", options.coordinator),
        ("JAX_NUM_PROCESSES", count),
        ("JAX_PROCESS_ID", index),
        ("LAUNCH_HOST_TIMEOUT", options.host_timeout),
    ):
        if value is not None:
            os.environ[name] = str(value)


def rehearsed(argv: Sequence[str], options: argparse.Namespace) -> int:
    """Run the command of --rehearse; the exit code.

    Raises:
        SetupError: no --workdir, one that cannot be written, or no PxD.
    """
    if not options.workdir:
        raise SetupError(f"{options.verb} --rehearse needs --workdir")
    rehearse.shape(options.rehearse)
    probe(Path(options.workdir))
    rest, waiting = [], iter(argv)
    for argument in waiting:
        if argument == "--rehearse":
            next(waiting, None)
        elif not argument.startswith("--rehearse="):
            rest.append(argument)
    return rehearse.run(rest, options.rehearse, Path(options.workdir))
