"""`launch explain` on image files with tiny models: maps, files, failures, boxes, mistakes."""

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from isnet_jax import isnet
from isnet_jax.boxes import shown_rules
from isnet_jax.images import read
from isnet_jax.jobs import ExplainImages
from isnet_jax.lrp import ZB, create, explain
from isnet_jax.models import create as create_model
from isnet_jax.models import from_torch
from isnet_jax.models.convert import torch_places
from isnet_jax.stored import load_model
from launch import card, data
from launch.__main__ import main
from launch.build import named
from launch.checkpoint import Store
from launch.experiment import Checkpoint

TINY = {"name": "simple_cnn", "num_classes": 3, "in_channels": 3, "widths": (4, 4), "pooled": 1}
MODEL = {**TINY, "weights": "random"}
HOW = {"size": 16, "resize": 20, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
RULES = ({"name": "epsilon", "epsilon": 0.1, "label": "ε"}, "epsilon_gamma_box", "isnet_flex_zb")
CARD = f'''"""Tiny."""
def get_config():
    return {{"jobs": {{"explain": {{
        "name": "isnet_jax.jobs:ExplainImages", "images": "IMAGES", "model": {MODEL!r},
        "rules": {RULES!r}, "preprocessing": {HOW!r}, "names": "NAMES", "target": "predicted",
    }}}}}}
'''


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with grey, transparent and colour images, and one that is cut short."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (30, 24), np.uint8)).save(folder / "grey.png")
    Image.fromarray(rng.integers(0, 256, (20, 40, 4), np.uint8)).save(folder / "glass.png")
    Image.fromarray(rng.integers(0, 256, (33, 31, 3), np.uint8)).save(folder / "photo.jpg")
    (folder / "broken.png").write_bytes((folder / "grey.png").read_bytes()[:200])
    (folder / "names.txt").write_text("ant\nbee\ncat\n")
    return folder


@pytest.fixture(scope="module")
def made(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """(the folder that the card wrote for those images, its exit code)."""
    folder = tmp_path_factory.mktemp("explained")
    text = CARD.replace("IMAGES", str(images)).replace("NAMES", str(images / "names.txt"))
    (folder / "card.py").write_text(text)
    argv = ["explain", "--config", str(folder / "card.py"), "--workdir", str(folder)]
    return folder / "explain", main(argv)


@pytest.fixture
def job(images: Path) -> Callable[..., ExplainImages]:
    def make(**changes: Any) -> ExplainImages:
        given = {"images": str(images), "model": MODEL, "rules": ("epsilon",), "preprocessing": HOW}
        return ExplainImages(**(given | changes))

    return make


# ------------------------------------------------------------------------- the card


def test_a_folder_of_images_becomes_a_folder_of_pictures(made: tuple[Path, int]) -> None:
    folder, code = made
    assert code == 1  # one file is cut short
    lines = [json.loads(x) for x in (folder / "cases.jsonl").read_text().splitlines()]
    failed = {row["case"]: row["error"] for row in lines if row["status"] == "failed"}
    assert list(failed) == ["broken"] and "broken.png: not a readable PNG" in failed["broken"]
    for case in ("glass", "grey", "photo"):
        pictures = sorted(p.name for p in (folder / case).glob("*.png"))
        assert pictures == ["01_epsilon.png", "02_epsilon_gamma_box.png", "03_isnet_flex_zb.png"]
        for name in pictures:
            with Image.open(folder / case / name) as picture:
                assert picture.format == "PNG" and picture.size[0] > 2 * 400
    with Image.open(folder / "montage.png") as sheet:
        assert sheet.width == 8 + 4 * 160
    assert not (folder / "broken").exists()
    with (folder / "rows.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["glass", "grey", "photo"]


def test_the_maps_are_those_of_explain(made: tuple[Path, int], images: Path) -> None:
    """Normalisation, logits, relevance, sums and gaps anew, by NumPy and the public function."""
    folder, _ = made
    model = load_model(**MODEL)
    for case, name in (("grey", "grey.png"), ("photo", "photo.jpg")):
        told = json.loads((folder / case / "explanation.json").read_text())
        with np.load(folder / case / "relevance.npz") as arrays:
            stored = dict(arrays)
        image = stored["image"]
        assert image.shape == (16, 16, 3) and 0 <= image.min() < image.max() <= 1
        whole = read(images / name)
        assert abs(image.mean() - whole.mean()) < 0.1
        x = (image - np.float32(HOW["mean"])[None, None]) / np.float32(HOW["std"])[None, None]
        logits = np.asarray(model(jnp.asarray(x[None])), np.float64)[0]
        shares = np.exp(logits) / np.exp(logits).sum()
        first = int(shares.argmax())
        assert told["classes"][0]["class"] == told["target"]["class"] == first
        assert [c["name"] for c in told["classes"]] == [
            ("ant", "bee", "cat")[i] for i in np.argsort(-shares)
        ]
        assert told["target"]["probability"] == pytest.approx(shares[first], abs=1e-5)
        low = tuple(((0 - np.float32(HOW["mean"])) / np.float32(HOW["std"])).tolist())
        high = tuple(((1 - np.float32(HOW["mean"])) / np.float32(HOW["std"])).tolist())
        composites = {
            "ε": ("01_epsilon", create("epsilon", epsilon=0.1)),
            "epsilon_gamma_box": (
                "02_epsilon_gamma_box",
                create("epsilon_gamma_box", low=low, high=high),
            ),
            "isnet_flex_zb": (
                "03_isnet_flex_zb",
                create("isnet_flex_zb", low=min(low), high=max(high)),
            ),
        }
        for label, (file, composite) in composites.items():
            found = explain(model, x[None], composite=composite)
            expected = np.asarray(found.relevance[0]).sum(-1)
            np.testing.assert_allclose(stored[file], expected, atol=1e-5 * np.abs(expected).max())
            rule = told["rules"][label]
            assert rule["sum"] == pytest.approx(float(expected.sum()), abs=1e-4)
            assert rule["conservation_gap"] == pytest.approx(
                told["target"]["logit"] - rule["sum"], abs=1e-4
            )


def test_a_given_class_is_explained(job: Callable, images: Path, tmp_path: Path) -> None:
    told = []
    for target in (2, "2", "cat"):
        one = job(target=target, names=str(images / "names.txt"), sheet=0)
        (tmp_path / str(len(told))).mkdir()
        one.run("grey", tmp_path / str(len(told)))
        told.append(json.loads((tmp_path / str(len(told)) / "explanation.json").read_text()))
    assert told[0] == told[1] == told[2] and told[0]["target"]["class"] == 2
    x = job()._input.normalised(job()._input.cut(read(images / "grey.png")))[None]
    found = explain(load_model(**MODEL), x, target=2, composite="epsilon")
    assert told[0]["rules"]["epsilon"]["sum"] == pytest.approx(
        float(found.relevance.sum()), abs=1e-4
    )


def test_the_fingerprint_follows_the_image_and_the_weights(job: Callable, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    one = job(images=str(tmp_path))
    before = one.fingerprint("a")
    assert before == job(images=str(tmp_path)).fingerprint("a")
    (tmp_path / "a.png").write_bytes(b"2")
    assert one.fingerprint("a") != before


# ------------------------------------------------------------------------- boxes of z^B


def test_the_box_is_the_normalised_images_unless_given() -> None:
    low, high = (-1.0, -2.0, -3.0), (1.0, 2.0, 3.0)

    def box(rule: Any) -> tuple:
        ((shown),) = shown_rules((rule,), low, high)
        found = [r for _, r in shown.composite.entries if isinstance(r, ZB)]
        return tuple((r.low, r.high) for r in found)

    assert box("epsilon_gamma_box") == ((low, high),)
    assert box("isnet_flex_zb") == box("isnet_epsilon_zb") == ((-3.0, 3.0),)
    assert box({"name": "epsilon_gamma_box", "low": -9.0, "high": 9.0}) == ((-9.0, 9.0),)
    rows = (("@input", "zb", {"bias": "cancel"}), (".*", "epsilon"))
    assert box({"name": "table", "rows": rows}) == ((low, high),)
    assert box({"name": "table", "rows": (("@input", "zb"), (".*", "pass"))}) == ((-3.0, 3.0),)
    assert box("epsilon_plus") == ()


# ------------------------------------------------------------------------- weights


def test_weights_from_files_and_checkpoints(tmp_path: Path) -> None:
    small = {"stem_width": 4, "squeezed": ((1,), (1,))}
    model = nnx.eval_shape(
        lambda: create_model("squeezenet1_1", num_classes=3, **small, rngs=nnx.Rngs(0))
    )
    rng = np.random.default_rng(0)
    arrays = {
        k: rng.normal(size=p.shape).astype(np.float32) for k, p in torch_places(model)[0].items()
    }
    np.savez(tmp_path / "w.npz", **arrays)
    x = jnp.asarray(rng.random((1, 24, 24, 3), np.float32))
    direct = from_torch("squeezenet1_1", arrays, squeezed=small["squeezed"])
    direct.eval()
    given = {"name": "squeezenet1_1", "squeezed": small["squeezed"]}
    for place in (tmp_path / "w.npz", tmp_path):
        got = load_model(weights=str(place), **given)
        np.testing.assert_array_equal(got(x), direct(x))
    from safetensors.numpy import save_file

    save_file(arrays, tmp_path / "w.safetensors")
    got = load_model(weights=str(tmp_path / "w.safetensors"), **given)
    np.testing.assert_array_equal(got(x), direct(x))

    def refused(place: Path, said: str, kind: type = ValueError, **more: Any) -> None:
        with pytest.raises(kind, match=said):
            load_model(weights=str(place), **(given | more))

    refused(tmp_path, "must hold one of .*found: w.npz, w.safetensors", FileNotFoundError)
    refused(tmp_path / "none.npz", "do not exist", FileNotFoundError)
    (tmp_path / "w.pt").write_bytes(b"")
    refused(tmp_path / "w.pt", r"w.pt' is not one of \*.npz")
    for name in ("bad.npz", "bad.safetensors"):
        (tmp_path / name).write_bytes(b"x" * 40)
        refused(tmp_path / name, f"{name}: damaged or not")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
    refused(tmp_path / "objects.npz", "objects.npz: damaged or not")
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    refused(tmp_path / "other.npz", "does not fit model 'squeezenet1_1'")
    refused(tmp_path / "w.npz", "model has no name", name=None)


def test_our_own_training_is_loaded_by_its_own_card(tmp_path: Path) -> None:
    """From a checkpoint as the launcher writes it."""
    section = {"name": "simple_cnn", "widths": [3, 4], "pooled": 1}
    trained = create_model(**section, num_classes=2, in_channels=1, rngs=nnx.Rngs(7))
    params, rest = isnet.variables(trained)
    leaf = tmp_path / "seed0"
    store = Store(leaf, Checkpoint(), {"task": {"model": section}})
    state = {"params": params, "rest": rest, "opt_state": {"count": jnp.zeros(3)}}
    for step in (9, 10):
        scaled = jax.tree.map(partial(jnp.multiply, float(step)), params)
        store.save(step, {**state, "params": scaled}, {})
    store.close()
    x = jnp.zeros((1, 16, 16, 1))
    trained.classifier.kernel[...] *= 10
    trained.classifier.bias[...] *= 10
    for place in (leaf, leaf / "checkpoints/10"):
        model = load_model(weights=str(place), num_classes=2, in_channels=1)
        np.testing.assert_array_equal(model.classifier.kernel, trained.classifier.kernel)
        np.testing.assert_array_equal(model.blocks[0].kernel, trained.blocks[0].kernel * 10)
        assert model(x).shape == (1, 2)
    with pytest.raises(ValueError, match=r"classifier/bias: \(2,\) in the checkpoint, \(5,\)"):
        load_model(weights=str(leaf), num_classes=5, in_channels=1)
    with pytest.raises(ValueError, match="num_classes must be given"):
        load_model(weights=str(leaf))
    (leaf / "checkpoints/10/meta/metadata").write_text("{")
    with pytest.raises(ValueError, match="its metadata cannot be read"):
        load_model(weights=str(leaf), num_classes=2, in_channels=1)


def test_the_card_fits_what_it_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole card against weights of the real shapes, up to the first image."""
    model = nnx.eval_shape(
        lambda: create_model("squeezenet1_1", num_classes=1000, rngs=nnx.Rngs(0))
    )
    places = torch_places(model)[0]
    np.savez(tmp_path / "w.npz", **{k: np.zeros(p.shape, np.float32) for k, p in places.items()})
    (tmp_path / "names.txt").write_text("".join(f"class {i}\n" for i in range(1000)))
    monkeypatch.setattr(data, "provide", lambda name, folder=None: tmp_path)
    values = card.resolve(card.read("configs/isnet/explain.py"))
    cls, keywords = named(values["jobs"]["explain"], "jobs.explain", "cases")
    assert list(cls(**keywords).cases()) == ["coffee", "chelsea", "motorcycle_left", "camera"]


# ------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rules": ("epsilonn",)}, "unknown composite 'epsilonn'; did you mean 'epsilon'"),
        ({"rules": ({"name": "epsilon", "epsilo": 1.0},)}, "option of composite.*'epsilo'"),
        ({"rules": ("epsilon", "epsilon")}, "label 'epsilon' is there twice"),
        ({"rules": ()}, "rules: there are none"),
        ({"rules": ({"label": "x"},)}, "rules: .* has no name"),
        (
            {"rules": ({"name": "epsilon_gamma_box", "low": 0.0, "high": 1.0},)},
            "does not hold inpu",
        ),
        ({"rules": ({"name": "table", "rows": (("kind:dense", "epsilon"),)},)}, "gives no rule"),
        ({"rules": ({"name": "table", "rows": (("@input", "zb", {"x": 1}),)},)}, "rule 'zb' 'x'"),
        ({"target": 3}, "target=3; must be a class from 0 to 2"),
        ({"target": "dog"}, "target='dog'; must be 'predicted', a class or its name"),
        ({"preprocessing": {"sizes": 3}}, "'sizes'; did you mean 'size'"),
        ({"preprocessing": {**HOW, "mean": (0.5,), "std": (1.0,)}}, "does not take an input"),
        ({"model": TINY}, "model weights are missing"),
        ({"model": {**MODEL, "widht": 3}}, "unknown option of model 'simple_cnn' 'widht'"),
        ({"top": 0}, "top=0; must be a whole number, 1 or more"),
        ({"sheet": -1}, "sheet=-1"),
        ({"names": "/no/names.txt"}, "names = '/no/names.txt' is no text file"),
        ({"images": "/no/such"}, "images = '/no/such' does not exist"),
    ],
)
def test_mistakes_are_told_before_any_image_is_read(
    job: Callable, changes: dict, said: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        job(**changes)


def test_a_wrong_number_of_names_is_told(job: Callable, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match="has 2 lines for 3 classes"):
        job(names=str(tmp_path))


def test_maps_that_are_not_finite_fail_their_case(
    job: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job()
    kernel = one._programs["epsilon"]._state["classifier"]["kernel"]
    one._programs["epsilon"]._state["classifier"]["kernel"] = kernel.at[0, 0].set(jnp.nan)
    with pytest.raises(FloatingPointError, match="rule 'epsilon': logits or relevance not finite"):
        one.run("grey", tmp_path)
