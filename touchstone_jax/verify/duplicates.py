"""Cases that are the same CT under two names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from touchstone_jax.findings import Finding
from touchstone_jax.io import Volume


def duplicates(digests: Mapping[str, str]) -> Iterator[Finding]:
    """An error for every case whose voxels an earlier one has; case id to `Examined.digest`.

    The same CT on both sides of a split makes every score too good.
    """
    first: dict[str, str] = {}
    for case, digest in digests.items():
        if digest and digest in first:
            told = f"its CT has the same voxels and spacing as case {first[digest]}"
            yield Finding(case, "duplicate", "error", told, "keep one of the two")
        first.setdefault(digest, case)


def digest(ct: Volume) -> str:
    """Hash of canonical voxels (float32) and spacing: re-saving or reorienting keeps it."""
    spacing = [round(s, 4) for s in ct.spacing_mm]
    seed = hashlib.blake2b(f"{ct.array.shape} {spacing}".encode(), digest_size=16)
    # + 0.0 makes -0.0 and 0.0 one value.
    seed.update(np.asfortranarray(ct.array + np.float32(0), "<f4").T.data)
    return seed.hexdigest()
