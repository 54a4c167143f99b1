"""Experiment cards: read the file, apply the command line's overrides, unfold runs × seeds."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import sys
import traceback
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.experiment import (
    Experiment,
    SetupError,
    build,
    defaults,
    fit,
    schema,
    unknown_key,
)

# What is below these goes to a constructor of the card's choice, which may take None.
FREE_SECTIONS = ("task.", "jobs.")


@dataclass(frozen=True)
class Leaf:
    """One training: a run of the card with one seed, and the folder that it owns."""

    run: str  # "" where the card has no runs
    seed: int
    folder: Path
    experiment: Experiment
    config: dict[str, Any]  # the same as plain JSON values, for files and comparisons

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.run}/seed{self.seed}" if self.run else f"seed{self.seed}"


# ------------------------------------------------------------------------- reading


def installed() -> list[Path]:
    """Where the cards that were installed with the program are; not only below this directory."""
    spec = importlib.util.find_spec("configs")
    places = (spec.submodule_search_locations or []) if spec else []
    return [Path(p) for p in places if Path(p).is_dir()]  # an editable install adds a mark


def _locate(path: Path) -> Path:
    """`path`, or for configs/… that is not below this directory the installed card."""
    if path.is_file():
        return path
    inner = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else None
    others = [folder / inner for folder in installed()] if inner else []
    for other in others:
        if other.is_file():
            return other
    cards = [card.name for place in (path, *others) for card in place.parent.glob("*.py")]
    near = difflib.get_close_matches(path.name, cards, n=1)
    hint = f"did you mean {str(path.with_name(near[0]))!r}? " if near else ""
    looked = ", ".join(map(str, dict.fromkeys([Path.cwd() / path, *others])))
    raise SetupError(
        f"no config file {str(path)!r} (looked for {looked}); {hint}`python -m launch list` shows "
        "the cards"
    )


def _where(error: BaseException, path: Path) -> str:
    """FILE:LINE of the card's own line that an error came from, or of the syntax error."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f"{path}:{lines[-1] if lines else 1}"


def _run(path: Path, argument: str) -> Any:
    """What get_config of the card at `path` returns, as a plain dict if it can be one."""
    module = types.ModuleType(f"_card_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look there
    # Not by the import system: it keeps compiled files and tells versions apart by the second.
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise SetupError(f"{path} has no get_config()")
    if argument and not inspect.signature(get_config).parameters:
        raise SetupError(f"{path} takes no argument, got {argument!r}")
    made = get_config(argument) if argument else get_config()
    return made.to_dict() if hasattr(made, "to_dict") else made


def _names(values: Mapping, where: Path | str) -> None:
    for name, value in values.items():
        if not isinstance(name, str):
            raise SetupError(f"{where}: key {name!r} must be a word, not {type(name).__name__}")
        if isinstance(value, Mapping):
            _names(value, where)


def read(place: str) -> dict[str, Any]:
    """The nested dict that `path.py` or `path.py:argument` describes.

    Raises:
        SetupError: no such file, no get_config in it, or an error in it: FILE:LINE: Type: message.
    """
    file, _, argument = place.partition(".py:")
    path = Path(file if file.endswith(".py") else file + ".py") if argument else Path(place)
    path = _locate(path)
    if path.suffix != ".py":
        raise SetupError(f"config file {str(path)!r} is no Python file (.py)")
    try:
        made = _run(path, argument)
    except SetupError:
        raise
    except (Exception, SystemExit) as error:  # it is the user's program: it can raise anything
        told = error.msg if isinstance(error, SyntaxError) else error
        raise SetupError(f"{_where(error, path)}: {type(error).__name__}: {told}") from error
    if not isinstance(made, Mapping):
        raise SetupError(
            f"{path}: get_config() must return a ConfigDict or a dict, not {type(made).__name__}"
        )
    _names(made, path)
    return dict(made)


def summary(path: Path) -> str | None:
    """The first line of a card's docstring, without importing it; None if the file is no card."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (OSError, ValueError, SyntaxError, RecursionError) as error:
        told = getattr(error, "msg", None) or getattr(error, "strerror", None) or error
        return f"(not readable: {type(error).__name__}: {told})"
    if not any(isinstance(n, ast.FunctionDef) and n.name == "get_config" for n in tree.body):
        return None
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def files(folders: Sequence[Path | str]) -> list[Path]:
    """Every Python file below the folders that may be a card, sorted."""
    return sorted(p for f in folders for p in Path(f).rglob("*.py") if not p.name.startswith("_"))


def has_job(path: Path, verb: str) -> bool:
    """Whether the card at `path` has a section config.jobs.VERB; False where it has errors."""
    try:
        jobs = read(str(path)).get("jobs")
    except SetupError:
        return False
    return isinstance(jobs, Mapping) and verb in jobs


# ------------------------------------------------------------------------- overriding


def _dotted(values: Mapping, prefix: str) -> Iterator[str]:
    for name, value in values.items():
        yield f"{prefix}.{name}"
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}.{name}")


def _literal(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a backslash of a path is no concern of the user's
            return ast.literal_eval(text)
    # Also a list as a key, and brackets or signs too deep for the parser.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def parse(text: str, current: Any, key: str, *, optional: bool = False) -> Any:
    """`text` of the command line as the type of the card's `current` value.

    `optional` allows None. Where the card holds None, any Python literal or a bare word will do.

    Raises:
        SetupError: the text is of another type.
    """
    if current is None or (optional and text == "None"):
        return _literal(text)
    if isinstance(current, str):
        value = _literal(text)
        return value if isinstance(value, str) else text
    value = {"true": True, "false": False}.get(text.lower(), _literal(text))
    kinds: dict[type, Any] = {list: tuple, dict: Mapping}
    if isinstance(value, str) and isinstance(current, float):
        value = float(text) if text.lower() in ("inf", "-inf", "nan") else value
    fitted = fit(value, kinds.get(type(current), type(current)), key)
    if isinstance(fitted, Mapping):
        _names(fitted, f"config.{key}")
    return type(current)(fitted) if isinstance(current, list | dict) else fitted


def override(values: dict[str, Any], key: str, text: str) -> None:
    """Set the dotted `key` of the nested `values` in place; runs.NAME.KEY is `KEY` of one run.

    Raises:
        SetupError: the key is not in the card, the text is of another type than the card's, or
            runs set the key themselves, so that the change would have no effect on them.
    """
    top, _, below = key.partition(".")
    run, _, inner = below.partition(".")
    changes = values["runs"].get(run) if top == "runs" and inner else None
    if isinstance(changes, dict):  # a run may be given any key that the card has
        merged = merge({k: v for k, v in values.items() if k != "runs"}, changes, f"runs.{run}")
        node, name = _find(merged, inner, f"config.runs.{run}")
        _put(changes, inner, parse(text, node[name], key, optional=inner.startswith(FREE_SECTIONS)))
        return
    node, name = _find(values, key, "config")
    setting = [run for run, changes in values["runs"].items() if _touches(changes, key)]
    if setting and top != "runs":
        names = ", ".join(map(repr, setting))
        ways = ", ".join(f"--config.runs.{run}.{key}={text}" for run in setting)
        raise SetupError(
            f"--config.{key} does not reach run {names}, which sets it itself: write {ways}, or "
            "name another run after the card's colon (FILE.py:ARGUMENT)"
        )
    node[name] = parse(text, node[name], key, optional=key.startswith(FREE_SECTIONS))


def _find(values: dict[str, Any], key: str, prefix: str) -> tuple[dict[str, Any], str]:
    """(the dict that holds the last name of the dotted key, that name)."""
    *parents, name = key.split(".")
    node: Any = values
    for parent in parents:
        node = node.get(parent) if isinstance(node, Mapping) else None
    if not isinstance(node, dict) or name not in node:
        error = unknown_key(f"{prefix}.{key}", list(_dotted(values, prefix)))
        # The constructor may take more than the card says, and so may not be what is wrong.
        if key.startswith(FREE_SECTIONS):
            raise SetupError(f"{error}; a key that the card lacks is added in the card")
        raise error
    return node, name


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, name = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    values[name] = value


def _touches(changes: Any, key: str) -> bool:
    """Whether a run's changes set the key, something below it or the whole that it is part of."""
    for name in key.split("."):
        if not isinstance(changes, Mapping):
            return True
        if name not in changes:
            return False
        changes = changes[name]
    return True


def _nested(changes: Any) -> Any:
    """A run's changes with "a.b": 1 written as "a": {"b": 1}."""
    if not isinstance(changes, Mapping):
        return changes
    made: dict[str, Any] = {}
    for name, value in changes.items():
        head, _, rest = str(name).partition(".")
        value = _nested({rest: value} if rest else value)
        both = isinstance(made.get(head), dict) and isinstance(value, dict)
        made[head] = _joined(made[head], value) if both else value
    return made


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    made = dict(first)
    for name, value in second.items():
        both = isinstance(made.get(name), dict) and isinstance(value, dict)
        made[name] = _joined(made[name], value) if both else value
    return made


def merge(values: Mapping, changes: Mapping, where: str, prefix: str = "") -> dict[str, Any]:
    """`values` with the nested `changes` of a run; every key must be in the card.

    Raises:
        SetupError: a key that the card does not have, or a value of another type.
    """
    merged = dict(values)
    for name, value in changes.items():
        key = prefix + name
        if name not in merged:
            legal = _dotted(values, f"config.{where}.{prefix}"[:-1])
            raise unknown_key(f"config.{where}.{key}", list(legal))
        old = merged[name]
        if isinstance(old, Mapping) and old and isinstance(value, Mapping):
            merged[name] = merge(old, value, where, key + ".")
        elif isinstance(old, bool | int | float | str) and value is not None:
            merged[name] = fit(value, type(old), f"{where}.{key}")
        else:
            merged[name] = value
    return merged


def _check_known(card: Mapping) -> None:
    """Keys of the card that the Experiment does not know; task, runs and jobs are free below."""
    legal = schema()
    groups = {key.partition(".")[0] for key in legal if "." in key}
    for name, value in card.items():
        below = value if name in groups and isinstance(value, Mapping) else None
        for key in [name] if below is None else [f"{name}.{k}" for k in below]:
            if key not in legal and key not in groups:
                raise unknown_key(f"config.{key}", [f"config.{k}" for k in legal])


def resolve(card: Mapping[str, Any], overrides: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """The card with the defaults filled in and the command line's (key, text) applied."""
    _check_known(card)
    values = defaults()
    for name, value in card.items():
        both = isinstance(values.get(name), dict) and isinstance(value, Mapping)
        values[name] = values[name] | dict(value) if both else value
    if isinstance(values["runs"], Mapping):
        values["runs"] = {name: _nested(changes) for name, changes in values["runs"].items()}
    else:
        raise SetupError(f"config.runs = {values['runs']!r} must be a mapping of names to changes")
    for key, text in overrides:
        override(values, key, text)
    build(values)
    return values


# ------------------------------------------------------------------------- runs × seeds


def plain(value: Any) -> Any:
    """`value` as JSON knows it: dicts, lists, numbers, strings."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def _check_run(run: str) -> None:
    """A run's name becomes a folder of the work folder: not another place, nor one of its files."""
    told = run.isprintable() and run.strip() == run and len(run.encode()) <= 200
    if not run or not told or run.startswith((".", "seed")) or "/" in run:
        raise SetupError(
            f"config.runs: {run!r} cannot name a folder (at most 200 printed characters, no '/', "
            "no '.' at the beginning, no 'seed…')"
        )


def leaves(values: Mapping[str, Any], workdir: Path) -> list[Leaf]:
    """Every training that the resolved card asks for, in the order it is done.

    Raises:
        SetupError: a run changes a key that the card does not have, or to a wrong value.
    """
    found = []
    base = {k: v for k, v in values.items() if k != "runs"}
    for run, changes in (values["runs"] or {"": {}}).items():
        if not isinstance(changes, Mapping):
            raise SetupError(f"config.runs.{run} = {changes!r} must be a mapping of keys to values")
        if values["runs"]:
            _check_run(run)
        merged = merge(base, changes, f"runs.{run}") if values["runs"] else base
        first = build(merged)
        for seed in range(first.seed, first.seed + first.seeds):
            one = {k: v for k, v in merged.items() if k != "seeds"} | {"seed": seed}
            folder = workdir / run / f"seed{seed}"
            found.append(Leaf(run, seed, folder, build(one), plain(one)))
    return found
