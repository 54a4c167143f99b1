"""Every card that is shipped, with every argument it takes: read, built abstractly, run small."""

import dataclasses
import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import jax
import numpy as np
import pytest

from launch import build, card, record
from launch.__main__ import main
from launch.experiment import JOB_VERBS
from tests.pages import ROOT
from tests.touchstone.tiny_models import TINY, sides
from tests.touchstone.toy_prepared import plan, write_set

CARDS = ROOT / "configs"
SHIPPED = sorted(str(path.relative_to(CARDS)) for path in card.files([CARDS]))
NETWORKS = [
    name
    for name in SHIPPED
    if name.startswith("touchstone/") and "model" in card.read(str(CARDS / name)).get("task", {})
]


def arguments(name: str) -> list[str]:
    """What the card takes behind its colon, "" for its default."""
    module = import_module(f"configs.{name[:-3].replace('/', '.')}")
    if name == "isnet/mnist_bias.py":
        return ["", *module.RUNS]
    if name == "isnet/mnist_distill.py":
        return ["", "every", "paper", "erm", *module.TARGETS]
    if name == "isnet/photos.py":
        return ["", *module.DATA, *(f"xray-{row}" for row in module.ROWS), "celeba-erm"]
    if name == "isnet/table.py":
        tables = module._tables(False)  # a row of each; all rows are in the tables
        single = [*tables, *(f"{data}-{list(rows)[-1]}" for data, (_, rows) in tables.items())]
        return ["", *single, "full", *(f"full_{one}" for one in single)]
    if name == "touchstone/report.py":
        return ["", "published"]
    return [""] if name == "isnet/explain.py" else ["", "some/folder"]


def leaves(name: str, argument: str, work: Path = Path("work")) -> list[card.Leaf]:
    """The trainings of a card, each run once."""
    where = str(CARDS / name) + (f":{argument}" if argument else "")
    found = card.leaves(card.resolve(card.read(where)), work)
    return list({leaf.run: leaf for leaf in reversed(found)}.values())[::-1]


@pytest.fixture(autouse=True)
def as_a_user_runs_it(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(record, "draw", lambda source, target: None)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        yield


# ------------------------------------------------------------------------- read


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_names_what_there_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.data.resolved", lambda values: values)  # nothing is fetched
    seen = set()
    for leaf in (leaf for argument in arguments(name) for leaf in leaves(name, argument)):
        experiment = leaf.experiment
        if (told := json.dumps(leaf.config, sort_keys=True)) not in seen:
            seen.add(told)
            assert experiment.task or experiment.jobs
            if experiment.task:
                build.named(experiment.task, "task", "step")
                build.optimizer(experiment.optimizer, experiment.steps)
            for verb, job in experiment.jobs.items():
                assert verb in JOB_VERBS
                build.named(job, f"jobs.{verb}", "tables" if verb == "benchmark" else "cases")


# ------------------------------------------------------------------------- built abstractly

SHAPES = {"mnist_bias": 1, "fashion_bias": 1}  # channels; 3 of all others


def images(folder: Path, source: dict) -> dict:
    """The data section of a card with a few images of its data set's shape in place of it."""
    size = source.get("size", 28 // source.get("shrink", 1))
    channels = SHAPES.get(source["source"], 3)
    place = folder / f"{size}x{channels}"
    if not place.is_dir():
        place.mkdir(parents=True)
        image = np.zeros((4, *((size, size) if isinstance(size, int) else size), channels))
        arrays = {"image": image, "privileged": image, "mask": image[..., :1] + 1}
        arrays = {k: v.astype(np.float32) for k, v in arrays.items()}
        arrays |= {"attention": arrays["mask"], "label": np.arange(4) % 2}
        for split in ("train", "val"):
            np.savez(place / f"{split}.npz", **arrays)
    return {"source": "npz_folder", "folder": str(place), "num_classes": 10}


def built(leaf: card.Leaf, **task: object) -> dict:
    """Shapes of the state of a card's training; network and optimizer as they are, nothing run."""
    experiment = dataclasses.replace(leaf.experiment, task={**leaf.experiment.task, **task})
    made = build.make_task(experiment)
    state = jax.eval_shape(made.init, jax.random.key(0))
    assert {"params", "opt_state"} <= state.keys()
    assert sum(x.size for x in jax.tree.leaves(state["params"])) > 1000
    return state


SMALL = {
    "isnet/mnist_bias.py": arguments("isnet/mnist_bias.py")[1:],
    "isnet/mnist_distill.py": ["every"],
    "isnet/table.py": [""],
}
FULL = {
    "isnet/mnist_distill.py": ["paper"],
    "isnet/table.py": ["full"],
    "isnet/photos.py": ["xray", "celeba"],
}


def trainings(cards: dict[str, list[str]]) -> list:
    """The trainings of images that the cards hold; those of one network and method once."""
    seen, made = set(), []
    for name, argument in ((n, a) for n, every in cards.items() for a in every):
        for leaf in leaves(name, argument):
            task = dict(leaf.experiment.task)
            data = task.pop("data")
            task["data"] = (data.get("size"), data.get("shrink"), SHAPES.get(data["source"]))
            if (told := json.dumps(task, sort_keys=True)) not in seen:
                seen.add(told)
                made.append(pytest.param(leaf, id=f"{name[6:-3]}:{argument}-{leaf.run}"))
    return made


@pytest.mark.parametrize("leaf", trainings(SMALL))
def test_a_training_of_digits_is_built(leaf: card.Leaf, tmp_path_factory) -> None:
    place = tmp_path_factory.getbasetemp() / "images"
    built(leaf, data=images(place, leaf.experiment.task["data"]))


@pytest.mark.slow
@pytest.mark.parametrize("leaf", trainings(FULL))
def test_a_training_of_full_size_is_built(leaf: card.Leaf, tmp_path_factory) -> None:
    place = tmp_path_factory.getbasetemp() / "images"
    built(leaf, data=images(place, leaf.experiment.task["data"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_segmentation_of_full_size_is_built(name: str, tmp_path: Path) -> None:
    """With the card's own patch; `test_models_launch` builds the network alone."""
    wide = plan(spacing_mm=(1.5, 1.5, 1.5), patch=(96, 96, 96))
    data = write_set(tmp_path / "prepared", 1, wide)
    (leaf,) = leaves(name, "")
    built(leaf, data=str(data), validation_cases=("case_0",))


# ------------------------------------------------------------------------- run small


def run(verb: str, where: str, work: Path, **changes: object) -> int:
    keys = [f"--config.{key}={value!r}" for key, value in changes.items()]
    return main([verb, "--config", str(CARDS / where), "--workdir", str(work), *keys])


def losses(work: Path) -> list[float]:
    """Of each step of every training in a work folder; one of them at least."""
    (file,) = work.rglob("metrics.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [row["loss"] for row in rows if row.get("split") == "train"]


FEW = {"steps": 2, "log_every": 1, "eval_every": 2, "batch_size": 8, "eval_batch_size": 8}


@pytest.mark.slow
def test_the_card_of_distillation_runs(tmp_path: Path) -> None:
    changes = {"runs.lrp.task.teacher.steps": 2, "task.model.widths": (2, 2)}
    changes |= {"runs.lrp.task.teacher.model.widths": (2, 2), "task.data.shrink": 4}
    assert run("train", "isnet/mnist_distill.py:lrp", tmp_path, **FEW, **changes) == 0
    assert np.isfinite(losses(tmp_path)).all() and len(losses(tmp_path)) == 2


@pytest.mark.slow
def test_the_card_of_tables_runs(tmp_path: Path) -> None:
    changes = {"seeds": 1, "task.data.limits": (40, 20, 20), "task.data.shrink": 4}
    model = {"runs.mnist-erm.task.model.widths": (2,), "runs.mnist-erm.task.model.pooled": 1}
    assert run("benchmark", "isnet/table.py:mnist-erm", tmp_path, **FEW, **changes, **model) == 0
    assert np.isfinite(losses(tmp_path)).all() and len(losses(tmp_path)) == 2
    assert "\n| erm " in (tmp_path / "tables.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_card_of_a_network_runs(name: str, tmp_path: Path) -> None:
    """Two steps of its family as small as it goes; `test_models_phantom` trains until it learns."""
    card = leaves(name, "")[0].experiment
    family = card.task["model"]["name"]
    if family.startswith("stunet_"):  # sizes of one family, which leave its widths alone to tell
        family = "stunet"
    patch = tuple(n if "patch" in TINY[family] else max(n, 16) for n in sides(family))
    data = write_set(tmp_path / "prepared", 2)
    changes = {"task.model": {"name": family, **TINY[family]}, "task.patch": patch, "mesh.data": 1}
    changes["task.validation"] = 0.5
    # The others' argument is the prepared data set, theirs the work folder.
    if name in ("touchstone/unet.py", "touchstone/phantom_smoke.py"):
        changes |= {"task.data": str(data), "task.validation_cases": ()}
    rows = max(card.mesh.fsdp, 1)
    few = {**FEW, "batch_size": rows, "eval_batch_size": rows, "optimizer.warmup_steps": 0}
    where = f"{name}:{data}"
    assert run("train", where, tmp_path / "work", **few, **changes) == 0
    found = losses(tmp_path / "work")
    assert np.isfinite(found).all() and len(found) == 2
