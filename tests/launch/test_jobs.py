"""Jobs: cases that are done stay done, those that fail are told, no half case is ever there."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from launch import jobs
from launch.__main__ import main
from launch.cases import Record, check_names
from launch.experiment import SetupError
from launch.workdir import lock
from tests.launch.conftest import CARD
from tests.launch.toy_job import Shout

JOB_CARD = '''"""Texts in, loud texts out."""
def get_config(arg=""):
    section = {"name": "tests.launch.toy_job:Shout", "texts": "TEXTS", "suffix": "!", "ids": (),
               "limit": None}
    return {"jobs": {"prepare": section, **({"explain": section} if arg else {})}}
'''


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with the texts a, b, c and the card of the job beside them."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text(f"text {name}")
    (tmp_path / "card.py").write_text(JOB_CARD.replace("TEXTS", str(folder)))
    Shout.seen = ()
    return folder


@pytest.fixture
def prepare(texts: Path, tmp_path: Path) -> Callable[..., int]:
    """prepare("workers=2", …) -> exit code of the job into tmp_path/w."""

    def run(*keys: str, verb: str = "prepare", card: str = "card.py", flags: tuple = ()) -> int:
        Shout.seen = ()
        where = ["--config", str(tmp_path / card), "--workdir", str(tmp_path / "w")]
        return main([verb, *where, *(f"--config.{key}" for key in keys), *flags])

    return run


def record(folder: Path, verb: str = "prepare") -> dict[str, dict]:
    lines = (folder / "w" / verb / "cases.jsonl").read_text().splitlines()
    return {row["case"]: row for row in map(json.loads, lines)}


def names(folder: Path) -> set[str]:
    return {p.name for p in (folder / "w" / "prepare").iterdir() if p.name != ".lock"}


FILES = {"cases.jsonl", "job.json", "all.txt"}

# ------------------------------------------------------------------------- the loop


def test_nan_among_the_keywords_is_no_change(prepare: Callable, tmp_path: Path, capsys) -> None:
    card = (tmp_path / "card.py").read_text().replace("None", 'float("nan")')
    (tmp_path / "nan.py").write_text(card)
    assert prepare(card="nan.py") == 0 and Shout.seen == ("a", "b", "c")
    assert prepare(card="nan.py") == 0 and Shout.seen == ()
    assert prepare(card="card.py") == 2
    assert "jobs.prepare.limit: nan -> None" in capsys.readouterr().err


def test_a_folder_in_a_folder_out_and_once_only(prepare, texts, tmp_path, capsys) -> None:
    assert prepare() == 0
    assert f"prepare: 3 of 3 cases done: {tmp_path / 'w/prepare'}" in capsys.readouterr().out
    assert names(tmp_path) == FILES | {"a", "b", "c"}
    assert (tmp_path / "w/prepare/b/loud.txt").read_text() == "TEXT B!"
    assert (tmp_path / "w/prepare/all.txt").read_text() == "a=6 b=6 c=6"
    row = record(tmp_path)["a"]
    assert row["status"] == "done" and row["fingerprint"] == "text a" and row["seconds"] >= 0
    assert row["row"] == {"letters": 6, "share": None, "name": "a"}

    assert prepare() == 0 and Shout.seen == ()
    # Another content, a folder that is gone, a new case: those three are run, and only they.
    (texts / "a.txt").write_text("longer text")
    (tmp_path / "w/prepare/b/loud.txt").unlink()
    (tmp_path / "w/prepare/b/half.txt").unlink()
    (tmp_path / "w/prepare/b").rmdir()
    (texts / "d.txt").write_text("d")
    assert prepare() == 0 and Shout.seen == ("a", "b", "d")
    assert (tmp_path / "w/prepare/all.txt").read_text() == "a=11 b=6 c=6 d=1"


def test_failures_are_recorded_and_the_others_carry_on(prepare, texts, tmp_path, capsys) -> None:
    for name, text in {"a": "broken", "b": "bug", "d": "nested"}.items():
        (texts / f"{name}.txt").write_text(text)
    assert prepare() == 1
    said = capsys.readouterr()
    last = said.err.splitlines()[-1]
    assert last.startswith("error: 3 of 4 cases failed: a (a.txt is broken); b (RuntimeError: a")
    assert "d (run returned a = [1]" in last and "Traceback" not in said.err
    assert "prepare 1/4 a: failed: a.txt is broken\n" in said.err  # the case is named once
    assert names(tmp_path) == FILES | {"c"}
    found = record(tmp_path)
    assert found["a"]["error"] == "a.txt is broken" and "toy_job.py" in found["b"]["traceback"]
    # They are tried again; what is left of a case whose input broke is no result of it.
    (texts / "a.txt").write_text("sound")
    (texts / "c.txt").write_text("broken")
    assert prepare() == 1
    assert Shout.seen == ("a", "b", "c", "d") and names(tmp_path) == FILES | {"a"}


def test_an_interrupt_or_a_full_disk_keeps_what_is_done(prepare, texts, tmp_path, capsys) -> None:
    (texts / "b.txt").write_text("interrupt")
    assert prepare() == 130
    assert "goes on" in capsys.readouterr().err
    assert names(tmp_path) == {"cases.jsonl", "job.json", "a"}
    (texts / "b.txt").write_text("full")
    assert prepare() == 1 and Shout.seen == ("b",)
    assert "error: no space left on the disk" in capsys.readouterr().err
    (texts / "b.txt").write_text("b")
    assert prepare() == 0 and Shout.seen == ("b", "c")


def test_sigkill_in_the_middle_of_a_case_leaves_no_half_of_it(spawn, texts, tmp_path) -> None:
    (texts / "b.txt").write_text("kill")
    argv = ("prepare", "--config", str(tmp_path / "card.py"), "--workdir", str(tmp_path / "w"))
    assert spawn(*argv).returncode == -9
    assert names(tmp_path) == {"cases.jsonl", "job.json", "a", ".part-b"}
    with (tmp_path / "w/prepare/cases.jsonl").open("a") as file:
        file.write('{"case": "c", "stat')  # the kill may fall into a write, too
    done = spawn(*argv)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path) == FILES | {"a", "b", "c"}
    assert "prepare 2/3 b: " in done.stderr and "prepare 1/3" not in done.stderr
    assert list(record(tmp_path)) == ["a", "b", "c"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_gives_up_the_case_at_hand_and_says_so(
    workers, prepare, spawn, texts, tmp_path
) -> None:
    (texts / "b.txt").write_text("SIGTERM")
    where = ("--config", str(tmp_path / "card.py"), "--workdir", str(tmp_path / "w"))
    stopped = spawn("prepare", *where, f"--config.workers={workers}")
    assert stopped.returncode == -signal.SIGTERM
    assert "prepare: stopped, as SIGTERM asked; the same command goes on" in stopped.stderr
    assert "Traceback" not in stopped.stderr and not (tmp_path / "w/prepare/b").exists()
    assert workers == "2" or names(tmp_path) == {"cases.jsonl", "job.json", "a"}
    assert prepare() == 0 and names(tmp_path) == FILES | {"a", "b", "c"}


def test_workers_run_cases_side_by_side(prepare, texts, tmp_path, capsys) -> None:
    for name in "ab":  # each waits for the other
        (texts / f"{name}.txt").write_text("together")
    assert prepare("workers=2") == 0
    assert list(record(tmp_path)) == ["a", "b", "c"] and names(tmp_path) == FILES | set("abc")
    (texts / "a.txt").write_text("full")
    assert prepare("workers=2") == 1
    assert "no space left" in capsys.readouterr().err
    assert prepare("workers=0") == 2
    assert "config.workers = 0 must be at least 1" in capsys.readouterr().err


# ------------------------------------------------------------------------- keywords


def test_a_keyword_that_the_card_does_not_list_can_be_set(prepare, texts, tmp_path, capsys) -> None:
    keys = ("repeat=2", "window=(1,2,3)", "margin=[4,5]", "suffix='?'")
    assert prepare(*(f"jobs.prepare.{key}" for key in keys)) == 0
    assert (tmp_path / "w/prepare/a/loud.txt").read_text() == "TEXT ATEXT A?"
    asked = json.loads((tmp_path / "w/prepare/job.json").read_text())["jobs"]["prepare"]
    assert asked["repeat"] == 2 and asked["window"] == [1, 2, 3] and asked["margin"] == [4, 5]
    capsys.readouterr()
    for key, told in (
        (
            "repaet=2",
            "did you mean 'config.jobs.prepare.repeat'? legal here: config.jobs.pre",
        ),
        ("repeat=two", "config.jobs.prepare.repeat = 'two' must be int, not str"),
        ("window=wide", "config.jobs.prepare.window = 'wide' must be a sequence or None, not str"),
        ("margin=True", "config.jobs.prepare.margin = True must be int or a sequence, not bool"),
    ):
        assert prepare(f"jobs.prepare.{key}") == 2
        said = capsys.readouterr().err
        assert told in said and len(said.splitlines()) == 1
    assert prepare("jobs.verify.repeat=2") == 2  # the card has no such job
    assert "unknown key 'config.jobs.verify.repeat'" in capsys.readouterr().err


# ------------------------------------------------------------------------- another config


def test_another_config_is_refused_unless_forced(prepare, texts, tmp_path, capsys) -> None:
    assert prepare() == 0
    assert prepare("jobs.prepare.suffix=?") == 2
    said = capsys.readouterr().err
    assert "another config (jobs.prepare.suffix: '!' -> '?')" in said and "--force" in said
    assert (tmp_path / "w/prepare/a/loud.txt").read_text() == "TEXT A!"
    assert prepare("jobs.prepare.suffix=?", flags=("--force",)) == 0
    assert Shout.seen == ("a", "b", "c")
    assert (tmp_path / "w/prepare/a/loud.txt").read_text() == "TEXT A?"
    assert prepare("jobs.prepare.suffix=?") == 0 and Shout.seen == ()
    with lock(tmp_path / "w/prepare", "job"):
        assert prepare("jobs.prepare.suffix=?") == 2
    assert "another job is running" in capsys.readouterr().err


def test_a_finish_that_fails_costs_no_case(prepare, texts, tmp_path, capsys) -> None:
    (texts / "a.txt").write_text("x" * 13)
    assert prepare() == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: Shout.finish: 13 letters"
    assert set(record(tmp_path)) == {"a", "b", "c"}


# ------------------------------------------------------------------------- a trained state


def test_a_job_is_given_the_state_of_the_checkpoint(
    launch, last_state, tmp_path, capsys, monkeypatch
) -> None:
    text = (
        Path(CARD)
        .read_text()
        .replace(
            "    return config",
            '    score = {"name": "tests.launch.toy_job:Score", "ids": ("x", "y")}\n'
            '    config.jobs = {"predict": score}\n'
            "    return config",
        )
    )
    (tmp_path / "card.py").write_text(text)
    card, work = str(tmp_path / "card.py"), tmp_path / "w"
    assert launch(work, "steps=2", verb="predict", card=card) == 2
    assert "train it first" in capsys.readouterr().err
    assert launch(work, "steps=2", "eval_every=0", card=card) == 0
    keys = ("eval_every=0", "jobs.predict.ids=('x','y','z')")
    assert launch(work, "steps=2", *keys, verb="predict", card=card) == 0
    total = float(np.abs(last_state(work / "seed0")[0]["['params']['first']"]).sum())
    rows = {case: row["row"] for case, row in record(tmp_path, "predict").items()}
    assert set(rows) == {"x", "y", "z"} and rows["x"]["width"] == 64
    assert rows["z"]["total"] == pytest.approx(total, rel=1e-6)
    # Trained on: the old predictions are not the new checkpoint's.
    assert launch(work, "steps=3", *keys, card=card) == 0
    assert launch(work, "steps=3", *keys, verb="predict", card=card) == 2
    assert "checkpoint: 2 -> 3" in capsys.readouterr().err
    assert launch(work, "steps=3", *keys, "task.noise=1", verb="predict", card=card) == 2
    assert "task.noise: 0.1 -> 1.0" in capsys.readouterr().err
    narrow = ("eval_every=0", "jobs.predict.ids=('narrow',)")
    again = {"verb": "predict", "card": card, "flags": ("--force",)}
    # Stopped before its end: said, and no obstacle.
    monkeypatch.setattr("launch.jobs.trained", lambda folder: 1)
    assert launch(work, "steps=3", *keys, **again) == 0
    assert "trained to step 1 of 3; checkpoint 3 is used" in capsys.readouterr().err
    assert launch(work, "steps=3", *narrow, **again) == 2
    assert "error: Score: the state is too wide" in capsys.readouterr().err
    assert launch(work, "seeds=2", *keys, verb="predict", card=card) == 2
    assert "2 trainings (seed0, seed1)" in capsys.readouterr().err


# ------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        (["jobs.prepare.texts=/no/such"], "Shout: texts = '/no/such' is no folder"),
        (["jobs.prepare.sufix=x"], "did you mean 'config.jobs.prepare.suffix'"),
        (["jobs.prepare.name=tests.launch.toy_job:Shot"], "jobs there: Shout, Score"),
        (["jobs.prepare.name=tests.launch.no_job:Shout"], "No module named"),
        (["jobs.prepare.name=Shout"], "config.jobs.prepare.name = 'Shout' must be 'module:attr"),
        (["jobs.prepare.ids=('a','x/y')"], "Shout: case 'x/y' cannot name a folder"),
        (["jobs.prepare.ids=('a','a')"], "Shout: case 'a' is there twice"),
        (["jobs.prepare.texts=."], "Shout: there are no cases"),
        (["jobs.prepare.limit=data:exampel-ct"], "config.jobs.prepare.limit: unknown data set"),
        (["steps=3"], "unknown key 'config.steps'"),
    ],
)
def test_a_mistake_in_a_job_is_one_line(keys, part, prepare, capsys) -> None:
    assert prepare(*keys) == 2
    said = capsys.readouterr().err
    assert part in said and len(said.splitlines()) == 1


def test_what_a_card_has_no_job_for(prepare, tmp_path, capsys) -> None:
    for argv, part in (
        ({"verb": "predict"}, "card.py has no config.jobs.predict (a mapping"),
        ({"verb": "train"}, "no config.task, so there is nothing to train; it has jobs for prep"),
        ({"verb": "evaluate"}, "nothing to evaluate"),
        ({"verb": "explain"}, "nothing to explain"),
        ({"verb": "explain", "card": "card.py:x", "flags": ("--count=3",)}, "--count is for train"),
    ):
        assert prepare(**argv) == 2
        said = capsys.readouterr().err
        assert part in said and len(said.splitlines()) == 1
    assert prepare(verb="explain", card="card.py:x") == 0

    def told(text: str) -> str:
        (tmp_path / "card.py").write_text(f"def get_config():\n    return {text}\n")
        assert prepare() == 2
        return capsys.readouterr().err

    assert "'config.jobs.prepaer': did you mean 'config.jobs.prepare'" in told(
        "{'jobs': {'prepaer': {'name': 'a:b'}}}"
    )
    assert "config.jobs.prepare = 3 must be a mapping" in told("{'jobs': {'prepare': 3}}")
    assert "config.task is missing" in told("{}")
    assert "config.steps is missing" in told(
        "{'jobs': {'prepare': {'name': 'a:b'}}, 'task': {'name': 'a:b'}}"
    )


# ------------------------------------------------------------------------- parts


def test_several_processes_share_the_cases_and_join_their_records(tmp_path: Path) -> None:
    cases = list("abcdefg")
    shares = [jobs.share(cases, i, 3) for i in range(3)]
    assert shares == [["a", "d", "g"], ["b", "e"], ["c", "f"]]

    def row(case: str, status: str = "done") -> dict:
        return {"case": case, "status": status, "fingerprint": "", "row": {}}

    records = [Record(tmp_path, process=i, count=3) for i in range(3)]
    for one, own in zip(records, shares, strict=True):
        for case in own:
            one.add(row(case))
    for one in records:
        one.close()  # as if all were killed before the end
    assert len(list(tmp_path.glob("cases*.jsonl"))) == 3
    # Two processes go on; the record of the third, which is no more, is kept.
    records = [Record(tmp_path, process=i, count=2) for i in range(2)]
    assert all(set(one.rows) == set(cases) for one in records)
    records[1].add(row("b", "failed"))
    for one in reversed(records):
        one.join(cases)
    assert [p.name for p in tmp_path.iterdir()] == ["cases.jsonl"]
    lines = [json.loads(x) for x in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert [x["case"] for x in lines] == cases
    assert [x["case"] for x in lines if x["status"] == "failed"] == ["b"]


def test_damaged_lines_of_a_record_are_passed_over(tmp_path: Path) -> None:
    good = {"case": "a", "status": "done", "ended": 1.0, "row": {}}
    bad = [b"\xff\xfe", b"[1]", b'{"case": 3}', b'{"case": "b", "status": "done"}', b"{"]
    lines = [bad[0], json.dumps(good).encode(), *bad[1:]]
    (tmp_path / "cases.jsonl").write_bytes(b"\n".join(lines))
    found = Record(tmp_path)
    found.add({"case": "c", "status": "done"})
    found.close()
    again = Record(tmp_path)
    again.close()
    assert set(again.rows) == {"a", "c"}


PLACES = ("..", "../a", "/a", "a/b", "a\\b", "a\0b", "a\nb")
OURS = ("job.json", "cases.jsonl", "cases.3.jsonl", "cases.jsonl.part")


@pytest.mark.parametrize("case", ["", ".x", *PLACES, *OURS, "x" * 201, 3, "é" * 101, "\udcff"])
def test_ids_that_are_no_folder_names(case: str) -> None:
    with pytest.raises(SetupError, match="cannot name a folder"):
        check_names(["fine", case], "Job")
    assert check_names(["Ünicode name 1", "a.nii"], "Job") == ["Ünicode name 1", "a.nii"]


def test_a_link_in_place_of_a_case_s_folder_is_not_followed(prepare, texts, tmp_path) -> None:
    """Nothing behind it is written or deleted; the case fails until the link is gone."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("")
    work = tmp_path / "w" / "prepare"
    work.mkdir(parents=True)
    for name in ("a", ".part-b"):
        (work / name).symlink_to(mine)
    assert prepare() == 1
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    assert {k for k, row in record(tmp_path).items() if row["status"] == "done"} == {"c"}
