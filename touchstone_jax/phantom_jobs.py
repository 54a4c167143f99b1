"""Prepare made-up CTs: a data set to try the whole way on, with nothing to fetch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from touchstone_jax.jobs import Prepare
from touchstone_jax.phantom import write_dataset

_STAMP = "phantoms.json"


class PreparePhantoms(Prepare):
    """Write phantoms into a folder, unless they are there, and prepare those for training.

    ``folder/train`` and ``folder/test`` are data sets in the AbdomenAtlas layout; the test
    phantoms are never prepared: they are for `Predict` and `Evaluate`.

    Args:
        folder: where the phantoms go.
        train: how many to train on, at least 1.
        test: how many to hold out, at least 1.
        seed: of the first phantom; not negative.
        phantom: ``shape``, ``spacing_mm``, ``orientations`` and ``noise_hu`` of
            `touchstone_jax.phantom.write_dataset`.
        **prepare: keywords of `touchstone_jax.jobs.Prepare`, except its ``data``.

    Raises:
        ValueError: an illegal value, or a folder with other files or other phantoms.
        TypeError: a keyword that `Prepare` or `write_dataset` does not take.
    """

    places: ClassVar[tuple[str, ...]] = ("folder",)

    def __init__(
        self,
        folder: str,
        *,
        train: int = 24,
        test: int = 8,
        seed: int = 0,
        phantom: Mapping[str, Any] = {},
        **prepare: Any,
    ) -> None:
        if train < 1 or test < 1:
            raise ValueError(f"train={train}, test={test}: expected at least 1 of each")
        asked = {"train": train, "test": test, "seed": seed, "phantom": dict(phantom)}
        _provide(Path(folder), asked)
        super().__init__(str(Path(folder) / "train"), **prepare)


def _provide(folder: Path, asked: Mapping[str, Any]) -> None:
    text = json.dumps(asked, sort_keys=True, default=list) + "\n"
    stamp = folder / _STAMP
    if folder.exists() and (stamp.is_file() or any(folder.iterdir())):
        if not stamp.is_file() or stamp.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"folder {str(folder)!r} holds other files: delete it, or name another"
            )
        return
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    first = asked["seed"]
    write_dataset(part / "train", asked["train"], first, **asked["phantom"])
    write_dataset(part / "test", asked["test"], first + asked["train"], **asked["phantom"])
    (part / _STAMP).write_text(text, encoding="utf-8")
    if folder.exists():  # empty
        folder.rmdir()
    part.rename(folder)
