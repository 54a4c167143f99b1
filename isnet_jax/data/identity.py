"""What data sets are, wherever their files lie."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from isnet_jax.data.splits import Column, Splits


def identity(options: Mapping[str, Any], splits: Splits) -> dict[str, Any]:
    """Plain JSON by which two data sets can be told apart: `options` without paths, and contents.

    Of each split the number of items, the columns' shapes and a hash of the labels and of other
    integer columns. Images count by number and size alone: their values may differ in the last
    bit between machines, and reading them all takes long.
    """
    return {
        "options": _without_paths(options),
        "splits": {name: _split(columns) for name, columns in splits.arrays.items()},
    }


def _without_paths(options: Any) -> Any:
    if isinstance(options, Mapping):
        # A source's name may be a folder's, too.
        return {k: v if k == "source" else _without_paths(v) for k, v in options.items()}
    if isinstance(options, list | tuple):
        return [_without_paths(value) for value in options]
    is_path = isinstance(options, str) and options and Path(options).exists()
    return "a path" if is_path else options


def _split(columns: Mapping[str, Column]) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=16)
    for name, column in sorted(columns.items()):
        digest.update(f"{name} {tuple(column.shape)}".encode())
        if isinstance(column, np.ndarray) and (column.dtype.kind in "biu" or name == "label"):
            digest.update(np.ascontiguousarray(column).tobytes())
    return {"items": len(columns["label"]), "digest": digest.hexdigest()}
