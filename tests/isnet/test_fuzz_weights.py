"""Weights files of drawn bytes, and pickles made to take memory: arrays, or one line."""

import os
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from isnet_jax import stored
from isnet_jax.pickled_arrays import arrays_of_pickle
from tests.drawn import refused, spoilt_bytes
from touchstone_jax.models.convert import read_arrays


class Command:
    def __reduce__(self) -> tuple:
        return os.system, ("touch RAN",)


def _laughs(depth: int, width: int = 10) -> bytes:
    """Lists in lists, each `width` times the same: width ** depth numbers in a few bytes."""
    value: Any = [0]
    for _ in range(depth):
        value = [value] * width
    return pickle.dumps(value)


ARRAYS = {"a": [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, bool)], "b": "text"}
PICKLES = [pickle.dumps(ARRAYS, 4), pickle.dumps(ARRAYS, 3), pickle.dumps([ARRAYS, Command()])]


@given(st.sampled_from(PICKLES).flatmap(spoilt_bytes))
def test_pickles(tmp_path: Path, raw: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        refused(arrays_of_pickle, raw, names="not a pickle of arrays: ")
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"\x80\x04]r" + struct.pack("<I", 2**31) + b".", "remembers a value by the number"),
        (b"\x80\x04]p4294967295\n.", "remembers a value by the number"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.", "not a pickle|bytes"),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.", "not a pickle|frame|bytes"),
        (b"(" * 100_000 + b".", "not a pickle"),
    ],
)
def test_a_few_bytes_take_no_memory(raw: bytes, said: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=said):
            arrays_of_pickle(raw)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_what_is_shared_is_read_once() -> None:
    got = arrays_of_pickle(_laughs(40))
    for _ in range(40):
        assert len(got) == 10 and got[0] is got[9]
        got = got[0]
    assert got == [0]
    array = np.arange(3)
    first, second = arrays_of_pickle(pickle.dumps([array, array]))
    np.testing.assert_array_equal(first, array)
    assert first is second  # as pickle itself reads it


# ------------------------------------------------------------------------- safetensors


WHOLE = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.int64)})


def _file(head: bytes, body: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack("<Q", len(head) if size is None else size) + head + body


@given(spoilt_bytes(WHOLE))
def test_safetensors(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(raw)
    if not refused(stored._arrays, path, names="w.safetensors: damaged or not .safetensors: "):
        assert sum(array.nbytes for array in stored._arrays(path).values()) <= len(raw)
    refused(read_arrays, path, names="w.safetensors: ")


ONE = b'{"a":{"dtype":"%s","shape":[%d],"data_offsets":[0,4]}}'
LYING = {
    "a header of 2**63 bytes": _file(b"{}", size=2**63),
    "a header longer than the file": _file(b"{}", size=10**8),
    "no number": b"\0" * 7,
    "a shape of 2**62": _file(ONE % (b"F32", 2**62), bytes(4)),
    "a type that NumPy lacks": _file(ONE % (b"F8_E4M3", 4), bytes(4)),
    "no such type": _file(ONE % (b"O", 4), bytes(4)),
    "brackets": _file(b"[" * 100_000),
}


@pytest.mark.parametrize("how", LYING)
def test_a_header_that_lies(how: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(LYING[how])
    assert refused(stored._arrays, path, names="w.safetensors: damaged or not .safetensors: ")
    assert refused(read_arrays, path, names="w.safetensors: cannot be read: ")
