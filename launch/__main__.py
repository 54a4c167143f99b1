"""`python -m launch VERB --config F --workdir D [--config.key=value …]`.

JAX is imported only after the card, the overrides and the work folder are known to be sound.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from launch import card
from launch.experiment import SetupError
from launch.workdir import finished, no_space, probe, refuse_changes

ABOUT = """\
verbs:
  train     train every run × seed of a card (goes on where it was stopped), evaluate, one table
  evaluate  evaluate the checkpoints in --workdir again and print the table
  explain   draw --workdir/heatmaps.png from the checkpoints
  list      list the cards below a folder (default: configs)

--config FILE.py[:ARGUMENT] names the card; --config.KEY=VALUE changes one of its values, e.g.
--config.optimizer.learning_rate=0.01, --config.seeds=5. It holds for all runs, so it is refused
where a run sets that key itself: --config.runs.NAME.KEY=VALUE changes one run alone.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SetupError(f"{message}; {self.format_usage().strip()}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m launch",
        description="Train, evaluate and explain what an experiment card describes.",
        epilog=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("verb", choices=VERBS, metavar="{" + ",".join(VERBS) + "}")
    parser.add_argument("folder", nargs="?", help="list: where the cards are")
    parser.add_argument("--config", metavar="FILE[:ARG]", help="the experiment card")
    parser.add_argument("--workdir", help="where everything is written and found again")
    parser.add_argument(
        "--force", action="store_true", help="train: resume although the config has changed"
    )
    parser.add_argument("--count", type=int, help="explain: how many items (default 6)")
    parser.add_argument("--split", help="explain: of which split (default: the first test split)")
    parser.add_argument("--traceback", action="store_true", help="show where an error arose")
    return parser


def _overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """(the other arguments, the (key, text) of every --config.key=text or --config.key text)."""
    rest, found, waiting = [], [], iter(argv)
    for argument in waiting:
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        key, equals, text = argument.removeprefix("--config.").partition("=")
        if not equals:
            text = next(waiting, None)
            if text is None:
                raise SetupError(f"{argument} has no value: write {argument}=VALUE")
        found.append((key, text))
    return rest, found


def _leaves(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> list[card.Leaf]:
    for name in ("config", "workdir"):
        if not getattr(options, name):
            raise SetupError(f"{options.verb} needs --{name}")
    values = card.resolve(card.read(options.config), overrides)
    leaves = card.leaves(values, Path(options.workdir))
    probe(Path(options.workdir))
    return leaves


def _train(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    leaves, workdir = _leaves(options, overrides), Path(options.workdir)
    for leaf in leaves:
        refuse_changes(leaf, resume=True, force=options.force)
    if finished(workdir, leaves):
        print(f"finished: every run in {workdir} is at its last step; nothing to do")
        print((workdir / "table.md").read_text(encoding="utf-8"), end="")
        return 0
    from launch import verbs

    return verbs.train(leaves, workdir)


def _evaluate(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    leaves = _leaves(options, overrides)
    for leaf in leaves:
        refuse_changes(leaf)
    from launch import verbs

    return verbs.evaluate(leaves, Path(options.workdir))


def _explain(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    leaves = _leaves(options, overrides)
    for leaf in leaves:
        refuse_changes(leaf)
    from launch import verbs

    return verbs.explain(
        leaves, Path(options.workdir), count=options.count or 6, split=options.split
    )


def _list(options: argparse.Namespace, _overrides: list[tuple[str, str]]) -> int:
    folders = [Path(options.folder or "configs")]
    if not folders[0].is_dir() and options.folder is None:
        folders = card.installed()
    if not folders or not folders[0].is_dir():
        looked = ", ".join(str(Path.cwd() / f) for f in folders or ["configs"])
        raise SetupError(f"no folder {options.folder or 'configs'!r} to list (looked for {looked})")
    for path in sorted(p for f in folders for p in f.rglob("*.py") if not p.name.startswith("_")):
        told = card.summary(path)
        if told is not None:
            print(f"{path}: {told}")
    return 0


def _refuse_what_has_no_effect(options: argparse.Namespace, overrides: list) -> None:
    """Every option belongs to some verbs only; elsewhere it would be ignored silently."""
    for name, verbs in BELONGS.items():
        if options.verb not in verbs and getattr(options, name) not in (None, False):
            what = f"folder {options.folder!r}" if name == "folder" else f"--{name}"
            raise SetupError(f"{options.verb} takes no {what}; it is for {', '.join(verbs)}")
    if overrides and options.verb == "list":
        raise SetupError(f"list takes no --config.{overrides[0][0]}")
    if options.count is not None and options.count < 1:
        raise SetupError(f"--count {options.count} must be at least 1")


BELONGS = {
    "folder": ("list",),
    "config": ("train", "evaluate", "explain"),
    "workdir": ("train", "evaluate", "explain"),
    "force": ("train",),
    "count": ("explain",),
    "split": ("explain",),
}
VERBS = {"train": _train, "evaluate": _evaluate, "explain": _explain, "list": _list}


def main(argv: Sequence[str]) -> int:
    """Run one verb; 0 done, 1 something failed while running, 2 something to put right first."""
    try:
        rest, overrides = _overrides(argv)
        options = _parser().parse_args(rest)
        _refuse_what_has_no_effect(options, overrides)
        return VERBS[options.verb](options, overrides)
    except SetupError as error:
        if "--traceback" in argv:
            traceback.print_exc()
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except Exception as error:
        if not no_space(error):
            raise
        where = f" in {options.workdir}" if options.workdir else ""
        print(
            f"error: no space left on the disk{where}: make room, then the same command goes on "
            "from the last checkpoint",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
