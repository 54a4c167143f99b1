"""What the data of a configuration are, wherever their files lie."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def identity(options: Any) -> Any:
    """The nested `options` of a data set with a digest in place of every path that exists.

    The digest is of the names below the path and their sizes, hidden files left out: nothing is
    read, and a copy of a folder is the same data.
    """
    if isinstance(options, Mapping):
        return {name: identity(value) for name, value in options.items()}
    if isinstance(options, list | tuple):
        return [identity(value) for value in options]
    if isinstance(options, str) and options and Path(options).exists():
        return _digest(Path(options))
    return options


def _digest(place: Path) -> dict[str, Any]:
    found = sorted(place.rglob("*")) if place.is_dir() else [place]
    digest, files = hashlib.blake2b(digest_size=16), 0
    for path in found:
        inside = path.relative_to(place).parts
        if path.is_file() and not any(part.startswith(".") for part in inside):
            digest.update(f"{'/'.join(inside)}\0{path.stat().st_size}\0".encode())
            files += 1
    return {"files": files, "digest": digest.hexdigest()}
