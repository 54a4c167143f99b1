"""Cards and overrides of any content: an experiment with sound values, or one line that says why.

Drawn by hypothesis: keys of the card and keys it does not have, values of every type.
"""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from launch import card
from launch.build import make_task
from launch.experiment import AT_LEAST, SetupError, schema
from launch.workdir import changes
from tests.launch.conftest import CARD, ROOT

WORDS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["name", "steps", "..", "a/b", "seed1", "x.y", "", "\ud800", "runs", "task"]),
)
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.sampled_from([10**400, 2**31, 2**32, 2**63, 2**64]),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.binary(max_size=3))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        *schema(),
        *("optimizer", "mesh", "checkpoint", "nope", "optimizer.nope", "task.name", "task.noise"),
        *(
            "jobs.explain",
            "jobs.explain.name",
            "jobs.nope",
            "runs.a",
            "runs.a.steps",
            "runs.a.nope",
        ),
        *("runs.a.nope", "runs.a.optimizer.name", "runs...", "", ".", "runs."),
    ]
)
TEXTS = st.one_of(VALUES.map(repr), VALUES.map(str), st.text(max_size=8))


@pytest.fixture(scope="module")
def toy() -> Mapping[str, Any]:
    return card.read(str(ROOT / CARD))


def unfolded(values: Mapping, *overrides: tuple[str, str]) -> list[card.Leaf]:
    """The leaves, sound ones; none where the card was refused in the way that is expected."""
    try:
        leaves = card.leaves(card.resolve(values, overrides), Path("w"))
    except SetupError as error:
        told = str(error)
        assert "config" in told and "Error" not in told, told
        return []
    for leaf in leaves:
        _sound(leaf)
    return leaves


def _sound(leaf: card.Leaf) -> None:
    assert leaf.folder.resolve().parent.parent in (Path.cwd(), Path("w").resolve())
    for key, kind in schema().items():
        value: Any = leaf.experiment
        for name in key.split("."):
            value = getattr(value, name)
        assert isinstance(value, kind), (key, value)
        if kind in (int, float):
            assert math.isfinite(value) and value >= AT_LEAST.get(key, -math.inf), (key, value)
            assert abs(value) < 2**63 or kind is float


@given(KEYS, VALUES)
@example("optimizer.learning_rate", 10**400)
@example("steps", 10**5000)
@example("seeds", 2**31)
@example("mesh.rules", (("a{99999999999}", ("data",)),))
@example("runs", {"..": {}})
@example("runs", {"": {"steps": 3}})
@example("runs", {"x" * 300: {}})
def test_a_card_of_any_values(toy: Mapping[str, Any], key: str, value: Any) -> None:
    values = copy.deepcopy(dict(toy))
    *parents, name = key.split(".")
    node = values
    for parent in parents:
        node = node.setdefault(parent, {})
    node[name] = value
    unfolded(values)


@given(KEYS, TEXTS)
@example("optimizer.learning_rate", "{[]: 1}")
@example("optimizer.learning_rate", "-" * 3000 + "1")
@example("optimizer.learning_rate", "[" * 3000)
@example("optimizer.learning_rate", "1e999")
@example("task.shift", "'\\d'")
@example("optimizer", "{1: 2}")
@example("runs", "{1: {}}")
@example("runs", "{'../a': {}}")
def test_an_override_of_any_text(toy: Mapping[str, Any], key: str, text: str) -> None:
    unfolded(copy.deepcopy(dict(toy)), (key, text))


@given(st.dictionaries(WORDS, VALUES, max_size=3))
def test_a_card_of_nothing_that_is_known(values: dict[str, Any]) -> None:
    assert not unfolded(values)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (":Toy", "Empty module name"),
        (".toy:Toy", "relative import"),
        ("no\0such:Toy", "No module named"),
        ("tests.launch.toy:CLASSES", "has 'CLASSES', which is no task .*Toy"),
        ("tests.launch.toy:Items", r"'Items', which is no task \(no step\(\)\).*Toy"),
        ("collections:Counter", "'Counter', which is no task"),
        ("tests.launch.toy:Toi", "toy has no 'Toi'; tasks there: Toy"),
        ("builtins:int", "'int', which is no task"),
    ],
)
def test_what_is_no_task(toy: Mapping[str, Any], name: str, said: str) -> None:
    (leaf,) = unfolded({**toy, "task": {"name": name}})
    with pytest.raises(SetupError, match=f"config.task.name = .*: .*{said}"):
        make_task(leaf.experiment)


def test_nan_in_a_card_is_what_it_was() -> None:
    old, new = ({"task": {"missing": math.nan}} for _ in range(2))
    assert changes(old, new) == []
    assert changes(old, {"task": {"missing": 1.0}}) == ["task.missing: nan -> 1.0"]
