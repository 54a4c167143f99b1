"""README: its Python and its (shortened) commands run, its files exist, CI does as it says."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from launch.__main__ import main
from tests.pages import README, ROOT, blocks, broken_links, commands, execute, launches, links

# Random weights: nothing is fetched. The real ones are for `-m slow`.
SMALL = (
    "--config.jobs.explain.model="
    "{'name': 'squeezenet1_1', 'weights': 'random', 'num_classes': 5, 'squeezed': ((2, 2),)}",
    "--config.jobs.explain.names=None",
    "--config.jobs.explain.preprocessing.size=32",
    "--config.jobs.explain.preprocessing.resize=32",
    "--config.jobs.explain.rules=('gradient_x_input', 'epsilon')",
)
PHANTOMS = (
    "--config.steps=2",
    "--config.eval_every=2",
    "--config.task.model.widths=(2,2)",
    "--config.task.patch=(16,16,16)",
    "--config.jobs.prepare.train=2",
    "--config.jobs.prepare.test=1",
    "--config.jobs.prepare.phantom.shape=(24,24,24)",
)
SHORT = ("--config.steps=2", "--config.eval_every=2", "--config.task.model.widths=(2,2)")


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # as a user has it; optax mixes dtypes
        yield


def test_the_python_of_the_readme_runs_in_order(tmp_path):
    assert len(blocks(README, "python")) >= 4
    names = execute(README, tmp_path)
    assert names["heatmaps"].shape == names["images"].shape
    assert names["metrics"]["loss"] > 0


def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(folder / "grey.png")
    return folder


def test_the_launch_commands_of_the_readme_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert len(launches(README)) >= 8
    for argv in launches(README):
        argv = [str(tmp_path / a) if a.startswith("runs/") else a for a in argv]
        argv = [a.replace("=DIR", f"={photos(tmp_path)}") for a in argv]
        tuning = [a for a in argv if a.startswith("--config.task.tune_steps")]
        short = [*SHORT, *(["--config.task.tune_steps=5"] if tuning else [])]
        short = SMALL if any("isnet/explain.py" in a for a in argv) else short
        phantoms = [a for a in argv if a.endswith("phantom_smoke.py")]
        if phantoms:  # the card is told where its data go
            argv[argv.index(phantoms[0])] += f":{tmp_path / 'runs' / 'phantom_smoke'}"
            short = PHANTOMS
        code = main([*argv, *(short if argv[0] != "list" else [])])
        said = capsys.readouterr()
        assert code == 0, f"{argv}: {said.err}"
        named = "swin_unetr" if "--models" in argv else "mnist_bias"
        assert argv[0] != "list" or named in said.out
    first = tmp_path / "runs" / "mnist_bias"
    for name in ("table.md", "table.json", "heatmaps.png", "plain/seed0/progress.png"):
        assert (first / name).stat().st_size > 0


@pytest.mark.slow
def test_the_photos_are_named_and_explained(tmp_path, monkeypatch):
    # Fetches the weights and class names, unless they were fetched before.
    monkeypatch.chdir(ROOT)
    command = "explain --config configs/isnet/explain.py --workdir"
    assert main([*command.split(), str(tmp_path)]) == 0
    first = {"coffee": "espresso", "chelsea": "Egyptian cat", "camera": "tripod"}
    for photo, name in first.items():
        told = json.loads((tmp_path / "explain" / photo / "explanation.json").read_text())
        assert told["classes"][0]["name"] == name
    assert (tmp_path / "explain" / "montage.png").stat().st_size > 100_000


def test_ci_installs_and_tests_as_the_readme_says():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    install = next(c for c in commands(README) if c.startswith("pip install"))
    extra = install.removeprefix("pip install ")
    assert extra in ci and "python -m pytest" in ci and "python -m pytest" in commands(README)


def test_links_lead_somewhere():
    assert links(README) and not broken_links(README)
