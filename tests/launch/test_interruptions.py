"""One process: SIGTERM, a standstill, and what the command line says of several."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from launch import hosts, rehearse
from launch.__main__ import main
from launch.experiment import SetupError
from launch.watchdog import Watchdog
from tests.launch.conftest import CARD


def test_sigterm_saves_the_step_and_the_run_goes_on_as_if_never_stopped(
    launch: Callable, last_state: Callable, tmp_path: Path, capsys
) -> None:
    (tmp_path / "kills").write_text("3=SIGTERM")
    kills = f"task.kills={tmp_path / 'kills'}"
    assert launch(tmp_path / "w", "steps=6", "checkpoint.every=0", kills) == 0
    said = capsys.readouterr()
    assert "seed0: stopped and saved after step 4, as SIGTERM asked" in said.err
    assert not (tmp_path / "w/table.md").exists() and not said.out
    assert last_state(tmp_path / "w/seed0")[1] == 4
    assert launch(tmp_path / "w", "steps=6", "checkpoint.every=0", kills) == 0
    assert launch(tmp_path / "whole", "steps=6", "checkpoint.every=0") == 0
    (got, step), (expected, _) = (last_state(tmp_path / n / "seed0") for n in ("w", "whole"))
    assert step == 6
    for path, array in expected.items():
        assert np.array_equal(array, got[path]), path


def test_the_table_stands_for_the_end_of_all_runs(launch: Callable, tmp_path: Path, capsys) -> None:
    table, kills = tmp_path / "w/table.md", tmp_path / "kills"
    keys = (f"task.kills={kills}", "eval_every=1")
    kills.write_text("3=SIGTERM")
    assert launch(tmp_path / "w", "steps=2", *keys) == 0 and table.exists()
    # Schedulers' scripts look for it: one of fewer steps would end their starting again.
    assert launch(tmp_path / "w", "steps=6", *keys) == 0 and not table.exists()
    capsys.readouterr()
    assert launch(tmp_path / "w", "steps=6", *keys, verb="evaluate") == 0 and not table.exists()
    assert "| test/accuracy |" in capsys.readouterr().out
    assert launch(tmp_path / "w", "steps=6", *keys) == 0 and table.exists()


def test_sigterm_after_the_last_step_leaves_the_rest_for_the_next_start(
    launch: Callable, tmp_path: Path, capsys
) -> None:
    (tmp_path / "kills").write_text("2=SIGTERM")  # heard while the last step is evaluated
    kills = f"task.kills={tmp_path / 'kills'}"
    assert launch(tmp_path / "w", "steps=2", "seeds=2", kills) == 0
    assert "seed0: stopped after its last step" in capsys.readouterr().err
    assert not (tmp_path / "w/seed1").exists()
    assert launch(tmp_path / "w", "steps=2", "seeds=2", kills) == 0
    assert "| 2     |" in capsys.readouterr().out


def test_sigterm_in_the_final_evaluation_ends_it_and_the_next_start_repeats_it(
    launch: Callable, spawn: Callable, last_state: Callable, tmp_path: Path, capsys
) -> None:
    folder, kills, results = (tmp_path / n for n in ("w", "kills", "w/seed0/results.json"))
    keys = ("eval_every=0", f"task.kills={kills}")
    said = "seed0: stopped in the evaluation of step {}, as SIGTERM asked"
    kills.write_text("3=SIGTERM")
    assert launch(folder, "steps=3", *keys) == 0
    assert said.format(3) in capsys.readouterr().err and not results.exists()
    assert last_state(folder / "seed0")[1] == 3
    assert launch(folder, "steps=3", *keys) == 0
    assert "| 1     |" in capsys.readouterr().out and '"steps": 3' in results.read_text()
    # Two hosts in processes of their own, of which the second hears it.
    kills.write_text("4@1=SIGTERM")
    where = ("--config", CARD, "--workdir", str(folder), "--rehearse=2x1")
    argv = ("train", *where, *(f"--config.{key}" for key in ("steps=4", *keys)))
    stopped = spawn(*argv)
    assert stopped.returncode == 0 and said.format(4) in stopped.stderr, stopped.stderr
    assert last_state(folder / "seed0")[1] == 4 and '"steps": 3' in results.read_text()
    again = spawn(*argv)
    assert again.returncode == 0 and "| 1     |" in again.stdout, again.stderr
    assert '"steps": 4' in results.read_text()


def test_a_standstill_is_told_once_with_every_stack() -> None:
    def wait_for(text: str) -> str:
        for _ in range(500):
            out.seek(0)
            if text in (told := out.read()):
                return told
            time.sleep(0.02)
        raise AssertionError(told)

    with tempfile.TemporaryFile("w+") as out:
        with Watchdog(0.2 / 60, "seed0", out) as watch:
            watch.beat("evaluating after step 3")
            told = wait_for("wait_for")
            assert told.startswith("seed0: nothing has gone on for 0.00")
            assert "(evaluating after step 3)" in told and "test_a_standstill" in told
            watch.beat("after step 4 was begun")
            told = wait_for("step 4")
        assert told.count("nothing has gone on") == 2
        with Watchdog(0.0, "never", out):
            pass


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--rehearse", "2"), "--rehearse '2': write PROCESSESxDEVICES"),
        (("--rehearse=0x4",), "--rehearse '0x4'"),
        (("--rehearse=2x999",), "each 1..256"),
        (("--processes=2",), "--processes and --process go together"),
        (("--processes=2", "--process=2"), "--process 2 must be 0..1"),
        (("--host-timeout=0",), "--host-timeout 0 must be at least 1"),
    ],
)
def test_what_is_said_of_hosts_must_fit(
    flags: tuple, part: str, launch: Callable, tmp_path: Path, capsys
) -> None:
    assert launch(tmp_path / "w", flags=flags) == 2
    assert part in capsys.readouterr().err
    assert not (tmp_path / "w/seed0").exists()


def test_hosts_are_for_verbs_that_several_can_run(capsys) -> None:
    assert main(["list", "--rehearse", "2x1"]) == 2
    assert "list takes no --rehearse; it is for train" in capsys.readouterr().err
    assert main(["train", "--config", CARD, "--rehearse", "2x1"]) == 2
    assert "train --rehearse needs --workdir" in capsys.readouterr().err
    assert "host_timeout" in hosts.OPTIONS


def test_a_refusal_in_a_rehearsal_is_told_once(spawn: Callable, tmp_path: Path) -> None:
    argv = ["train", "--config", CARD, "--workdir", str(tmp_path), "--config.stepz=3"]
    done = spawn(*argv, "--rehearse", "2x1")
    assert done.returncode == 2 and done.stderr.count("did you mean 'config.steps'") == 1
    assert "rehearsal: process 0 ended with code 2" in done.stderr
    assert "stepz" in (tmp_path / "rehearse/process1.log").read_text()
    with pytest.raises(SetupError, match="PROCESSESxDEVICES"):
        rehearse.shape("2 x 4")


class Ended:
    """A process that has ended."""

    def __init__(self, code: int) -> None:
        self.returncode = code

    def poll(self) -> int:
        return self.returncode


def test_a_killed_process_is_named_even_if_the_other_was_seen_to_end_first(tmp_path, capsys):
    assert rehearse._failed([Ended(1), Ended(-9)], 0, tmp_path) == 137
    assert "process 1 was killed by SIGKILL" in capsys.readouterr().err
    # An abort is what the loss of another host leads to: the refusal came first.
    assert rehearse._failed([Ended(2), Ended(-6)], 0, tmp_path) == 2
