"""The files of a case, and finding NIfTI files in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from touchstone_jax.io import SUFFIXES
from touchstone_jax.labels.scheme import Scheme


@dataclass(frozen=True)
class Case:
    """The files of one patient's CT; one that does not exist is named where it was expected.

    Attributes:
        id: its name in the data set, usable as a folder name.
        ct: the CT.
        masks: organ name of ``scheme`` and file of its mask, in the order of names; empty where
            there is a label map or nothing.
        label_map: the one file of all labels, if the layout has it.
        scheme: what organ names and labels mean; None if the data set has no labels.
    """

    id: str
    ct: Path
    masks: tuple[tuple[str, Path], ...] = ()
    label_map: Path | None = None
    scheme: Scheme | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the case, the CT first."""
        labels = () if self.label_map is None else (self.label_map,)
        return (self.ct, *(path for _, path in self.masks), *labels)


def is_id(text: str) -> bool:
    """Whether a case's id that was read from a file names a folder beside it, and no other place.

    ids of `touchstone_jax.layouts.discover` are names of files and folders already.
    """
    return text.strip(" .") != "" and not set(text) & set("/\\\0")


def folders(folder: Path) -> list[Path]:
    """The visible folders inside a folder, sorted."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def volumes(folder: Path) -> dict[str, Path]:
    """The NIfTI files of a folder by their names without suffix; none where there is no folder.

    Raises:
        ValueError: two files of one name, one compressed and one not.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        suffix = next((s for s in SUFFIXES if path.name.endswith(s)), None)
        # macOS leaves ._ files beside every file that it copies.
        if suffix is None or path.name.startswith("."):
            continue
        name = path.name.removesuffix(suffix)
        if name in found:
            raise ValueError(f"{folder}: {found[name].name} and {path.name} are one name twice")
        found[name] = path
    return found


def volume(folder: Path, name: str) -> Path:
    """The file of that name, .nii.gz or .nii; the former where neither exists."""
    compressed, plain = folder / f"{name}.nii.gz", folder / f"{name}.nii"
    return plain if plain.is_file() and not compressed.is_file() else compressed
