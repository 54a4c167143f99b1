"""Networks through the launcher: their cards, the table, weights of an original, many devices."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from launch import card
from launch import mesh as meshes
from launch.__main__ import main
from launch.build import make_task
from launch.checkpoint import load
from launch.experiment import Mesh
from launch.train import abstract_state
from tests.touchstone.test_models_clip_text import openai_weights, transformers_weights, written
from tests.touchstone.tiny_models import TINY as TINIES
from tests.touchstone.toy_prepared import write_set
from touchstone_jax.labels.schemes import scheme
from touchstone_jax.models import create
from touchstone_jax.models.catalogue import CATALOGUE
from touchstone_jax.models.convert import torch_places
from touchstone_jax.models.text import read_embeddings

CARDS = Path(__file__).resolve().parents[2] / "configs" / "touchstone"


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        yield


@pytest.mark.parametrize("name", CATALOGUE)
def test_each_network_has_a_card_that_the_launcher_reads(name, tmp_path):
    values = card.resolve(card.read(str(CARDS / f"{name}.py")), [])
    (leaf,) = card.leaves(values, tmp_path)
    task = leaf.config["task"]
    assert task["model"]["name"] == name
    with jax.numpy_dtype_promotion("strict"):
        model = nnx.eval_shape(
            lambda: create(**leaf.experiment.task["model"], num_classes=10, rngs=nnx.Rngs(0))
        )
    assert not any(n % d for n, d in zip(task["patch"], model.divisor, strict=True))
    assert getattr(model, "patch", tuple(task["patch"])) == tuple(task["patch"])


def test_the_table_of_networks_is_printed(capsys):
    assert main(["list", "--models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(CATALOGUE) and "31,119,538" in lines[1]
    assert main(["data", "--models"]) == 2


def test_no_device_ever_holds_all_of_the_largest_network():
    """STU-Net-H: made where it is kept, an eighth on each of eight devices; only lowered here."""
    mesh = meshes.make(Mesh(data=1, fsdp=8))

    def init(key):
        model = create("stunet_h", num_classes=10, rngs=nnx.Rngs(key))
        return nnx.to_pure_dict(nnx.state(model))

    placed = meshes.place(jax.eval_shape(init, jax.random.key(0)), mesh)
    leaves = jax.tree.leaves(placed)
    total = sum(leaf.size for leaf in leaves)
    share = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
    assert total == 1_457_043_026 and share < 1.01 * total / 8
    lowered = jax.jit(init, out_shardings=meshes.shardings(placed)).lower(jax.random.key(0))
    split = sum("fsdp" in leaf.sharding.spec for leaf in leaves)
    assert split > 70 and lowered.as_text().count('"fsdp"') >= split


TINY = {"name": "unet", "widths": (8, 16, 32), "kernels": 3, "strides": (1, 2, 2)}
SEGVOL = {"name": "segvol", **TINIES["segvol"]}


@pytest.fixture
def workdir(golden, tmp_path):
    """A card for the stored U-Net, which has three classes, on a prepared set of nine organs."""
    arrays = np.load(golden / "arch" / "nnunet_unet.npz", allow_pickle=False)
    weights = {}
    for key in arrays.files:
        if key.startswith("sd/"):
            array = arrays[key]
            if "seg_layers" in key:  # ten classes, of which the first three are the stored ones
                more = np.zeros((10 - len(array), *array.shape[1:]), array.dtype)
                array = np.concatenate([array, more])
            weights[key] = array
    np.savez(tmp_path / "weights.npz", **weights)
    write_card(tmp_path, write_set(tmp_path / "prepared", 1), TINY, 8)
    return tmp_path


def write_card(folder, data, model, patch):
    text = f"""
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({{
        "task": {{"name": "touchstone_jax.tasks:Segmenter", "data": {str(data)!r},
                 "patch": {patch!r}, "model": {model!r}, "validation": 0.05,
                 "validation_cases": ("case_0",), "ema": 0.9,
                 "augmentation": {{"preset": "none"}}}},
        "optimizer": {{"name": "sgd", "learning_rate": 0.01}}, "steps": 3, "batch_size": 1,
        "mesh": {{"data": 1}},
    }})
"""
    (folder / "card.py").write_text(text)


def convert(folder, *arguments):
    card_file, out = str(folder / "card.py"), str(folder / "out")
    return main(["convert", "--config", card_file, "--workdir", out, *arguments])


def test_weights_become_the_first_checkpoint(workdir, capsys):
    file = str(workdir / "weights.npz")
    assert convert(workdir, "--weights", file) == 2
    assert "no key" not in capsys.readouterr().err
    assert convert(workdir, "--weights", file, "--prefix", "sd/") == 0
    assert "48 arrays of" in (said := capsys.readouterr().out) and "88 that hold nothing" in said
    values = card.resolve(card.read(str(workdir / "card.py")), [])
    (leaf,) = card.leaves(values, workdir / "out")
    task, mesh = make_task(leaf.experiment), meshes.make(leaf.experiment.mesh)
    state, step = load(leaf.folder, abstract_state(task, mesh))
    stored = np.load(file)["sd/encoder.stages.1.0.convs.0.conv.weight"]
    for part in (state["params"], state["ema"]["params"]):
        kernel = part["encoder"][1]["layers"][0]["conv"]["kernel"]
        np.testing.assert_array_equal(kernel, stored.transpose(2, 3, 4, 1, 0))
    assert step == 0 and json.loads((leaf.folder / "config.json").read_text())
    assert convert(workdir, "--weights", file, "--prefix", "sd/") == 2
    assert "has checkpoints already" in capsys.readouterr().err


@pytest.fixture
def clip(tmp_path):
    """A card for SegVol, what `convert` makes vectors of names of, and where they are then."""
    write_card(tmp_path, write_set(tmp_path / "prepared", 1), SEGVOL, SEGVOL["patch"])
    np.savez(tmp_path / "clip.npz", **openai_weights(transformers_weights()))
    files = ("--weights", str(tmp_path / "clip.npz"), "--vocabulary", str(written(tmp_path)))
    return files, tmp_path / "out" / "embeddings.npz"


def test_clips_weights_make_a_file_of_vectors_alone(clip, tmp_path, capsys):
    files, target = clip
    assert convert(tmp_path, *files) == 0
    assert f"--config.task.model.embeddings={target}" in capsys.readouterr().out
    assert read_embeddings(target, 9, scheme("abdomenatlas_1.0").classes).shape == (9, 128)
    assert not list((tmp_path / "out").glob("**/checkpoints"))
    assert convert(tmp_path, *files[:3], str(tmp_path / "no.txt")) == 2
    assert "no.txt: no such file" in capsys.readouterr().err
    (tmp_path / "card.py").unlink()
    write_card(tmp_path, tmp_path / "prepared", TINY, 8)
    assert convert(tmp_path, *files) == 2
    assert "network 'unet' reads no names" in capsys.readouterr().err


@pytest.mark.slow
def test_segvols_own_text_tower_makes_the_vectors_of_the_checkpoint(clip, tmp_path, capsys):
    files, target = clip
    assert convert(tmp_path, *files) == 0
    vectors = read_embeddings(target, 9)
    fresh = nnx.eval_shape(
        lambda: create(**SEGVOL, embeddings=str(target), num_classes=10, rngs=nnx.Rngs(0))
    )
    rng = np.random.default_rng(0)
    arrays = {
        f"model.{key}": rng.normal(size=place.shape).astype(np.float32)
        for key, place in torch_places(fresh).items()
    }
    for key, array in transformers_weights().items():
        arrays[f"model.text_encoder.clip_text_model.{key}"] = array
    np.savez(tmp_path / "segvol.npz", **arrays)
    # The stand-in has 512 channels, this tower 128.
    write_card(tmp_path, tmp_path / "prepared", {**SEGVOL, "embeddings": str(target)}, (16, 16, 8))
    files = ("--weights", str(tmp_path / "segvol.npz"), "--prefix", "model.", *files[2:])
    assert convert(tmp_path, *files) == 0
    said = capsys.readouterr().out
    assert "vectors of 9 names are in" in said and "arrays of" in said and "left out" not in said
    values = card.resolve(card.read(str(tmp_path / "card.py")), [])
    (leaf,) = card.leaves(values, tmp_path / "out")
    task, mesh = make_task(leaf.experiment), meshes.make(leaf.experiment.mesh)
    state, _ = load(leaf.folder, abstract_state(task, mesh))
    np.testing.assert_array_equal(state["rest"]["text"], vectors)
    stored = arrays["model.mask_decoder.iou_token.weight"]
    np.testing.assert_array_equal(state["params"]["mask_decoder"]["iou_token"]["weight"], stored)


def test_weights_that_do_not_fit_are_told(workdir, capsys):
    assert convert(workdir) == 2 and "convert needs --weights" in capsys.readouterr().err
    assert convert(workdir, "--weights", str(workdir / "no.npz")) == 2
    assert "no.npz: no such file" in capsys.readouterr().err
    file = str(workdir / "weights.npz")
    arguments = ("--weights", file, "--prefix", "sd/", "--config.task.model.widths=(8,16,24)")
    assert convert(workdir, *arguments) == 2
    assert "wrong shapes" in capsys.readouterr().err
