"""Patches of prepared cases as grain data sets: what is drawn depends on seed and index alone.

A training item is a random block of a case, centred on a labelled voxel in a third of all draws
(nnU-Net's foreground oversampling, Isensee et al. 2021). Its random numbers come from the item's
global index, epochs counted on, so that any batch can be made again from its step. Only the chunks
that a block touches are read.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from touchstone_jax.infer.zoom import nearest_voxels
from touchstone_jax.labels.scheme import Scheme
from touchstone_jax.labels.schemes import scheme
from touchstone_jax.layers import Triple
from touchstone_jax.layouts.case_files import is_id
from touchstone_jax.losses import IGNORE
from touchstone_jax.prepare.plan import Plan
from touchstone_jax.prepare.prepared import Prepared, open_prepared

if TYPE_CHECKING:
    import grain

Item = dict[str, Any]
OPEN_CASES = 256


@dataclass(frozen=True)
class PreparedSet:
    """A folder that `prepare` made.

    Attributes:
        folder: with a folder for each case in it.
        plan: by which all cases were prepared.
        cases: their ids, in order.
    """

    folder: Path
    plan: Plan
    cases: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 1, 2, …"""
        return scheme(self.plan.labels).classes

    def identity(self) -> dict[str, Any]:
        """What the data are, wherever they lie, as plain JSON: the plan, and a hash of the cases.

        Of each case its id, its description (which has hashes of the CT's and its labels' files)
        and the size of its list of voxels are hashed. Raises OSError if they cannot be read.
        """
        digest = hashlib.blake2b(digest_size=16)
        for case in self.cases:
            folder = self.folder / case
            listed = (folder / "foreground.npy").stat().st_size
            digest.update(f"{case}/{listed}/".encode() + (folder / "meta.json").read_bytes())
        told = {"cases": len(self.cases), "digest": digest.hexdigest()}
        return {"plan": self.plan.to_json(), **told}


def read_set(place: str | Path | Mapping[str, Any]) -> PreparedSet:
    """The data set that `prepare` left in a folder; of a `PreparedSet.identity` one of no cases.

    Raises:
        FileNotFoundError: no ``dataset.json``, or a case's folder is missing.
        ValueError: ``dataset.json`` is damaged, or the identity has no plan.
    """
    if isinstance(place, Mapping):
        return PreparedSet(Path(), Plan.from_json(place.get("plan"), "data"), ())
    folder = Path(place)
    file = folder / "dataset.json"
    if not file.is_file():
        raise FileNotFoundError(f"data {str(folder)!r} holds no dataset.json: run `prepare` first")
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        plan, cases = stored["plan"], [str(case) for case in stored["cases"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} cannot be read: {error!r}") from error
    if not cases:
        raise ValueError(f"{file} lists no case")
    for case in cases:
        if not is_id(case):
            raise ValueError(f"{file}: case {case!r} cannot name a folder in {folder}")
        if not (folder / case / "meta.json").is_file():
            raise FileNotFoundError(f"{case}: no prepared case in {folder}; run `prepare` again")
    return PreparedSet(folder, Plan.from_json(plan, str(file)), tuple(cases))


def split_cases(
    cases: Sequence[str], validation: float | Sequence[str], *, seed: int = 0
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(training cases, validation cases), each in order.

    Args:
        cases: ids.
        validation: a share in [0, 1), of which at least one case if above 0: cases are ranked by
            a hash of seed and id, so that most stay where they are when others are added. Or ids.
            Ids that name all cases put them into training too: a network shown its own data.
        seed: of the ranking.

    Raises:
        ValueError: a share out of range, or that leaves nothing to train on; an id that is not
            among the cases.
    """
    if isinstance(validation, int | float):
        if not 0 <= validation < 1:
            raise ValueError(f"validation={validation}; expected a share in [0, 1), or case ids")
        count = max(1, round(validation * len(cases))) if validation else 0
        ranked = sorted(cases, key=lambda case: _hash(f"{seed}/{case}"))
        chosen = set(ranked[:count])
    else:
        chosen = set(validation)
        if unknown := sorted(chosen - set(cases)):
            raise ValueError(
                f"validation={unknown[0]!r} is none of the {len(cases)} cases ({cases[0]}, …)"
            )
        if chosen == set(cases):
            return tuple(cases), tuple(cases)
    train = tuple(case for case in cases if case not in chosen)
    if not train:
        raise ValueError(
            f"validation={validation} leaves none of {len(cases)} cases to train on; name them "
            "all in validation_cases to validate on the training cases"
        )
    return train, tuple(case for case in cases if case in chosen)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


# ------------------------------------------------------------------------- data sets


def random_patches(
    prepared: PreparedSet,
    cases: Sequence[str],
    block: Triple,
    *,
    foreground: float = 0.33,
    per_case: int = 1,
    zoom_out: float = 0.0,
    seed: int = 0,
) -> grain.MapDataset:
    """Items of one random block a case and epoch: `item` without "case".

    Args:
        prepared: the data set.
        cases: ids among its cases.
        block: voxels (x, y, z) of an item.
        foreground: probability of a block centred on a voxel of an organ: each organ of the case
            is as likely, then each of its listed voxels.
        per_case: blocks of each case in an epoch.
        zoom_out: probability of a whole case on as many voxels as a block has, instead of a part:
            of each the nearest, `touchstone_jax.infer.zoom.shrunk`.
        seed: of the draws; their order is launch's.

    Raises:
        ValueError: a probability out of range, or fewer than one block a case.
    """
    import grain

    if not (0 <= foreground <= 1 and 0 <= zoom_out <= 1) or per_case < 1:
        raise ValueError(
            f"foreground={foreground}, zoom_out={zoom_out}, per_case={per_case}: expected two "
            "probabilities and at least 1"
        )
    opened, labels = _opener(prepared), scheme(prepared.plan.labels)

    def draw(case: str, rng: np.random.Generator) -> Item:
        volume = opened(case)
        if zoom_out and rng.random() < zoom_out:
            return whole(volume, block, labels)
        start = draw_start(rng, volume, block, foreground)
        return item(volume, start, block, labels)

    names = [case for case in cases for _ in range(per_case)]
    return grain.MapDataset.source(names).random_map(draw, seed=seed)


def tiles(prepared: PreparedSet, cases: Sequence[str], patch: Triple) -> grain.MapDataset:
    """Blocks that cover every voxel of the cases once; `item` with its "case" number.

    The last block along an axis begins early enough to end with the volume; what its neighbour
    covers is `IGNORE` in it. A network with instance norms would see another image if the block
    were filled up with zeros instead. Arguments as for `random_patches`.
    """
    import grain

    opened, labels = _opener(prepared), scheme(prepared.plan.labels)
    places = []
    for number, case in enumerate(cases):
        shape = opened(case).shape
        grids = (range(0, n, p) for n, p in zip(shape, patch, strict=True))
        places += [(number, case, new) for new in itertools.product(*grids)]

    def read(place: tuple[int, str, Triple]) -> Item:
        number, case, new = place
        volume = opened(case)
        ends = zip(new, volume.shape, patch, strict=True)
        start = [max(min(first, n - p), 0) for first, n, p in ends]
        made = item(volume, start, patch, labels)
        for axis, (first, begin) in enumerate(zip(new, start, strict=True)):
            np.moveaxis(made["labels"], axis, 0)[: first - begin] = IGNORE
        return {**made, "case": np.int32(number)}

    return grain.MapDataset.source(places).map(read)


def _opener(prepared: PreparedSet) -> Any:
    @lru_cache(maxsize=OPEN_CASES)
    def opened(case: str) -> Prepared:
        volume = open_prepared(prepared.folder / case)
        if volume.meta.get("plan") != prepared.plan.digest():
            raise ValueError(f"{case}: prepared by another plan than dataset.json's: prepare again")
        return volume

    return opened


# ------------------------------------------------------------------------- one block


def draw_start(
    rng: np.random.Generator, volume: Prepared, block: Triple, foreground: float
) -> Triple:
    """First voxel (x, y, z) of a random block, negative where the volume is smaller than it.

    The block lies inside of the volume, or around its middle along axes that are too short.
    """
    organs = np.unique(volume.foreground[:, 0])
    if rng.random() < foreground and len(organs):
        voxels = volume.voxels_of(int(rng.choice(organs)))
        centre = voxels[rng.integers(len(voxels))]
        wanted = [int(c) - b // 2 for c, b in zip(centre, block, strict=True)]
    else:
        room = (max(n - b, 0) for n, b in zip(volume.shape, block, strict=True))
        wanted = [int(rng.integers(r + 1)) for r in room]
    x, y, z = (
        min(max(w, 0), n - b) if n >= b else -((b - n) // 2)
        for w, n, b in zip(wanted, volume.shape, block, strict=True)
    )
    return x, y, z


def item(volume: Prepared, start: Sequence[int], block: Triple, scheme: Scheme) -> Item:
    """One block as arrays: "image", "labels" and "annotated".

    float16 (x, y, z, 1), 0 outside of the volume; uint8 (x, y, z), `IGNORE` outside; bool (k,):
    whether each class was looked for in the case.
    """
    image, labels = np.zeros(block, np.float16), np.full(block, IGNORE, np.uint8)
    spans = [(max(s, 0), min(s + b, n)) for s, b, n in zip(start, block, volume.shape, strict=True)]
    if all(low < high for low, high in spans):
        box = tuple(slice(low, high) for low, high in spans)
        place = tuple(slice(low - s, high - s) for (low, high), s in zip(spans, start, strict=True))
        image[place], labels[place] = _read(volume, lambda store: store[box])
    known = annotated(volume, scheme)
    return {"image": image[..., None], "labels": labels, "annotated": known}


def whole(volume: Prepared, block: Triple, scheme: Scheme) -> Item:
    """As `item`, all of the volume on as many voxels as a block has: of each the nearest."""
    at = [nearest_voxels(b, n) for b, n in zip(block, volume.shape, strict=True)]
    image, labels = _read(volume, lambda store: store.oindex[tuple(at)])
    known = annotated(volume, scheme)
    return {"image": image[..., None], "labels": labels, "annotated": known}


def _read(volume: Prepared, cut: Callable[[Any], Any]) -> tuple[np.ndarray, np.ndarray]:
    """What ``cut`` takes of the image and of the labels."""
    reads = [cut(store).read() for store in (volume.image, volume.labels)]
    try:
        image, labels = (read.result() for read in reads)
    except ValueError as error:  # a damaged chunk
        raise ValueError(f"{volume.case}: {str(error).splitlines()[0]}") from error
    return image, labels


def annotated(volume: Prepared, scheme: Scheme) -> Bool[np.ndarray, " k"]:
    """Whether each class of the scheme (0 is the background) was looked for in the case."""
    known = np.ones(scheme.num_classes, bool)
    known[[scheme.indices[name] for name in volume.meta.get("missing", ())]] = False
    return known
