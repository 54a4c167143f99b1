"""`bench`, the counting of compilations, and traces for the profiler."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from launch import bench, costs
from launch.__main__ import main
from launch.profile import Profile
from tests.launch.conftest import CARD


def benched(workdir: Path, *flags: str, card: str = CARD) -> list[dict]:
    """The rows of bench.jsonl after a `bench` in this process."""
    where = ("--config", card, "--workdir", str(workdir))
    assert main(["bench", *where, "--count=4", "--config.checkpoint.every=0", *flags]) == 0
    return [json.loads(line) for line in (workdir / "bench.jsonl").read_text().splitlines()]


def test_a_row_a_run(tmp_path: Path, capsys) -> None:
    rows = benched(tmp_path, "--config.steps=3", card=CARD + ":runs")
    assert [row["run"] for row in rows] == ["plain", "noisy"]
    assert {row["card"] for row in rows} == {CARD + ":runs"}
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    for row in rows:
        assert row["recompiles"] == 0 and row["steps_timed"] == 6  # two in each of three turns
        assert row["devices"] == 8 and row["mesh"] == {"data": 8}
        assert 0 < row["step_seconds_min"] <= row["step_seconds"] and row["compile_seconds"] > 0
        assert 0 <= row["input_wait"] < 1 and 0 <= row["input_share"] < 1
        assert row["input_cpu_seconds"] >= 0 and row["step_cpu_seconds"] >= 0
        assert row["items_per_second"] == pytest.approx(8 / row["step_seconds_with_input"])
        at_peak = row["operations"] / row["peak"]["float32"]
        assert row["mfu"] == pytest.approx(at_peak / row["step_seconds"])
        assert row["peak_source"] == "measured" and row["memory"]["peak"] > 0
    assert len(benched(tmp_path, "--config.steps=3")) == 3  # rows are added


def test_recompiling_is_seen(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    steady = bench.rng_of

    def anew(seed: int, mesh: jax.sharding.Mesh) -> Callable[[int], jax.Array]:
        return lambda step: steady(seed, mesh)(step)  # a function of its own for every step

    monkeypatch.setattr(bench, "rng_of", anew)
    (row,) = benched(tmp_path)
    assert row["recompiles"] >= row["steps_timed"]


def test_compilations_are_counted_while_listened_to() -> None:
    with bench.Compilations() as seen:
        f = jax.jit(lambda x: x * 3)
        f(jnp.ones(5)).block_until_ready()
        before = seen.count
        f(jnp.ones(5)).block_until_ready()
        assert before >= 1 and seen.count == before
        f(jnp.ones(6)).block_until_ready()
    known = seen.count
    assert known > before
    jax.jit(lambda x: x * 4)(jnp.ones(7)).block_until_ready()
    assert seen.count == known


def test_training_compiles_nothing_after_its_first_steps(
    launch: Callable, tmp_path: Path, capsys
) -> None:
    counts = []
    for steps in (2, 2, 12):  # the first also compiles what all of them share
        with bench.Compilations() as seen:
            # (The toy makes a program of its own for each evaluation.)
            keys = (f"steps={steps}", "checkpoint.every=1", "eval_every=0")
            assert launch(tmp_path / str(len(counts)), *keys) == 0
        counts.append(seen.count)
    assert counts[1] > 0 and counts[2] == counts[1]


def test_a_profile_holds_the_steps_asked_for(tmp_path: Path, capsys) -> None:
    rows = benched(tmp_path, "--profile=3")
    assert len(rows) == 1 and "profile of 3 steps" in capsys.readouterr().err
    (trace,) = (tmp_path / "seed0/profile").rglob("*.xplane.pb")
    found = jax.profiler.ProfileData.from_file(str(trace))
    events = [e for plane in found.planes for line in plane.lines for e in line.events]
    assert sum(event.name == "step" for event in events) == 3
    assert main(["bench", "--config", CARD, "--profile=3"]) == 2
    assert "bench needs --workdir" in capsys.readouterr().err


def test_a_profile_skips_steps_and_ends_with_the_training(tmp_path: Path, capsys) -> None:
    profile = Profile(tmp_path, 4)
    update = profile.wrap(jax.jit(lambda x: x + 1))
    assert int(update(jnp.int32(0))) == 1 and int(update(jnp.int32(1))) == 2
    assert not (tmp_path / "profile").exists()
    update(jnp.int32(2))
    profile.close()
    profile.close()  # told once
    assert capsys.readouterr().err.count("profile of 1 steps") == 1
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1


def test_a_training_is_recorded_as_it_runs(launch: Callable, tmp_path: Path, capsys) -> None:
    keys = ("steps=5", "eval_every=0")
    assert launch(tmp_path, *keys, flags=("--profile=2",)) == 0
    assert capsys.readouterr().err.count("profile of 2 steps") == 1
    assert len(list((tmp_path / "seed0/profile").rglob("*.xplane.pb"))) == 1


def test_parameters_of_a_state_without_a_part_for_them() -> None:
    assert costs.parameters({"a": jnp.zeros((2, 3)), "b": {"c": jnp.zeros(())}}) == 7
    assert costs.parameters({"params": {"w": jnp.zeros(4)}, "rest": jnp.zeros(9)}) == 4
