"""Running the launcher on the toy card, in this process or in one that may be killed."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from launch import checkpoint, mesh, record
from launch.__main__ import main
from launch.experiment import Mesh, Optimizer
from launch.optimize import optimizer
from launch.train import abstract_state
from tests.launch.toy import Toy

ROOT = Path(__file__).resolve().parents[2]
CARD = "tests/launch/toy_card.py"


@pytest.fixture(autouse=True)
def as_a_user_runs_it(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    # Half a second a picture; the runs in processes of their own draw theirs.
    monkeypatch.setattr(record, "draw", lambda source, target: None)
    # optax's adam and schedules raise float to an int32 count: strict promotion refuses that.
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def launch() -> Callable[..., int]:
    """launch(workdir, "steps=3", …, verb=…, card=…) -> exit code, in this process."""

    def run(
        workdir: Path, *keys: str, verb: str = "train", card: str = CARD, flags: tuple = ()
    ) -> int:
        overrides = [f"--config.{key}" for key in keys]
        return main([verb, "--config", card, "--workdir", str(workdir), *overrides, *flags])

    return run


@pytest.fixture
def spawn() -> Callable[..., subprocess.CompletedProcess]:
    """spawn("train", …) -> the finished process of `python -m launch train …` on one device."""

    def run(*argv: str, code: str = "") -> subprocess.CompletedProcess:
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
        command = [sys.executable, *(["-c", code] if code else ["-m", "launch"]), *argv]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)

    return run


@pytest.fixture
def last_state() -> Callable[[Path], tuple[dict[str, np.ndarray], int]]:
    """last_state(leaf folder) -> (path -> array, step) of the newest checkpoint."""

    def read(folder: Path, which: str = "last") -> tuple[dict[str, np.ndarray], int]:
        task: Any = Toy(optimizer=optimizer(Optimizer(name="adamw"), 12))
        placed = abstract_state(task, mesh.make(Mesh(data=1)))
        state, step = checkpoint.load(folder, placed, which)
        leaves = jax.tree_util.tree_leaves_with_path(state)
        return {jax.tree_util.keystr(p): np.asarray(x) for p, x in leaves}, step

    return read
