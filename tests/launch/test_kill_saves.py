"""Killed in the middle of saves, one host or one of two: what is restored is always whole."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from launch.checkpoint import Store
from launch.checksum import checksums
from launch.experiment import Checkpoint
from tests.launch.conftest import ROOT
from tests.launch.saver import SHAPES, state_at

ROUNDS = 20
PLACED = {
    name: jax.ShapeDtypeStruct(shape, np.float32, sharding=jax.sharding.SingleDeviceSharding(d))
    for d in jax.devices()[:1]
    for name, shape in SHAPES.items()
}


def test_twenty_kills_inside_saves_never_restore_anything_bad(tmp_path: Path) -> None:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    env["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "xla")
    command = [sys.executable, "-m", "tests.launch.saver", str(tmp_path), str(ROUNDS)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in (tmp_path / "told.txt").read_text().splitlines()]
    restored = [line for line in lines if line[0] == "restored"]
    killed = [line[1:] for line in lines if line[0] == "killed"]
    assert len(restored) == ROUNDS + ROUNDS // 3 and len(killed) == ROUNDS
    assert all(line[2] == "whole" for line in restored), restored
    # Each round goes on from the newest that was complete, and some were cut off.
    newest = [max([int(n) for n in names if n.isdigit()], default=0) for names in killed]
    by_round = iter(restored)
    for number, before in enumerate([0, *newest[:-1]]):
        for _ in range(2 if number % 3 == 2 else 1):
            assert int(next(by_round)[1]) == before
    cut = [names for names in killed[:-1] for n in names if not n.isdigit()]
    assert len(cut) >= ROUNDS // 4 and newest[-1] > 0
    for names in killed[:-1]:
        for name in (n for n in names if not n.isdigit()):
            step = name.partition(".")[0]
            assert f"checkpoint of step {step} in {tmp_path} was not finished" in done.stderr


def saved(folder: Path) -> list[Path]:
    """Files of arrays of step 2, after saving steps 1 and 2."""
    with Store(folder, Checkpoint(keep=2), {}) as store:
        for step in (1, 2):
            store.save(step, {k: jnp.asarray(x) for k, x in state_at(step).items()}, {})
    place = folder / "checkpoints/2/state"
    return sorted(p for p in place.rglob("*") if p.is_file() and p.stat().st_size > 8192)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "swapped"])
def test_what_a_disk_does_to_a_checkpoint_is_seen(damage: str, tmp_path: Path, capsys) -> None:
    files = saved(tmp_path)
    assert files
    for file in files:
        data = bytearray(file.read_bytes())
        if damage == "flip":
            data[len(data) // 2] ^= 1
        elif damage == "swapped":  # whole, but of another step
            data = bytearray(
                max(
                    (tmp_path / "checkpoints/1/state/d").iterdir(), key=os.path.getsize
                ).read_bytes()
            )
        file.write_bytes(data[: {"cut": len(data) // 2, "empty": 0}.get(damage)])
        if damage == "gone":
            file.unlink()
    with Store(tmp_path, Checkpoint(keep=2), {}) as store:
        state, step = store.restore(PLACED)
    assert step == 1 and all(np.array_equal(state[k], x) for k, x in state_at(1).items())
    told = capsys.readouterr().err
    assert "checkpoint of step 2" in told and "moved to damaged/2" in told


# ------------------------------------------------------------------------- checksums


def test_any_single_bit_changes_the_checksum() -> None:
    values = {
        "f": np.arange(6, dtype=np.float32).reshape(2, 3),
        "h": np.arange(4, dtype=np.float16),
        "i": np.int32(7),
        "u": np.arange(5, dtype=np.uint8),
        "b": np.array([True, False]),
        "e": np.zeros((0, 2), np.float32),
    }
    before = checksums({name: jnp.asarray(x) for name, x in values.items()})
    assert set(before) == set(values) and before["e"] == 0
    for name in "fhiu":
        for bit in (0, 7):
            raw = bytearray(np.asarray(values[name]).tobytes())
            raw[-1] ^= 1 << bit
            other = np.frombuffer(raw, values[name].dtype).reshape(np.shape(values[name]))
            after = checksums({**{k: jnp.asarray(x) for k, x in values.items()}, name: other})
            assert [k for k in values if after[k] != before[k]] == [name], (name, bit)
    # Where a value stands counts too, and what NaN it is.
    assert checksums({"b": jnp.array([False, True])})["b"] != before["b"]
    nan = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    assert checksums({"n": nan[:1]}) != checksums({"n": nan[1:]})


def test_checksums_against_sums_in_python_on_any_sharding(x64: None) -> None:
    array = np.random.default_rng(0).normal(size=(8, 5, 2))
    words = array.reshape(-1).view(np.uint32).tolist()
    expected = sum(w * (2 * i + 1) for i, w in enumerate(words)) % 2**32
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    for spec in (PartitionSpec(), PartitionSpec("a"), PartitionSpec(("a", "b"), None, None)):
        placed = jax.device_put(array, NamedSharding(mesh, spec))
        assert checksums({"x": placed}) == {"x": expected}
