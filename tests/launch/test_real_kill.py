"""The real ISNet card, killed inside a save, ends at the very parameters of a run left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.launch.conftest import ROOT

CARD = """
def get_config():
    return {
        "task": {
            "name": "isnet_jax.tasks:MaskedClassifier",
            "data": {"source": "npz_folder", "folder": "DATA", "num_classes": 2},
            "method": "selective",
            "model": {"name": "simple_cnn", "widths": (4, 4), "norm": True, "pooled": 1},
        },
        "steps": 24,
        "batch_size": 8,
        "optimizer": {"name": "adam", "schedule": "cosine"},
        "checkpoint": {"every": 4, "keep": 2},
    }
"""


def train(card: Path, workdir: Path, kill_in_save: int = 0) -> int:
    """The exit code; `kill_in_save` kills as soon as that step's unfinished checkpoint appears."""
    command = [sys.executable, "-m", "launch", "train", "--config", card, "--workdir", workdir]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    child = subprocess.Popen(command, cwd=ROOT, env=env, stdout=-3, stderr=-3)
    place = workdir / "seed0/checkpoints"
    while child.poll() is None:
        begun = kill_in_save and any(place.glob(f"{kill_in_save}.orbax-checkpoint-tmp*"))
        if begun:
            child.send_signal(signal.SIGKILL)
            break
        time.sleep(0.0005 if kill_in_save else 0.05)
    return child.wait()


def last(workdir: Path) -> dict[str, bytes]:
    """Path -> bytes of every array in the newest checkpoint."""
    import jax
    import orbax.checkpoint as ocp

    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    place = workdir / "seed0/checkpoints/24/state"
    with ocp.StandardCheckpointer() as reader:
        tree = reader.metadata(place).item_metadata.tree
        like = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=one), tree)
        state = reader.restore(place, like)
    found = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(x).tobytes() for path, x in found}


def test_killed_inside_a_save_the_real_card_changes_no_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("train", "val"):
        image = rng.random((16, 8, 8, 1), np.float32)
        mask = rng.random((16, 8, 8, 1)) > 0.5
        np.savez(tmp_path / f"{name}.npz", image=image, mask=mask, label=np.arange(16) % 2)
    card = tmp_path / "card.py"
    card.write_text(CARD.replace("DATA", str(tmp_path)))
    assert train(card, tmp_path / "whole") == 0
    assert train(card, tmp_path / "killed", 12) == -signal.SIGKILL
    kept = [p.name for p in (tmp_path / "killed/seed0/checkpoints").iterdir()]
    assert any(name.startswith("12.orbax") for name in kept) and "8" in kept, kept
    assert train(card, tmp_path / "killed") == 0
    expected, got = last(tmp_path / "whole"), last(tmp_path / "killed")
    assert len(expected) > 10 and expected == got
