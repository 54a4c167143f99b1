"""The files of a work folder: may it be written, is it another experiment's, what is finished."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.card import Leaf
from launch.experiment import SetupError

# These cannot change what is learnt, so a run may go on with other values.
FREE = ("mesh.data", "mesh.fsdp", "tensorboard", "checkpoint.keep", "checkpoint.keep_best", "steps")


def probe(folder: Path) -> None:
    """Make `folder` and write a file in it.

    Raises:
        SetupError: it cannot be written; the message names the path and the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f".probe{os.getpid()}"
        file.write_text("can this be written?")
        file.unlink(missing_ok=True)
    except OSError as error:
        raise SetupError(
            f"workdir {str(folder)!r} cannot be written: {error.strerror or error}; "
            "give --workdir a folder that can"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a reader sees the old one or the new one, never half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def read_json(path: Path) -> Any:
    """The value in a JSON file; None if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def has_checkpoint(folder: Path) -> bool:
    """Whether a leaf has something to resume (complete or not)."""
    place = folder / "checkpoints"
    return place.is_dir() and any(p.name.isdigit() for p in place.iterdir())


def _flat(values: Mapping, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        below = isinstance(value, Mapping) and value
        flat |= _flat(value, f"{prefix}{name}.") if below else {prefix + name: value}
    return flat


def changes(old: Mapping, new: Mapping) -> list[str]:
    """Tell `key: old -> new` for every key that matters and differs; `steps` may grow."""
    before, after, told = _flat(old), _flat(new), []
    for key in sorted(before.keys() | after.keys()):
        a, b = before.get(key, "absent"), after.get(key, "absent")
        shrunk = key == "steps" and b < a
        if a != b and (shrunk or key not in FREE):
            told.append(f"{key}: {a!r} -> {b!r}")
    return told


def refuse_changes(leaf: Leaf, force: bool) -> None:
    """Refuse to resume under another config than the saved state's, unless `force`.

    Raises:
        SetupError: it names every key that differs.
    """
    old = read_json(leaf.folder / "config.json")
    if old is None or not has_checkpoint(leaf.folder):
        return
    told = changes(old, leaf.config)
    if told and not force:
        raise SetupError(
            f"{leaf.folder} was trained with another config ({'; '.join(told)}): "
            "use another --workdir, or --force to go on with the new one"
        )
    if told:  # what was evaluated is not what will be
        (leaf.folder / "results.json").unlink(missing_ok=True)


def claim(leaf: Leaf) -> None:
    """Make the leaf's folder and store its config there."""
    leaf.folder.mkdir(parents=True, exist_ok=True)
    write_json(leaf.folder / "config.json", leaf.config)


def results(leaf: Leaf) -> dict[str, Any] | None:
    """The leaf's final evaluation; None if it is not there or belongs to fewer steps."""
    found = read_json(leaf.folder / "results.json")
    return found if found and found["steps"] >= leaf.experiment.steps else None


def finished(workdir: Path, todo: Sequence[Leaf]) -> bool:
    """Whether nothing is left to do: all leaves trained and evaluated, pictures drawn or refused.

    `train` marks the table as complete after the pictures, so the mark stands for them too.
    """
    table = read_json(workdir / "table.json")
    leaves = sorted(leaf.label for leaf in todo)
    done = table is not None and table["complete"] == leaves
    return done and all(results(leaf) is not None for leaf in todo)
