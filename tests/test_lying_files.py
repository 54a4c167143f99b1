"""Arrays in files whose headers promise what is not there: one line, and no memory taken."""

import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import pytest
from numpy.lib import format as npy

from isnet_jax import data
from isnet_jax.stored import load_model
from tests.touchstone.toy_prepared import write_set
from touchstone_jax.models.convert import read_arrays
from touchstone_jax.models.text import read_embeddings
from touchstone_jax.prepare.prepared import open_prepared

SHAPES = {"more than there is memory": (2**45,), "more than there are numbers": (2**62, 4)}


def promising(shape: tuple[int, ...]) -> bytes:
    """An .npy of that shape in its header, and 64 bytes."""
    raw = io.BytesIO()
    npy.write_array_header_1_0(raw, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return raw.getvalue() + bytes(64)


def zipped(path: Path, content: bytes, names: tuple[str, ...]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(f"{name}.npy", content)
    return path


def images(folder: Path, content: bytes) -> None:
    for split in ("train", "val"):
        zipped(folder / f"{split}.npz", content, ("image", "mask", "label"))
    data.load("npz_folder", folder=str(folder), num_classes=2)


def weights(folder: Path, content: bytes) -> None:
    path = zipped(folder / "w.npz", content, ("features.0.weight",))
    load_model("squeezenet1_1", weights=str(path))


def weights_to_convert(folder: Path, content: bytes) -> None:
    read_arrays(zipped(folder / "w.npz", content, ("a",)))


def vectors(folder: Path, content: bytes) -> None:
    (folder / "v.npy").write_bytes(content)
    read_embeddings(folder / "v.npy", 2)


def voxels(folder: Path, content: bytes) -> None:
    write_set(folder / "set", 1)
    (folder / "set/case_0/foreground.npy").write_bytes(content)
    open_prepared(folder / "set/case_0")


READERS = {
    images: r"train.npz: not a readable npz file \(",
    weights: r"w.npz: damaged or not .npz: ",
    weights_to_convert: r"w.npz: cannot be read: ",
    vectors: r"v.npy: cannot be read: ",
    voxels: r"case_0: .*foreground.npy cannot be read",
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize(("reader", "said"), READERS.items())
def test_sizes_in_headers(
    reader: Callable[[Path, bytes], None], said: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    before = getrusage(RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=said) as caught:
        reader(tmp_path, promising(shape))
    assert getrusage(RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB
    assert "\n" not in str(caught.value)


def test_damaged_and_encrypted_archives(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "w.npz", promising((16,)), ("image", "a")).read_bytes()
    at = whole.index(b"PK\x01\x02") + 8  # flags in the central directory
    locked = whole[:6] + b"\1" + whole[7:at] + b"\1" + whole[at + 1 :]
    for raw, said in ((locked, "is encrypted"), (whole[:-30], "zip"), (b"PK", "")):
        (tmp_path / "train.npz").write_bytes(raw)
        shutil.copy(tmp_path / "train.npz", tmp_path / "val.npz")
        (tmp_path / "w.npz").write_bytes(raw)
        with pytest.raises(ValueError, match=f"train.npz: not a readable npz file .*{said}"):
            data.load("npz_folder", folder=str(tmp_path), num_classes=2)
        with pytest.raises(ValueError, match=f"w.npz: damaged or not .npz: .*{said}"):
            load_model("squeezenet1_1", weights=str(tmp_path / "w.npz"))
        with pytest.raises(ValueError, match=f"w.npz: cannot be read: .*{said}"):
            read_arrays(tmp_path / "w.npz")
