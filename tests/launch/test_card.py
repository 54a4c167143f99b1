"""What reaches which run: the card, its runs, the command line; cards that cannot be read."""

from pathlib import Path

import pytest

from launch import card
from launch.experiment import SetupError
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
