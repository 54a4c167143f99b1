"""Killed at any step and started again, a run ends where it would have ended."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from launch.record import rows
from launch.workdir import lock
from tests.launch.conftest import CARD


def rows_without_time(leaf: Path) -> list[dict]:
    found = rows(leaf / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


def test_sigkill_at_three_steps_changes_no_bit(
    spawn: Callable, last_state: Callable, tmp_path: Path
) -> None:
    def train(name: str) -> tuple[int, str]:
        kills = f"--config.task.kills={tmp_path / name}.kills"
        folder = str(tmp_path / name)
        done = spawn("train", "--config", CARD, "--workdir", folder, kills)
        return done.returncode, done.stdout + done.stderr

    (tmp_path / "whole.kills").write_text("")
    (tmp_path / "killed.kills").write_text("1\n5\n11")
    assert train("whole")[0] == 0
    # 5 and 11 are odd, checkpoints even: the steps since then are done again.
    assert [train("killed")[0] for _ in range(4)] == [-9, -9, -9, 0]

    whole, killed = tmp_path / "whole/seed0", tmp_path / "killed/seed0"
    (expected, step), (got, again) = last_state(whole), last_state(killed)
    assert step == again == 12 and expected.keys() == got.keys()
    for path, array in expected.items():
        assert np.array_equal(array, got[path]), path
    # Each step is in the record once, with the same numbers.
    assert rows_without_time(whole) == rows_without_time(killed)
    steps = [row["step"] for row in rows(killed / "metrics.jsonl") if row["split"] == "train"]
    assert steps == list(range(1, 13))

    assert (killed / "progress.png").stat().st_size > 1000
    code, told = train("killed")
    assert code == 0 and told.startswith("finished: ") and "| run" in told


def test_a_damaged_newest_checkpoint_is_named_and_passed_over(
    launch: Callable, last_state: Callable, tmp_path: Path, capsys
) -> None:
    assert launch(tmp_path / "whole", "steps=6") == 0
    assert launch(tmp_path / "hurt", "steps=4") == 0
    arrays = [p for p in (tmp_path / "hurt/seed0/checkpoints/4/state/d").iterdir() if p.is_file()]
    for path in arrays:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    capsys.readouterr()
    assert launch(tmp_path / "hurt", "steps=6") == 0
    told = capsys.readouterr().err
    assert "checkpoint of step 4" in told and "damaged" in told
    assert (tmp_path / "hurt/seed0/damaged/4").is_dir()
    expected, got = last_state(tmp_path / "whole/seed0")[0], last_state(tmp_path / "hurt/seed0")[0]
    assert all(np.array_equal(expected[path], got[path]) for path in expected)
    whole, hurt = (rows_without_time(tmp_path / name / "seed0") for name in ("whole", "hurt"))
    assert whole == hurt


def test_nothing_is_restarted_silently_when_no_checkpoint_is_sound(
    launch: Callable, tmp_path: Path, capsys
) -> None:
    assert launch(tmp_path, "steps=2") == 0
    shutil.rmtree(tmp_path / "seed0/checkpoints/2/state")
    assert launch(tmp_path, "steps=3") == 2
    assert "none of the checkpoints" in capsys.readouterr().err


def test_another_config_is_refused_until_forced(launch: Callable, tmp_path: Path, capsys) -> None:
    assert launch(tmp_path, "steps=2") == 0
    assert launch(tmp_path, "steps=3", "task.noise=0.2") == 2
    told = capsys.readouterr().err
    assert told.splitlines()[-1].startswith("error: ") and "task.noise: 0.1 -> 0.2" in told
    assert launch(tmp_path, "steps=1") == 2
    assert "steps: 2 -> 1" in capsys.readouterr().err
    # Forced at the last step, nothing is trained but the results are not the old config's.
    assert launch(tmp_path, "steps=2", "task.noise=0.3", flags=("--force",)) == 0
    assert "finished" not in capsys.readouterr().out
    assert launch(tmp_path, "steps=2", "task.noise=0.3") == 0
    assert "finished" in capsys.readouterr().out
    assert launch(tmp_path, "steps=3", "task.noise=0.2", flags=("--force",)) == 0
    assert launch(tmp_path, "steps=3", "task.noise=0.2", "mesh.fsdp=2", "seeds=2") == 0
    assert (tmp_path / "seed1/results.json").is_file()


def test_another_config_is_neither_evaluated_nor_explained(
    launch: Callable, tmp_path: Path, capsys
) -> None:
    assert launch(tmp_path, "steps=2") == 0
    capsys.readouterr()
    before = {p: p.read_bytes() for p in tmp_path.glob("**/*.json")}
    for verb in ("evaluate", "explain"):
        for key, told in (("task.count=16", "task.count: 40 -> 16"), ("steps=3", "steps: 2 -> 3")):
            assert launch(tmp_path, "steps=2", key, verb=verb) == 2
            assert told in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in tmp_path.glob("**/*.json")}
    free = ("eval_batch_size=16", "log_every=7", "mesh.fsdp=2", "checkpoint.keep=9")
    assert launch(tmp_path, "steps=2", *free, verb="evaluate") == 0


def test_an_evaluation_on_the_way_does_not_look_finished(
    launch: Callable, tmp_path: Path, capsys
) -> None:
    assert launch(tmp_path, "steps=4", "task.fail=evaluate") == 1
    shutil.rmtree(tmp_path / "seed0/checkpoints/4")  # as if it had been killed at step 3
    config = tmp_path / "seed0/config.json"
    config.write_text(config.read_text().replace('"fail": "evaluate"', '"fail": ""'))
    capsys.readouterr()
    assert launch(tmp_path, "steps=4", verb="evaluate") == 0
    early = capsys.readouterr().out
    assert json.loads((tmp_path / "seed0/results.json").read_text())["steps"] == 2
    assert launch(tmp_path, "steps=4") == 0
    assert capsys.readouterr().out != early
    assert json.loads((tmp_path / "seed0/results.json").read_text())["steps"] == 4


def test_steps_grow_only_where_the_schedule_ignores_them(
    launch: Callable, tmp_path: Path, capsys
) -> None:
    cosine = "optimizer.schedule=cosine"
    assert launch(tmp_path, "steps=2", cosine) == 0
    assert launch(tmp_path, "steps=3", cosine) == 2
    assert "steps: 2 -> 3, on which the cosine schedule depends" in capsys.readouterr().err
    assert launch(tmp_path, "steps=3", cosine, flags=("--force",)) == 0
    step = "optimizer.schedule=step"
    assert launch(tmp_path / "b", "steps=2", step) == launch(tmp_path / "b", "steps=3", step) == 0


@pytest.mark.parametrize("name", ["results.json", "table.json", "config.json"])
@pytest.mark.parametrize("text", ["", '{"steps": 2, "met'])
def test_damaged_small_files_are_made_again(
    name: str, text: str, launch: Callable, tmp_path: Path, capsys
) -> None:
    assert launch(tmp_path, "steps=2") == 0
    table = (tmp_path / "table.md").read_text()
    file = next(tmp_path.glob(f"**/{name}"))
    file.write_text(text)
    (tmp_path / "table.md").unlink()
    assert launch(tmp_path, "steps=2", "task.count=16") == 2  # the checkpoint knows its config
    assert launch(tmp_path, "steps=2") == 0
    told = capsys.readouterr().err
    assert f"{file} is damaged and was set aside" in told and "Traceback" not in told
    assert json.loads(file.read_text()) and (tmp_path / "table.md").read_text() == table


@pytest.mark.parametrize("name", ["meta/metadata", "metrics/metrics"])
def test_a_checkpoint_with_a_damaged_small_file_is_set_aside(
    name: str, launch: Callable, tmp_path: Path, capsys
) -> None:
    keys = ("checkpoint.best=val/sum", "checkpoint.keep_best=2", "optimizer.schedule=step")
    assert launch(tmp_path, "steps=3", *keys) == 0
    (tmp_path / "seed0/checkpoints/3" / name).write_text("{")
    capsys.readouterr()
    assert launch(tmp_path, "steps=3", *keys, verb="evaluate") == 0
    assert "checkpoint of step 3" in capsys.readouterr().err
    assert launch(tmp_path, "steps=4", *keys) == 0
    told = capsys.readouterr().err
    assert "moved to damaged/3" in told and "Traceback" not in told


def test_a_second_training_in_a_folder_is_refused(launch: Callable, tmp_path: Path, capsys) -> None:
    with lock(tmp_path):
        assert launch(tmp_path, "steps=1") == 2
    assert f"another training is running in {str(tmp_path)!r} (process" in capsys.readouterr().err
    assert launch(tmp_path, "steps=1") == 0


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    command = (
        f"mount -t tmpfs -o size=300k tmpfs {tmp_path} && exec {sys.executable} -m launch train "
        f"--config {CARD} --workdir {tmp_path}"
    )
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", tmp_path]).returncode:
        pytest.skip("no file system can be mounted here")
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command], env=env, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    # Threads of the checkpoint library may still complain while the process ends; we do not.
    assert f"{os.sep}launch{os.sep}" not in done.stderr, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and said[0].startswith("error: no space left on the disk"), done.stderr
