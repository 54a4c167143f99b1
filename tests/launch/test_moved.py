"""Work folders and data that have moved: what is in them counts, not where they lie."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from launch.__main__ import main
from tests.launch.conftest import CARD
from tests.launch.toy_job import Shout

JOB = """
    config.jobs = {"predict": {"name": "tests.launch.toy_job:Score", "ids": ("x",)}}
    return config
"""


def test_moved_data_are_the_same_and_others_are_refused(
    launch: Callable, tmp_path: Path, capsys
) -> None:
    def run(steps: int, place: Path, **how) -> int:
        keys = ("eval_every=0", f"steps={steps}", f"task.place={place}")
        return launch(tmp_path / "w", *keys, **how)

    card = tmp_path / "card.py"
    card.write_text(Path(CARD).read_text().replace("    return config", JOB))
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("one")
    assert run(2, old) == 0
    old.rename(new)
    capsys.readouterr()
    for told in ("| run ", "finished"):  # the second time the place is known
        assert run(2, new) == 0 and capsys.readouterr().out.startswith(told)
    assert run(2, new, verb="evaluate") == 0 and run(3, new) == 0
    config = tmp_path / "w/seed0/config.json"
    assert json.loads(config.read_text())["task"]["place"] == str(new)
    # The config is read from the newest checkpoint where its own file is gone.
    config.unlink()
    new.write_text("two")
    for verb in ("train", "evaluate", "explain"):
        assert run(4 if verb == "train" else 3, new, verb=verb) == 2
        (told,) = capsys.readouterr().err.splitlines()[-1:]
        assert f"config.task.place = {str(new)!r}: text was 'one', is 'two'" in told
    # A job that predicts needs no data: they may be others, or nowhere.
    for place in (new, tmp_path / "nowhere"):
        flags = ("--force",)
        assert run(3, place, verb="predict", card=str(card), flags=flags) == 0
    assert run(3, tmp_path / "nowhere", verb="evaluate") == 2
    assert "Toy: [Errno 2] No such file" in capsys.readouterr().err
    # Forced, it goes on with the others, and what was scored with the first is done again.
    scored = (tmp_path / "w/seed0/results.json").stat().st_mtime_ns
    assert run(3, new, flags=("--force",)) == 0
    assert (tmp_path / "w/seed0/results.json").stat().st_mtime_ns > scored
    assert run(4, new, flags=("--force",)) == 0 and run(5, new) == 0


def test_the_places_of_a_job_may_move_with_their_content(tmp_path: Path, capsys) -> None:
    old, new, card = tmp_path / "old", tmp_path / "new", tmp_path / "card.py"
    old.mkdir()
    for name in "ab":
        (old / f"{name}.txt").write_text(name)
    card.write_text(
        'def get_config():\n    return {"jobs": {"prepare": {"name": "tests.launch.toy_job:Shout", '
        f'"texts": {str(old)!r}, "suffix": "!"}}}}}}\n'
    )

    def prepare(*keys: str) -> int:
        Shout.seen = ()
        where = ("--config", str(card), "--workdir", str(tmp_path / "w"))
        return main(["prepare", *where, *(f"--config.jobs.prepare.{key}" for key in keys)])

    assert prepare() == 0 and Shout.seen == ("a", "b")
    shutil.move(old, new)
    (new / "c.txt").write_text("c")
    assert prepare(f"texts={new}") == 0 and Shout.seen == ("c",)
    other = tmp_path / "other"
    shutil.copytree(new, other)
    for spoil, told in (
        (lambda: (other / "b.txt").write_text("B"), ", where b is another)"),
        (lambda: (other / "b.txt").unlink(), ", where b is not)"),
    ):
        spoil()
        assert prepare(f"texts={other}") == 2
        said = capsys.readouterr().err
        assert f"jobs.prepare.texts: {str(new)!r} -> {str(other)!r}{told}" in said
    assert prepare(f"texts={new}", "suffix=?") == 2
    assert "another config (jobs.prepare.suffix: '!' -> '?')" in capsys.readouterr().err
