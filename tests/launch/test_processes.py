"""Two hosts, played by two processes on this machine: preempted, killed, lost, resumed."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from launch.record import rows
from launch.rehearse import free_port
from tests.launch.conftest import CARD, ROOT

ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
ENDLESS = ("--config.steps=1000000", "--config.eval_every=0", "--config.checkpoint.every=200")


def command(workdir: Path, *more: str, card: str | Path = CARD, verb: str = "train") -> list[str]:
    where = ("--config", str(card), "--workdir", str(workdir))
    return [sys.executable, "-m", "launch", verb, *where, *more]


def rehearse(workdir: Path, *more: str, **which: str) -> subprocess.CompletedProcess:
    argv = command(workdir, "--rehearse", "2x1", *more, **which)
    return subprocess.run(argv, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


def children_of(parent: int) -> list[Path]:
    """Folders below /proc of the processes that `parent` has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it may have ended by now
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(stat.parent)
    return found


def wait_for_checkpoint(workdir: Path, child: subprocess.Popen) -> None:
    """Wait until the run in `workdir` has its first checkpoint."""
    while not any((workdir / "seed0/checkpoints").glob("[0-9]*")):
        assert child.poll() is None, (child.communicate(), workdir)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folder of 12 undisturbed steps in two processes."""
    folder = tmp_path_factory.mktemp("whole") / "w"
    done = rehearse(folder)
    assert done.returncode == 0, done.stderr
    return folder


# ------------------------------------------------------------------------- training


def test_killed_and_preempted_two_hosts_change_no_bit(
    whole: Path, last_state: Callable, tmp_path: Path
) -> None:
    kills, folder = tmp_path / "kills", tmp_path / "w"
    kills.write_text("1@1\n5@0\n7@1=SIGTERM\n11@1")
    runs = [rehearse(folder, f"--config.task.kills={kills}") for _ in range(5)]
    assert [run.returncode for run in runs] == [137, 137, 0, 137, 0], [r.stderr for r in runs]
    for run, who in ((runs[0], 1), (runs[1], 0), (runs[3], 1)):
        assert f"rehearsal: process {who} was killed by SIGKILL" in run.stderr
    # The notice went to process 1; process 0 tells that all have saved, and at which step.
    (said,) = [line for line in runs[2].stderr.splitlines() if "SIGTERM asked" in line]
    assert said.startswith("seed0: stopped and saved after step ")
    step = int(said.split("step ")[1].split(",")[0])
    assert 8 <= step <= 10

    (expected, end), (got, again) = last_state(whole / "seed0"), last_state(folder / "seed0")
    assert end == again == 12 and expected.keys() == got.keys()
    assert any("ema" in path for path in expected) and any("nu" in path for path in expected)
    for path, array in expected.items():
        assert np.array_equal(array, got[path]), path
    found, told = rows(whole / "seed0/metrics.jsonl"), rows(folder / "seed0/metrics.jsonl")
    assert [{**row, "seconds": 0} for row in found] == [{**row, "seconds": 0} for row in told]
    assert (folder / "table.md").read_text() == (whole / "table.md").read_text()


def test_one_process_goes_on_where_two_were(whole: Path, launch: Callable, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "moved")
    leaf = tmp_path / "moved/seed0"
    for name in ("checkpoints/10", "checkpoints/12"):
        shutil.rmtree(leaf / name)
    (leaf / "results.json").unlink()
    assert launch(tmp_path / "moved", "mesh.data=1") == 0
    assert launch(tmp_path / "one", "mesh.data=1") == 0
    one, moved = rows(tmp_path / "one/seed0/metrics.jsonl"), rows(leaf / "metrics.jsonl")
    assert len(one) == len(moved) == 24
    for expected, got in zip(one, moved, strict=True):
        assert expected.get("items") == got.get("items")  # the same items in the same rows
        if expected["split"] == "train":
            assert got["loss"] == pytest.approx(expected["loss"], rel=1e-6)


def test_a_lost_host_ends_the_other_with_a_message(tmp_path: Path) -> None:
    folder, port = tmp_path / "w", free_port()
    hosts = ("--coordinator", f"127.0.0.1:{port}", "--processes=2", "--host-timeout=10")
    environment = {**ENVIRONMENT, "JAX_NUM_CPU_DEVICES": "1"}
    argv = [command(folder, *ENDLESS, *hosts, f"--process={i}") for i in range(2)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    first, second = (subprocess.Popen(one, cwd=ROOT, env=environment, **pipes) for one in argv)
    wait_for_checkpoint(folder, first)
    second.kill()
    told = first.communicate(timeout=60)[1]
    second.communicate()
    # Mostly a broken connection tells, else the service that listens for heartbeats.
    assert first.returncode in (1, -signal.SIGABRT), told
    assert "error: another host was lost (" in told or "another task died" in told
    assert "goes on from what is saved" in told or first.returncode < 0


def test_a_host_that_fails_alone_does_not_leave_the_other_waiting(tmp_path: Path) -> None:
    done = rehearse(tmp_path / "w", "--config.task.fail=host 1", "--host-timeout=5")
    told = (tmp_path / "w/rehearse/process1.log").read_text()
    assert done.returncode == 1 and "this host alone failed: stale file handle" in told
    assert "error: this host failed; the same command goes on" in told
    # Where all fail together, they go on together with the next run.
    done = rehearse(tmp_path / "v", "--config.steps=2", card=f"{CARD}:failing")
    assert done.returncode == 1 and "evaluation broke" in done.stderr
    assert "| sound" in done.stdout and (tmp_path / "v/sound/seed0/results.json").is_file()


def test_a_rehearsal_hands_on_sigterm_and_leaves_nothing_running(tmp_path: Path) -> None:
    for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        folder = tmp_path / number.name
        argv = command(folder, *ENDLESS, "--rehearse", "2x1")
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        parent = subprocess.Popen(argv, cwd=ROOT, env=ENVIRONMENT, **pipes)
        wait_for_checkpoint(folder, parent)
        children = children_of(parent.pid)
        assert len(children) == 2
        parent.send_signal(number)
        told = parent.communicate(timeout=60)[1]
        assert parent.returncode == code, told
        assert not any(child.exists() for child in children)
        if number == signal.SIGTERM:
            assert "stopped and saved after step" in told


# ------------------------------------------------------------------------- jobs


JOB_CARD = '''"""Texts in, loud texts out."""
def get_config(arg=""):
    section = {"name": "tests.launch.toy_job:Shout", "texts": "TEXTS", "suffix": "!", "ids": (),
               "limit": None}
    return {"jobs": {"prepare": section}}
'''


@pytest.fixture
def texts(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "abcde":
        (folder / f"{name}.txt").write_text(f"text {name}")
    (tmp_path / "card.py").write_text(JOB_CARD.replace("TEXTS", str(folder)))
    return folder


def test_cases_are_shared_by_two_hosts_and_resumed(texts: Path, tmp_path: Path) -> None:
    (texts / "d.txt").write_text("kill")  # b and d are process 1's: it dies in its second
    which = {"card": tmp_path / "card.py", "verb": "prepare"}
    done = rehearse(tmp_path / "w", **which)
    assert done.returncode == 137 and "process 1 was killed by SIGKILL" in done.stderr
    folder = tmp_path / "w/prepare"
    assert (folder / "b/loud.txt").is_file() and not (folder / "d").exists()
    begun = (folder / "b/loud.txt").stat().st_mtime_ns
    again = rehearse(tmp_path / "w", **which)
    assert again.returncode == 0, again.stderr
    assert f"prepare: 5 of 5 cases done: {folder}" in again.stdout
    assert (folder / "b/loud.txt").stat().st_mtime_ns == begun
    kept = [json.loads(line)["case"] for line in (folder / "cases.jsonl").read_text().splitlines()]
    assert kept == list("abcde") and not list(folder.glob("cases.*.jsonl"))
    assert (folder / "all.txt").read_text() == "a=6 b=6 c=6 d=5 e=6"
