"""Files of a work folder and of an export after a disk has hurt them: used, made again or named."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from launch import checkpoint, compare, exported, record
from launch.card import Leaf, leaves, read, resolve
from launch.checkpoint import Store
from launch.experiment import Checkpoint, SetupError
from launch.workdir import read_json, results, write_json
from tests.drawn import refused, spoilt_bytes
from tests.launch.conftest import CARD, ROOT

ROWS = "".join(
    json.dumps({"step": step, "split": "train", "loss": loss, "seconds": 0.5 * step}) + "\n"
    for step, loss in ((1, 2.0), (2, None), (3, 0.25))
).encode()
PLACED = {
    "w": jax.ShapeDtypeStruct(
        (3,), np.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
}


@given(spoilt_bytes(ROWS))
@example(b"[1]\n5\n\xff\xfe\n" + ROWS)
@example(b"[" * 100_000 + b"\n" + ROWS)
@example(b'{"step": "1", "split": "train", "seconds": 1}\n' + ROWS)
def test_metrics(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(raw)
    kept = record._truncate(tmp_path / "metrics.jsonl", 3)
    assert all(row["step"] <= 3 and row["seconds"] is not None for row in kept)
    assert record.rows(tmp_path / "metrics.jsonl") == kept
    whole = [json.loads(line) for line in ROWS.splitlines() if line in raw.splitlines()]
    assert [row for row in whole if row in kept] == whole  # what is sound is not lost


@given(spoilt_bytes(b'{"steps": 2, "metrics": {"val/loss": 0.5}}'))
@example(b"[" * 100_000)
def test_small_files(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "results.json"
    file.write_bytes(raw)
    found = read_json(file)
    assert found is not None or not file.exists() or raw.strip() == b"null"


@pytest.fixture(scope="module")
def leaf(tmp_path_factory: pytest.TempPathFactory) -> Leaf:
    made = leaves(resolve(read(str(ROOT / CARD))), tmp_path_factory.mktemp("w"))[0]
    made.folder.mkdir()
    write_json(made.folder / "config.json", made.config)
    return made


@given(raw=st.recursive(st.none() | st.integers(0, 99) | st.text(max_size=3),
                        lambda one: st.lists(one, max_size=2)
                        | st.dictionaries(st.sampled_from(["steps", "metrics"]), one)))  # fmt: skip
def test_results_of_any_kind(leaf: Leaf, raw: Any) -> None:
    write_json(leaf.folder / "results.json", raw)
    found = results(leaf, partial=True)
    assert found is None or (type(found["steps"]) is int and type(found["metrics"]) is dict)


@given(st.data())
def test_damaged_predictions_are_made_again(leaf: Leaf, data: st.DataObject) -> None:
    write_json(leaf.folder / "results.json", {"steps": 99, "metrics": {}})
    file = leaf.folder / compare.PREDICTIONS
    np.savez_compressed(file, allow_pickle=False, **{"test/label": np.arange(9)})
    assert compare._is_scored(leaf)
    file.write_bytes(data.draw(spoilt_bytes(file.read_bytes())))
    if compare._is_scored(leaf):  # what was hurt is no content
        with zipfile.ZipFile(file) as whole:
            assert whole.testzip() is None


# ------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of the steps 1 and 2, ranked by a score."""
    folder = tmp_path_factory.mktemp("trained")
    settings = Checkpoint(keep=2, best="val/loss", keep_best=2)
    with Store(folder, settings, {"checkpoint": {"best_mode": "min"}}) as store:
        for step in (1, 2):
            state = {"w": jax.numpy.full(3, step, np.float32)}
            store.save(step, state, {"val/loss": 1.0 / step})
    return folder


WRONG = (b"5", b"[]", b"{}", b"null", b"[" * 100_000, b'{"val/loss": "low"}', b"\xff")


@settings(max_examples=8)
@pytest.mark.parametrize("name", ["meta/metadata", "metrics/metrics"])
@given(data=st.data())
def test_checkpoints(name: str, trained: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(trained, folder)
    file = folder / "checkpoints" / "2" / name
    raw = data.draw(st.one_of(st.sampled_from(WRONG), spoilt_bytes(file.read_bytes())))
    file.write_bytes(raw)
    assert checkpoint.choose(folder, "best") in (1, 2)
    settings = Checkpoint(keep=2, best="val/loss", keep_best=2)
    with Store(folder, settings, {}) as store:
        state, step = store.restore(PLACED)
    assert step in (1, 2) and (np.asarray(state["w"]) == step).all()


def test_what_is_no_checksum_is_told(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "copy")
    for step in (1, 2):
        file = tmp_path / "copy" / "checkpoints" / str(step) / "meta" / "metadata"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"checksums": [1]}))
    with pytest.raises(
        SetupError, match="none of the checkpoints .*meta/metadata: ValueError: not"
    ):
        Store(tmp_path / "copy", Checkpoint(keep=2), {})
    with pytest.raises(SetupError, match="checkpoints/2: .*ValueError|TypeError"):
        checkpoint.load(tmp_path / "copy", PLACED)


# ------------------------------------------------------------------------- an exported network


@given(st.data())
def test_an_export(tmp_path: Path, data: st.DataObject) -> None:
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "weights.safetensors")
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(data.draw(spoilt_bytes(weights.read_bytes())))
    if not refused(exported._weights, tmp_path, names="weights.safetensors is damaged"):
        assert all(isinstance(array, np.ndarray) for array in exported._weights(tmp_path).values())
    about = json.dumps({name: [] for name in exported._NEEDED}).encode()
    (tmp_path / "export.json").write_bytes(data.draw(spoilt_bytes(about)))
    refused(exported._about, tmp_path, names="export.json is damaged")
