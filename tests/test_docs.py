"""The pages of docs/: their Python runs, their commands fit cards and options, links lead on."""

import importlib.util
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from launch import __main__ as program
from launch import card, data
from tests.pages import (
    PAGES,
    ROOT,
    blocks,
    broken_links,
    commands,
    execute,
    launches,
    links,
    read,
)
from tests.touchstone import benchmark_cases

TRAIN = ROOT / "docs" / "train.md"
# A guide whose Python another file runs, with more to say about it.
ELSEWHERE = {"benchmark.md": "touchstone/test_benchmark_run.py", "flex.md": "isnet/test_flex.py"}
SHORT = (
    "--config.steps=2",
    "--config.eval_every=2",
    "--config.batch_size=8",
    "--config.task.model.widths=(2,2)",
)
SHELL = ("console", "bash", "sh", "")
# Options that start processes or speak to other hosts, each with a value.
HOSTS = ("--rehearse", "--coordinator", "--processes", "--process", "--host-timeout")


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # as a user has it; optax mixes dtypes
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a reader works: an empty folder; cards of the project are found all the same."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named(pages):
    return [pytest.param(page, id=page.stem) for page in pages]


# ---------------------------------------------------------------- code


@pytest.mark.parametrize(
    "page", named(p for p in PAGES if blocks(p, "python") and p.name not in ELSEWHERE)
)
def test_the_python_of_a_page_runs_in_order(page, folder):
    execute(page, folder)


def test_the_python_of_other_pages_is_run_elsewhere():
    for name, test in ELSEWHERE.items():
        assert blocks(ROOT / "docs" / name, "python")
        text = (ROOT / "tests" / test).read_text(encoding="utf-8")
        assert "exec(compile(" in text and name in text


def test_a_page_s_output_is_held_against_what_is_printed(folder):
    page = folder / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```output\n3\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match=r"page\.md: 2"):
        execute(page, folder)


# ---------------------------------------------------------------- commands


@pytest.fixture
def only_parsed(monkeypatch):
    """`launch` as it is up to the verbs, which then read, change and check the card, and stop."""
    told = []

    def stop(options, overrides):
        assert not overrides or options.config
        if options.config:
            values = card.resolve(card.read(options.config), overrides)
            data.check_names(values)
            card.leaves(values, Path(options.workdir or "work"))
        told.append(options.verb)
        return 0

    monkeypatch.setattr(program, "VERBS", dict.fromkeys(program.VERBS, stop))
    return told


@pytest.mark.parametrize("page", named(p for p in PAGES if launches(p, SHELL)))
def test_every_command_fits_its_card(page, folder, only_parsed, capsys):
    for block in blocks(page, "python"):  # cards that the page tells the reader to write
        if block.startswith("# my_card.py\n"):
            Path("my_card.py").write_text(block, encoding="utf-8")
    alone = [without_hosts(argv) for argv in launches(page, SHELL)]
    named_cards = [argv for argv in alone if "CARD" not in argv]  # a placeholder in a line of form
    for argv in named_cards:
        assert program.main(argv) == 0, f"{page.name}: {argv}: {capsys.readouterr().err}"
    assert len(only_parsed) == len(named_cards)


def test_lines_are_taken_apart_as_a_shell_does(folder):
    page = folder / "page.md"
    page.write_text(
        "```console\npip install x && python -m launch list\n"
        "ssh host 'cd x && python -m launch train'\n"
        "python -m launch list \\\n  --models  # all\n```\n",
        encoding="utf-8",
    )
    assert launches(page) == [["list"], ["list", "--models"]]
    assert len(commands(page)) == 4


def without_hosts(argv):
    taken = {i for i, a in enumerate(argv) if a in HOSTS}
    return [a for i, a in enumerate(argv) if i not in taken and i - 1 not in taken]


def test_a_wrong_key_in_a_command_is_noticed(only_parsed, capsys):
    command = "train --config configs/isnet/mnist_bias.py --workdir w --config.stepz=3"
    assert program.main(command.split()) == 2
    assert "config.steps" in capsys.readouterr().err and not only_parsed


def test_your_own_images_are_trained_on_as_the_page_says(folder, capsys):
    execute(TRAIN, folder)
    for part in folder.glob("data/*.npz"):  # a few of them will do
        with np.load(part) as arrays:
            few = {name: arrays[name][:16] for name in arrays}
        np.savez(part, **few)
    for argv in launches(TRAIN)[:2]:
        code = program.main([*argv, *SHORT])
        assert code == 0, f"{argv}: {capsys.readouterr().err}"
    table = (folder / "runs" / "mine" / "table.md").read_text(encoding="utf-8")
    assert "standard/accuracy" in table and "deceiving/accuracy" in table
    assert (folder / "runs" / "mine" / "heatmaps.png").stat().st_size > 0


def test_the_benchmark_s_commands_run_on_the_layout_that_the_page_shows(folder, capsys):
    benchmark_cases.write(folder / "RESULTS")
    shutil.copytree(folder / "RESULTS" / "MONAI_SegVol", folder / "RESULTS" / "ours")
    (check,) = (a for a in launches(ROOT / "docs" / "touchstone.md") if "--check" in a)
    assert program.main(check) == 0
    assert "nothing is missing" in capsys.readouterr().err


# ---------------------------------------------------------------- links and the reference


@pytest.mark.parametrize("page", named([*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]))
def test_links_lead_somewhere(page):
    assert not broken_links(page)


def test_the_index_knows_every_page():
    index = ROOT / "docs" / "index.md"
    assert {page.name for page in PAGES} - {"index.md"} <= set(links(index))


def test_the_reference_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    make_api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_api)
    assert set(make_api.__dict__) & {"jax", "numpy"} == set()
    current = read(make_api.PAGE) == make_api.page()
    assert current, f"docs/api.md is out of date: run `{make_api.COMMAND}` and commit the page"
