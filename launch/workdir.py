"""The files of a work folder: may it be written, is it another experiment's, what is finished."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.card import Leaf, plain
from launch.experiment import SetupError, Task

# These cannot change what is learnt or scored, so a run may go on with other values.
FREE = (
    *("mesh.data", "mesh.fsdp", "mesh.space", "mesh.rules", "tensorboard", "log_every"),
    *("eval_batch_size", "workers", "hang_minutes"),
    *("checkpoint.every", "checkpoint.keep", "checkpoint.keep_best"),
)
# The learning rate of a step does not depend on how many steps there are.
OPEN_ENDED = ("constant", "step")


def probe(folder: Path) -> None:
    """Make `folder` and write a file in it.

    Raises:
        SetupError: it cannot be written; the message names the path and the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f".probe{os.getpid()}"
        file.write_text("can this be written?")
        file.unlink(missing_ok=True)
    except OSError as error:
        raise SetupError(
            f"workdir {str(folder)!r} cannot be written: {error.strerror or error}; "
            "give --workdir a folder that can"
        ) from error


def no_space(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is a full disk (tensorstore says it)."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC).lower() in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def lock(workdir: Path, what: str = "training") -> Iterator[None]:
    """Keep a second training or job out of `workdir` while the block runs.

    The system drops the lock when the process ends, however it ends: none is ever left over.

    Raises:
        SetupError: another process works there; the message names it.
    """
    with (workdir / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise SetupError(
                f"another {what} is running in {str(workdir)!r} ({file.read().strip()}): "
                "wait for it, or use another --workdir"
            ) from None
        except OSError:  # a file system without locks
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a reader sees the old one or the new one, never half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def read_json(path: Path) -> Any:
    """The value in a JSON file; None if there is no such file, or a damaged one (named, moved)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError):
        aside = path.with_name(path.name + ".damaged")
        with contextlib.suppress(FileNotFoundError):  # another process has just done it
            path.replace(aside)
            print(f"{path} is damaged and was set aside as {aside.name}", file=sys.stderr)
        return None


def trained(folder: Path) -> int:
    """The step of a leaf's newest complete checkpoint, sound or not; -1 if there is none."""
    place = folder / "checkpoints"
    found = place.iterdir() if place.is_dir() else ()
    return max((int(p.name) for p in found if p.name.isdigit()), default=-1)


def stored_config(leaf: Leaf) -> dict[str, Any] | None:
    """The config that the leaf was trained with: its config.json, else its newest checkpoint's."""
    found = read_json(leaf.folder / "config.json")
    return found if isinstance(found, dict) else _of_checkpoint(leaf.folder, "config")


def stored_identity(folder: Path, step: int | None = None) -> dict[str, Any]:
    """What the data were that a checkpoint of a leaf folder was trained on, `Task.identity`.

    Of the newest without a `step`; {} if it does not say.
    """
    return _of_checkpoint(folder, "identity", step) or {}


def _of_checkpoint(folder: Path, key: str, step: int | None = None) -> dict[str, Any] | None:
    name = str(trained(folder) if step is None else step)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        meta = (folder / "checkpoints" / name / "meta" / "metadata").read_text(encoding="utf-8")
        found = json.loads(meta)[key]
        return found if isinstance(found, dict) else None
    return None


def dotted(values: Mapping, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of a nested mapping; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        below = isinstance(value, Mapping) and value
        flat |= dotted(value, f"{prefix}{name}.") if below else {prefix + name: value}
    return flat


def same(a: Any, b: Any) -> bool:
    """Whether two values of a config are the same; NaN is what it was."""
    return a == b or repr(a) == repr(b)


def changes(
    old: Mapping, new: Mapping, *, grow: bool = True, places: Collection[str] = ()
) -> list[str]:
    """Tell `key: old -> new` for every key that matters and differs.

    With `grow`, `steps` may be more than before, where the schedule does not depend on it. Texts
    in the task's keywords `places` may say where data are: `refuse_other_data` judges them.
    """
    before, after, told = dotted(old), dotted(new), []
    for key in sorted(before.keys() | after.keys()):
        a, b = before.get(key, "absent"), after.get(key, "absent")
        top, _, inner = key.partition(".")
        if same(a, b) or key in FREE or top == "jobs":
            continue
        placed = top == "task" and inner.partition(".")[0] in places
        if placed and isinstance(a, str) and isinstance(b, str):
            continue
        why = ""
        if key == "steps" and grow and isinstance(a, int) and b > a:
            if new["optimizer"]["schedule"] in OPEN_ENDED:
                continue
            why = f", on which the {new['optimizer']['schedule']} schedule depends"
        told.append(f"{key}: {a!r} -> {b!r}{why}")
    return told


def refuse_changes(leaf: Leaf, *, resume: bool = False, force: bool = False) -> None:
    """Refuse to use saved state under another config than its own, unless `force`.

    `resume` is for training on: then `steps` may grow.

    Raises:
        SetupError: it names every key that differs.
    """
    old = stored_config(leaf)
    if old is None or trained(leaf.folder) < 0 or force:
        return
    told = changes(old, leaf.config, grow=resume, places=stored_identity(leaf.folder))
    if told:
        way = ", or --force to go on with the new one" if resume else " or the run's own values"
        raise SetupError(
            f"{leaf.folder} was trained with another config ({'; '.join(told)}): "
            f"use another --workdir{way}"
        )


def refuse_other_data(leaf: Leaf, task: Task, *, force: bool = False) -> None:
    """Refuse to use saved state with other data than its own, unless `force`.

    Where they lie does not count, so that work folder and data may be moved.

    Raises:
        SetupError: it names the keyword, its value and what of the data differs.
    """
    told = [] if force else _other_data(leaf, task)
    if told:
        raise SetupError(
            f"{leaf.folder} was trained on other data ({'; '.join(told)}): name those, use another "
            "--workdir, or train with --force to go on with these"
        )


def _other_data(leaf: Leaf, task: Task) -> list[str]:
    old, new, told = stored_identity(leaf.folder), identity(task), []
    for name in old.keys() & new.keys():
        before, after = dotted({"": old[name]}), dotted({"": new[name]})
        differ = [
            f"{key.lstrip('.') or 'it'} was {before.get(key, 'absent')!r}, is "
            f"{after.get(key, 'absent')!r}"
            for key in sorted(before.keys() | after.keys())
            if not same(before.get(key, "absent"), after.get(key, "absent"))
        ]
        if differ:
            value = leaf.config["task"].get(name, "the default")
            told.append(f"config.task.{name} = {value!r}: {', '.join(differ)}")
    return told


def identity(task: Task) -> dict[str, Any]:
    """What `Task.identity` says, as plain JSON values; {} of a task without."""
    return plain(getattr(task, "identity", {}))


def claim(leaf: Leaf, task: Task) -> None:
    """Make the leaf's folder and store its config there; drop results of another config or data."""
    old, places = stored_config(leaf), stored_identity(leaf.folder)
    if old is not None and (changes(old, leaf.config, places=places) or _other_data(leaf, task)):
        (leaf.folder / "results.json").unlink(missing_ok=True)
    leaf.folder.mkdir(parents=True, exist_ok=True)
    write_json(leaf.folder / "config.json", leaf.config)


def results(leaf: Leaf, *, partial: bool = False) -> dict[str, Any] | None:
    """The leaf's evaluation; None if it is not there or (save for `partial`) of fewer steps."""
    found = read_json(leaf.folder / "results.json")
    wanted = {"steps": int, "metrics": dict}
    if not isinstance(found, dict):
        return None
    if not all(isinstance(found.get(key), kind) for key, kind in wanted.items()):
        return None
    return found if partial or found["steps"] >= leaf.experiment.steps else None


def complete(workdir: Path) -> list[str]:
    """The labels of the leaves with which `train` had nothing left to do."""
    table = read_json(workdir / "table.json")
    found = table.get("complete") if isinstance(table, dict) else None
    return found if isinstance(found, list) else []


def finished(workdir: Path, todo: Sequence[Leaf]) -> bool:
    """Whether nothing is left to do: all leaves trained and evaluated, pictures drawn or refused.

    `train` marks the table as complete after the pictures, so the mark stands for them too.
    """
    leaves = sorted(leaf.label for leaf in todo)
    done = complete(workdir) == leaves and (workdir / "table.md").is_file()
    return done and all(results(leaf) is not None and as_trained(leaf) for leaf in todo)


def as_trained(leaf: Leaf) -> bool:
    """Whether the config is that of the training, where the data lie among it."""
    old = stored_config(leaf)
    return old is not None and not changes(old, leaf.config)
