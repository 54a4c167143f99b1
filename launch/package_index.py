"""A file of the package index that pip is configured with, checked by its sha256; nothing is run.

The simple index is read as PEP 503 (HTML) or PEP 691 (JSON) describe it. pip itself would build a
source distribution to learn its metadata, which runs the project's own code: here the archive is
only data.
"""

from __future__ import annotations

import ast
import base64
import functools
import hashlib
import json
import os
import re
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from http.client import HTTPException
from pathlib import Path
from typing import Any

import rich.console
import rich.progress

from launch.experiment import SetupError
from launch.workdir import no_space

DEFAULT_INDEX = "https://pypi.org/simple"
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_TIMEOUT_SECONDS = 60
_BLOCK = 1 << 18  # bytes read at a time


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


@dataclass(frozen=True)
class Settings:
    """Where pip looks: folders first, then the indexes in order. `certificate` is a PEM file."""

    folders: tuple[str, ...] = ()
    indexes: tuple[str, ...] = (DEFAULT_INDEX,)
    certificate: str | None = None


# ------------------------------------------------------------------------- what pip is told


def pip_settings() -> Settings:
    """What pip is configured with: its files and PIP_… variables, by `pip config list`."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    if done.returncode:  # an environment without pip
        told = {
            k[4:].lower().replace("_", "-"): v for k, v in os.environ.items() if k[:4] == "PIP_"
        }
        return parse_settings("\n".join(f":env:.{key}={value!r}" for key, value in told.items()))
    return parse_settings(done.stdout)


def parse_settings(listed: str) -> Settings:
    """The settings in the lines `section.name='value'` that pip prints."""
    found: dict[str, str] = {}
    # What is for `download` alone is nearer than what is for all commands; variables win.
    for section in ("global", "download", ":env:"):
        for line in listed.splitlines():
            key, equals, value = line.partition("=")
            if equals and key.startswith(section + "."):
                found[key.removeprefix(section + ".")] = str(ast.literal_eval(value))
    indexes = [found.get("index-url", DEFAULT_INDEX), *found.get("extra-index-url", "").split()]
    if found.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        indexes = []
    folders = tuple(found.get("find-links", "").split())
    return Settings(folders, tuple(indexes), found.get("cert"))


# ------------------------------------------------------------------------- asking an index


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _normal(name: str) -> str:
    """A project's or a file's name as PEP 503 compares them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _public(url: str) -> str:
    """The address without a password in it."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


@functools.cache
def _context(certificate: str | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate)


def _open(url: str, settings: Settings, **headers: str) -> Any:
    parts = urllib.parse.urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    if at:
        plain = urllib.parse.unquote(user).encode()
        headers["Authorization"] = "Basic " + base64.b64encode(plain).decode()
    if parts.scheme not in ("https", "http", "file"):
        raise SetupError(f"package index {_public(url)!r} must be https://, http:// or file://")
    request = urllib.request.Request(_public(url), headers=headers)
    tls = {"context": _context(settings.certificate)} if parts.scheme == "https" else {}
    return urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS, **tls)


def _page(url: str, settings: Settings) -> list[str]:
    """The addresses of a project's files on one index; none if it does not know the project."""
    if url.startswith("file:"):
        folder = Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path))
        if not (folder / "index.html").is_file():
            return []
        url += "index.html"
    try:
        with _open(url, settings, Accept=_ACCEPT) as answer:
            body, kind, place = answer.read(), answer.headers.get_content_type(), answer.url
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            return []
        raise
    if kind.endswith("+json"):
        hrefs = [str(file["url"]) for file in json.loads(body)["files"]]
    else:
        parser = _Links()
        parser.feed(body.decode("utf-8", "replace"))
        hrefs = parser.found
    return [urllib.parse.urljoin(place, href) for href in hrefs]


def _candidates(archive: Archive, settings: Settings) -> Iterator[str]:
    """Addresses of the archive: in pip's folders, then in its indexes."""
    wanted = _normal(archive.filename)
    for place in settings.folders:
        text = urllib.parse.urlsplit(place).path if place.startswith("file:") else place
        folder = Path(urllib.request.url2pathname(text))
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if _normal(path.name) == wanted:
                yield path.resolve().as_uri()
    for index in settings.indexes:
        for link in _page(f"{index.rstrip('/')}/{_normal(archive.project)}/", settings):
            path = urllib.parse.unquote(urllib.parse.urlsplit(link).path)
            if _normal(path.rpartition("/")[2]) == wanted:
                yield urllib.parse.urldefrag(link).url


# ------------------------------------------------------------------------- fetching


def fetch(archive: Archive, target: Path, settings: Settings | None = None) -> None:
    """Bring the archive to `target`; a broken download goes on where it stopped.

    Raises:
        SetupError: no index answers or has it, or its sha256 is another than the pinned one.
    """
    settings = pip_settings() if settings is None else settings
    try:
        link = next(_candidates(archive, settings), None)
        if link is None:
            looked = ", ".join([*settings.folders, *map(_public, settings.indexes)])
            raise SetupError(
                f"no {archive.filename} in {looked or 'no index'}; {_by_hand(archive)}"
            )
        part = target.with_name(target.name + ".part")
        began = part.is_file() and part.stat().st_size > 0
        got = _download(link, part, archive.filename, settings)
        if got != archive.sha256 and began:  # it may go on from another file's beginning
            part.unlink()
            got = _download(link, part, archive.filename, settings)
    except (OSError, HTTPException, ValueError, KeyError) as error:
        of_network = isinstance(error, urllib.error.URLError)
        if no_space(error) or (getattr(error, "filename", None) and not of_network):
            raise  # of this machine
        reason = getattr(error, "reason", None) or error
        raise SetupError(
            f"cannot fetch {archive.filename}: {reason}; {_by_hand(archive)}"
        ) from error
    if got != archive.sha256:
        part.unlink()
        raise SetupError(
            f"{archive.filename} from {_public(link)} has sha256 {got}, expected {archive.sha256}: "
            "it was thrown away"
        )
    part.replace(target)


def _by_hand(archive: Archive) -> str:
    return (
        f"without a network: get {archive.filename} elsewhere (sha256 {archive.sha256[:12]}…), "
        "put it in a folder and set PIP_FIND_LINKS to that folder"
    )


def _download(link: str, part: Path, name: str, settings: Settings) -> str:
    """Complete `part` from the address; the sha256 of the whole."""
    have = part.stat().st_size if part.is_file() else 0
    headers = {"Range": f"bytes={have}-"} if have and not link.startswith("file:") else {}
    try:
        answer = _open(link, settings, **headers)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the range is empty: all of it is here, or it is another file's
            raise
        return _sha256(part)
    with answer, part.open("ab" if getattr(answer, "status", 200) == 206 else "wb") as file:
        length = answer.headers.get("Content-Length")
        total = int(length) + file.tell() if length else None
        with _progress() as shown:
            task = shown.add_task(name, total=total, completed=file.tell())
            while block := answer.read(_BLOCK):
                file.write(block)
                shown.update(task, advance=len(block))
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"the connection ended after {part.stat().st_size} of {total} bytes")
    return _sha256(part)


def _progress() -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
        console=rich.console.Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
