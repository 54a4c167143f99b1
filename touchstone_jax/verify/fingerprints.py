"""Has a case changed since it was done? Hashes of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from touchstone_jax.layouts import discover
from touchstone_jax.layouts.case_files import Case

FINGERPRINTS = ("content", "stat")


class OverCases:
    """A data set's cases by id, and hashes of their files; what jobs over cases have in common.

    Args:
        data: folder of the data set.
        layout: of `touchstone_jax.layouts`.
        source_labels: scheme of its labels; None for the layout's.
        fingerprints: "content" reads every file; "stat" takes size and time, which reads nothing
            but takes a copied data set for a new one.

    Raises:
        FileNotFoundError: no such folder, or no case in it.
        ValueError: an unknown layout, scheme or way of fingerprints, or an ambiguous data set.
        ModuleNotFoundError: no nibabel, which every case would miss.
    """

    def __init__(
        self, data: str, layout: str, source_labels: str | None, fingerprints: str
    ) -> None:
        if fingerprints not in FINGERPRINTS:
            raise ValueError(
                f"fingerprints={fingerprints!r}; legal values: {', '.join(FINGERPRINTS)}"
            )
        import nibabel  # noqa: F401

        found = discover(data, layout, labels=source_labels)
        self._cases: dict[str, Case] = {case.id: case for case in found}
        self._by_stat = fingerprints == "stat"
        self._hashes: dict[tuple[Any, ...], str] = {}

    def cases(self) -> Sequence[str]:
        """The ids of the data set's cases, in order."""
        return list(self._cases)

    def hash_files(self, case: Case) -> str:
        """By content, so that copying a data set does not make it new; or by size and time."""
        stats = tuple(stat_of(path) for path in case.files)
        if self._by_stat:
            return hash_of([case.id, *(path.name for path in case.files), *map(str, stats)])
        key = (case.id, stats)
        if key not in self._hashes:
            parts = [f"{path.name} {_content(path)}" for path in case.files]
            self._hashes[key] = hash_of([case.id, *parts])
        return self._hashes[key]


def stat_of(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in ns; (-1, 0) for a file that is not there."""
    try:
        stat = path.stat()
    except OSError:
        return -1, 0
    return stat.st_size, stat.st_mtime_ns


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError:
        return "missing"


def hash_of(parts: Iterable[Any]) -> str:
    """Hash of a list of words."""
    text = json.dumps([str(part) for part in parts])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
