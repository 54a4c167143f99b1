"""The identity of a data set: the same wherever its folder lies, another for other data."""

import json

import numpy as np

from isnet_jax.data import load
from isnet_jax.data.identity import identity


def write(folder, labels=(0, 1, 0, 1), size=4):
    folder.mkdir()
    for name in ("train", "val"):
        image = np.random.default_rng(0).random((4, size, size, 1), np.float32)
        arrays = {"image": image, "mask": np.ones_like(image), "label": np.array(labels)}
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


def of(folder, **more):
    options = {"source": "npz_folder", "folder": str(folder), "num_classes": 2, **more}
    return identity(options, load(**options))


def test_a_data_set_is_known_by_its_content(tmp_path):
    first = of(write(tmp_path / "here"))
    assert first["options"] == {"source": "npz_folder", "folder": "a path", "num_classes": 2}
    assert first["splits"]["train"]["items"] == 4
    assert json.loads(json.dumps(first)) == first
    assert of((tmp_path / "here").rename(tmp_path / "there")) == first
    # Whatever else lies in the folder, a work folder, say, is no part of the data.
    (tmp_path / "there" / "run").mkdir()
    (tmp_path / "there" / "run" / "progress.png").write_bytes(b"1")
    assert of(tmp_path / "there") == first
    assert of(write(tmp_path / "labels", labels=(1, 1, 0, 1)))["splits"] != first["splits"]
    assert of(write(tmp_path / "size", size=5))["splits"] != first["splits"]
    assert of(tmp_path / "there", num_classes=3)["options"] != first["options"]
