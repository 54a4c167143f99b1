"""What is exported runs elsewhere: with jax, numpy and safetensors, and nothing of ours."""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from launch import card, export, exported
from launch.__main__ import main
from launch.build import make_task
from launch.checkpoint import load
from launch.experiment import SetupError
from launch.mesh import alone
from launch.train import abstract_state
from tests.launch.conftest import CARD, ROOT
from tests.touchstone.toy_prepared import write_set
from touchstone_jax.exported import Segment
from touchstone_jax.io import read_ct, read_labels
from touchstone_jax.phantom import write_dataset

CLASSIFIER = """
def get_config():
    return {
        "task": {
            "name": "isnet_jax.tasks:MaskedClassifier",
            "data": {"source": "npz_folder", "folder": "DATA", "num_classes": 2},
            "method": "selective",
            "model": {"name": "simple_cnn", "widths": (4, 4), "norm": True, "pooled": 1},
        },
        "steps": 2, "batch_size": 8, "mesh": {"data": 1},
    }
"""
SEGMENTER = """
def get_config():
    return {
        "task": {
            "name": "touchstone_jax.tasks:Segmenter",
            "data": "DATA", "patch": 8, "augmentation": {"preset": "none"}, "ema": 0.5,
            "model": {"name": "unet", "widths": (4, 8), "convs": 1, "decoder_convs": 1},
        },
        "steps": 2, "batch_size": 2, "mesh": {"data": 1},
        "jobs": {"predict": {"name": "touchstone_jax.jobs:Predict", "data": "DATA/../cts",
                             "overlap": 0.25, "picture": False, "masks": False}},
    }
"""
# The code of the model card, where none of what trained the model can be imported.
ELSEWHERE = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if any(name == one or name.startswith(one + ".") for one in {blocked}):
            raise ImportError("not here: " + name)

sys.meta_path.insert(0, Nothing())
"""
TRAINING = (
    *("isnet_jax", "launch", "configs", "flax", "optax", "orbax", "grain", "ml_collections"),
    *("tensorstore", "torch"),
)
BLOCKED = ("touchstone_jax", *TRAINING)
# What is left of ours puts windows together: nothing that trains, and no network.
WHOLE_BLOCKED = (
    *TRAINING,
    *(f"touchstone_jax.{name}" for name in ("models", "layers", "losses", "tasks", "patches")),
    *(f"touchstone_jax.{name}" for name in ("augment", "jobs")),
)


def write_card(folder: Path, text: str, data: Path) -> str:
    file = folder / "tiny.py"
    file.write_text(text.replace("DATA", str(data)))
    return str(file)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> tuple[str, Path]:
    """(card, workdir) of a classifier, trained, evaluated and exported."""
    folder = tmp_path_factory.mktemp("classifier")
    rng = np.random.default_rng(0)
    for name in ("train", "val"):
        image = rng.random((16, 8, 8, 1), np.float32)
        mask = rng.random((16, 8, 8, 1)) > 0.5
        np.savez(folder / f"{name}.npz", image=image, mask=mask, label=np.arange(16) % 2)
    return trained(write_card(folder, CLASSIFIER, folder), folder, "--licence=CC-BY-4.0")


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("segmenter")
    grid = {"shape": (18, 16, 17), "spacing_mm": (4.0, 3.0, 5.0), "orientations": ("LPS",)}
    write_dataset(folder / "cts", 1, **grid)
    return trained(write_card(folder, SEGMENTER, write_set(folder / "data")), folder)


def trained(file: str, folder: Path, *flags: str) -> tuple[str, Path]:
    where = ("--config", file, "--workdir", str(folder / "work"))
    with jax.numpy_dtype_promotion("standard"):
        assert main(["train", *where]) == 0
        assert main(["export", *where, *flags]) == 0
    return file, folder / "work"


def own_logits(file: str, workdir: Path, x: np.ndarray) -> np.ndarray:
    """What the trained network itself says, by the task's own program."""
    (leaf,) = card.leaves(card.resolve(card.read(file)), workdir)
    with jax.numpy_dtype_promotion("standard"):
        task = make_task(leaf.experiment)
        state, _ = load(leaf.folder, abstract_state(task, alone()))
        network = task.inference(state)
        return np.asarray(jax.jit(network["function"])(network["weights"], x))


def snippets(folder: Path) -> list[str]:
    """The Python code of the model card."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def run_elsewhere(folder: Path, code: str, blocked: tuple[str, ...], **variables: str) -> None:
    """Run code in the folder, in a process that lacks the `blocked` modules."""
    code = ELSEWHERE.format(blocked=blocked) + code
    code += f"""
blocked = {tuple(name + "." for name in blocked)}
assert not [name for name in sys.modules if f"{{name}}.".startswith(blocked)]
"""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": "", **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def elsewhere(folder: Path, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Logits of random numbers by the card's own code, in a process that lacks our packages."""
    code = snippets(folder)[0]
    lines = [line for line in code.splitlines() if line.startswith("x = ")]
    assert len(lines) == 1 and str((1, *shape[1:])) in lines[0]
    drawn = f"x = np.random.default_rng({seed}).random({shape}, np.float32)"
    code = code.replace(lines[0], drawn) + "\nnp.save('logits.npy', logits)\n"
    run_elsewhere(folder, code, BLOCKED)
    return np.load(folder / "logits.npy")


@pytest.mark.parametrize(
    ("kind", "shape"), [("classifier", (3, 8, 8, 1)), ("segmenter", (3, 8, 8, 8, 1))]
)
def test_it_runs_without_our_packages(kind: str, shape: tuple, request) -> None:
    file, workdir = request.getfixturevalue(kind)
    x = np.random.default_rng(5).random(shape, np.float32)
    expected = own_logits(file, workdir, x)
    got = elsewhere(workdir / "seed0/export", shape, 5)
    assert got.shape == expected.shape and np.ptp(expected) > 0
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_whole_ct_is_what_predict_says_of_it(segmenter) -> None:
    file, workdir = segmenter
    keys = ["--config.task.data=/nowhere", "--config.mesh.data=1"]  # it needs no training data
    with jax.numpy_dtype_promotion("standard"):
        assert main(["predict", "--config", file, "--workdir", str(workdir), *keys]) == 0
    (made,) = (workdir / "predict").glob("*/combined_labels.nii.gz")
    ct = workdir.parent / "cts" / made.parent.name / "ct.nii.gz"
    expected, _ = read_labels(made, case="made", like=read_ct(ct, case="ct").geometry)
    folder = workdir / "seed0/export"
    (code,) = snippets(folder)[1:]
    code = code.replace("ct.nii.gz", str(ct))
    code += """
import numpy as np
from touchstone_jax.io import read_ct
ct = read_ct("CT", case="ct")
assert segment.sliding.count((20, 12, 18)) > 8  # by the card's overlap, not the usual one
np.savez("labels.npz", labels=labels, array=segment(ct.array, spacing_mm=ct.spacing_mm))
""".replace("CT", str(ct))
    run_elsewhere(folder, code, WHOLE_BLOCKED, PYTHONPATH=str(ROOT))
    with np.load(folder / "labels.npz") as found:
        assert len(np.unique(expected)) > 1
        for name in ("labels", "array"):
            assert found[name].shape == expected.shape == (18, 16, 17)
            assert np.mean(found[name] != expected) < 1e-3  # of logits that are nearly the same


def test_what_is_no_exported_segmenter(classifier, segmenter, tmp_path: Path) -> None:
    folder = segmenter[1] / "seed0/export"
    with pytest.raises(FileNotFoundError, match="export.json is missing"):
        Segment(jnp.sin, tmp_path)
    with pytest.raises(ValueError, match="export.json: expected the keys"):
        Segment(jnp.sin, classifier[1] / "seed0/export")
    with pytest.raises(ValueError, match="option 'window'; legal: overlap, mirror, batch"):
        Segment(jnp.sin, folder, window=(8, 8, 8))
    segment = Segment(lambda x: jnp.tile(x, 2), folder, overlap=0.0)
    assert segment.predictor()[2] == segment.plan.labels and segment.sliding.count((8, 8, 9)) == 2
    for spacing in (None, 4.0, (4, 5), (4, math.nan, 5), (4, math.inf, 5), (0, 4, 5)):
        with pytest.raises(ValueError, match="expected voxels .* three numbers above 0"):
            segment(np.zeros((8, 8, 8)), spacing)
    with pytest.raises(ValueError, match="expected voxels"):
        segment(np.zeros((8, 8)), (1, 1, 1))
    with pytest.raises(ValueError, match="a file has its own"):
        segment("ct.nii.gz", (1, 1, 1))


def test_other_options_of_data_that_may_have_moved_are_refused(classifier, capsys) -> None:
    file, workdir = classifier
    where = ("--config", file, "--workdir", str(workdir))
    for key, told in (
        ("num_classes=3", "task.data.num_classes: 2 -> 3"),
        ("source=mnist_bias", "MaskedClassifier: "),
    ):
        with jax.numpy_dtype_promotion("standard"):
            assert main(["train", *where, f"--config.task.data.{key}"]) == 2
        assert told in capsys.readouterr().err


def test_what_the_classifiers_card_says(classifier) -> None:
    folder = classifier[1] / "seed0/export"
    text = (folder / "README.md").read_text()
    results = json.loads((folder.parent / "results.json").read_text())
    for name, value in results["metrics"].items():
        assert value is None or f"| {name} | {value:.4g} |" in text
    for part in (
        *("license: cc-by-4.0", "Weights: CC-BY-4.0.", "# tiny", "image-classification"),
        *("simple_cnn", "| shape | (batch, 8, 8, 1) float32 |", "train 16, val 16"),
        *("no medical device", "npz_folder", '"learning_rate"', "A batch may have any size"),
    ):
        assert part in text, part
    about = json.loads((folder / "export.json").read_text())
    assert about["checkpoint"] == 2 and about["difference"] <= export.AGREEMENT
    weights = load_file(folder / "weights.safetensors")
    assert about["parameters"] == sum(array.size for array in weights.values())
    # The optimizer's moments and the cuts of the loss are no weights of the network.
    assert all(not name.startswith(("opt_state", "cuts")) for name in weights)
    assert all(np.isfinite(array).all() for array in weights.values())


def test_what_the_segmenters_card_says(segmenter) -> None:
    text = (segmenter[1] / "seed0/export/README.md").read_text()
    for part in (
        *("license: other", "Weights: not stated", "0 background, 1 ", '"spacing_mm"'),
        *("(batch, 8, 8, 8, 1) float32", "before the softmax", "must not guide the care"),
    ):
        assert part in text, part


def test_the_running_mean_is_what_is_exported(segmenter) -> None:
    file, workdir = segmenter
    (leaf,) = card.leaves(card.resolve(card.read(file)), workdir)
    with jax.numpy_dtype_promotion("standard"):
        task = make_task(leaf.experiment)
        state, _ = load(leaf.folder, abstract_state(task, alone()))
    weights = load_file(workdir / "seed0/export/weights.safetensors")
    for path, mean in jax.tree_util.tree_leaves_with_path(state["ema"]["params"]):
        name = "params/" + jax.tree_util.keystr(path, simple=True, separator="/")
        assert name not in weights or np.array_equal(weights[name], mean)
    assert any(name.startswith("params/") for name in weights)


def test_all_platforms_are_in_the_program(classifier) -> None:
    folder = classifier[1] / "seed0/export"
    program = exported.program(folder, load_file(folder / "weights.safetensors"))
    assert program.platforms == export.PLATFORMS
    module = program.mlir_module()
    assert "stablehlo.convolution" in module and "f64" not in module
    about = json.loads((folder / "export.json").read_text())
    assert about["output"] == {"shape": ["batch", 2], "type": "float32"}
    for file, digest in about["sha256"].items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest


# ------------------------------------------------------------------------- the parts


def test_unread_arrays_stay_out_of_the_program() -> None:
    weights = {
        "w": jnp.full((3, 3), 2.0),
        "list": [jnp.ones(3)],
        "rng": {"key": jax.random.key(0), "count": jnp.uint32(4)},
    }
    run, named = export.flat(
        lambda w, x: x @ w["w"] + w["list"][0][None], weights, jax.ShapeDtypeStruct((1, 3), "f")
    )
    assert sorted(named) == ["list/0", "w"]
    assert np.array_equal(run(named, jnp.ones((2, 3))), np.full((2, 3), 7.0))
    program, batch = export.stored(run, named, jax.ShapeDtypeStruct((1, 3), jnp.float32))
    assert batch == "batch" and program.call(named, np.ones((5, 3), np.float32)).shape == (5, 3)


def test_a_network_that_needs_its_batch_size_is_stored_for_it() -> None:
    def run(named, x):
        halves = x.reshape(len(x) // 2, 2, -1)  # no symbol is known to be even
        return halves.sum(1) * named["w"][None]

    example = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    program, batch = export.stored(run, {"w": np.ones(3, np.float32)}, example)
    assert batch == 4
    x = np.ones((4, 3), np.float32)
    assert np.array_equal(program.call({"w": np.ones(3, np.float32)}, x), np.full((2, 3), 2.0))


def test_a_program_that_differs_is_refused() -> None:
    example, weights = jax.ShapeDtypeStruct((2, 3), jnp.float32), {"w": jnp.ones(3)}

    def run(named, x):
        return 2 * x * named["w"][None]

    assert export.difference(run, weights, lambda x: 2 * x, example) == 0
    with pytest.raises(RuntimeError, match="differs from the network by 0.5"):
        export.difference(run, weights, lambda x: x, example)
    with pytest.raises(RuntimeError, match="differs from the network by nan"):
        export.difference(run, weights, lambda x: x * jnp.nan, example)


def test_what_cannot_be_exported(tmp_path: Path, launch, capsys, monkeypatch) -> None:
    assert launch(tmp_path, verb="export") == 2
    assert "Toy' has no inference: nothing to export" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(SetupError, match="needs the extra `weights`"):
        export.write(None, None, {}, 0, tmp_path, "name", None)
    assert main(["train", "--config", CARD, "--workdir", str(tmp_path), "--licence", "MIT"]) == 2
    assert "train takes no --licence" in capsys.readouterr().err
