"""Named data sets: fetched once, laid out whole, and only where they may."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch import data
from launch.__main__ import main
from launch.archive import Archive
from launch.data import DataSet, check_names, provide, resolved
from launch.experiment import SetupError
from tests.launch import toy_archive
from tests.launch.toy_archive import TEXT

BODY = toy_archive.toy_archive()


def lay_out_wrongly(archive: Path, folder: Path) -> None:
    raise KeyError("text.txt")


def lay_out_on_a_full_disk(archive: Path, folder: Path) -> None:
    (folder / "half.txt").write_text("")
    raise OSError(28, "No space left on device")


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data set `toy`, whose archive the user has put into the cache; pip would find nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    pinned = Archive("some_toy", "1.0", hashlib.sha256(BODY).hexdigest())
    made = DataSet(pinned, f"{toy_archive.__name__}:lay_out", "a toy")
    monkeypatch.setitem(data.TABLE, "toy", made)
    data.cache().mkdir(parents=True)
    file = data.cache() / pinned.filename
    file.write_bytes(BODY)
    return file


@pytest.fixture
def laid_out_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """laid_out_by(function): how `toy` is laid out from then on."""

    def change(function: Any) -> None:
        made = replace(data.TABLE["toy"], lay_out=f"{__name__}:{function.__name__}")
        monkeypatch.setitem(data.TABLE, "toy", made)

    return change


# ------------------------------------------------------------------------- the folder


def test_a_data_set_is_fetched_once(own, tmp_path, capsys) -> None:
    assert main(["data", "toy"]) == 0
    place = tmp_path / "cache/isnet-touchstone-jax/data/toy"
    told = capsys.readouterr()
    assert told.out == f"{place}\n" and told.err == "fetching toy: a toy\n"
    assert (place / "text.txt").read_bytes() == TEXT
    assert {p.name for p in place.parent.iterdir()} == {"toy", ".toy.lock", own.name}
    own.unlink()
    assert resolved({"a": ("data:toy", 1), "b": [{"c": "data:toy"}]}) == {
        "a": (str(place), 1),
        "b": [{"c": str(place)}],
    }
    assert main(["data"]) == 0
    assert f"toy: a toy ({place})" in capsys.readouterr().out


def test_a_folder_of_the_users_choice(tmp_path) -> None:
    assert main(["data", "toy", "--workdir", str(tmp_path / "own")]) == 0
    assert (tmp_path / "own/text.txt").read_bytes() == TEXT
    assert not (data.cache() / "toy").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("")
    with pytest.raises(SetupError, match="mine' is not an empty folder"):
        provide("toy", tmp_path / "mine")
    with pytest.raises(SetupError, match="thesis.txt' is not an empty folder"):
        provide("toy", tmp_path / "mine/thesis.txt")


def test_a_new_release_replaces_the_old_folder(monkeypatch) -> None:
    old = replace(data.TABLE["toy"].archive, version="0.9")
    with monkeypatch.context() as before:
        before.setitem(data.TABLE, "toy", replace(data.TABLE["toy"], archive=old))
        (data.cache() / old.filename).write_bytes(BODY)
        (provide("toy") / "text.txt").write_text("the old one")
    assert not data.is_there("toy")
    assert (provide("toy") / "text.txt").read_bytes() == TEXT
    assert data.is_there("toy")


# ------------------------------------------------------------------------- what can go wrong


def test_no_archive_is_one_line_of_the_program(own, capsys) -> None:
    own.write_bytes(BODY[1:])
    assert main(["data", "toy"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"error: {str(own)!r} has sha256 ") and len(said) == 2
    own.unlink()
    assert main(["data", "toy"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("error: cannot fetch some_toy-1.0.tar.gz: ") and len(said) == 2
    assert said[-1].endswith(f"into {str(own.parent)!r}")
    assert [p.name for p in data.cache().iterdir()] == [".toy.lock"]


def test_an_archive_that_is_not_what_is_expected(laid_out_by) -> None:
    laid_out_by(lay_out_wrongly)
    with pytest.raises(SetupError, match=r"some_toy-1.0.tar.gz cannot be laid out: KeyError"):
        provide("toy")
    assert not (data.cache() / "toy").exists() and not (data.cache() / ".toy.part").exists()


def test_a_full_disk_is_told(laid_out_by) -> None:
    laid_out_by(lay_out_on_a_full_disk)
    with pytest.raises(SetupError, match="toy cannot be put into .*: no space left on the disk"):
        provide("toy")
    assert not (data.cache() / "toy").exists() and not (data.cache() / ".toy.part").exists()


def test_unknown_names_are_told_with_their_key() -> None:
    with pytest.raises(SetupError, match="unknown data set 'exampel-ct': did you mean 'example-ct"):
        provide("exampel-ct")
    with pytest.raises(SetupError, match=r"config.jobs.explain.model.*'squeezenet1_1'"):
        check_names({"jobs": {"explain": {"model": [{"x": "data:squeezenet"}]}}})
    check_names({"a": {"b": ["data:squeezenet1_1", None, 3]}})


def test_the_table_is_pinned() -> None:
    for name, one in data.TABLE.items():
        assert len(bytes.fromhex(one.archive.sha256)) == 32, name
        assert one.lay_out.count(":") == 1 and one.archive.version[0].isdigit()
