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

from launch import benchmark, card, data, ending, hosts, keywords, models
from launch.ending import GOES_ON, Terminated, failed, sigterm_unwinds
from launch.experiment import SetupError
from launch.workdir import finished, no_space, probe, refuse_changes

ABOUT = """\
verbs:
  check     read the first batch, compile, and tell what the card costs: parameters, operations,
            memory, messages, seconds; exit code 1 if anything is wrong. --workdir: check.json too
  bench     time some steps of every run: one JSON row a run, also in --workdir/bench.jsonl
  train     train every run × seed of a card (goes on where it was stopped), evaluate, one table
  evaluate  evaluate the checkpoints in --workdir again and print the table
  explain   draw --workdir/heatmaps.png from the checkpoints
  export    write weights, StableHLO and a model card of the checkpoints: they run without this
  verify, prepare, predict, report, and evaluate or explain of a card with config.jobs.VERB
            run that job over the cases of a folder, into --workdir/VERB/CASE
  benchmark turn the scores of many algorithms (--results) into tables, tests and one page
            (--out), or say what is missing from a newcomer's folder (--check); of a card with
            config.jobs.benchmark: train and score every run, print the tables of all
  data      fetch a named data set and print its folder; without a name: list them
  list      list the cards below a folder (default: configs); --models: the networks
  convert   start a card's training from an original's weights (--weights FILE, --prefix KEYS), and
            make embeddings.npz of names by its or CLIP's text tower (--vocabulary FILE)

--config FILE.py[:ARGUMENT] names the card; --config.KEY=VALUE changes one of its values, e.g.
--config.optimizer.learning_rate=0.01, --config.seeds=5. It holds for all runs, so it is refused
where a run sets that key itself: --config.runs.NAME.KEY=VALUE changes one run alone.
A value data:NAME is the folder of that data set, fetched on first need.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SetupError(f"{message}; `{self.prog} --help` lists verbs and options")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m launch",
        description="Train, evaluate and explain what an experiment card describes.",
        epilog=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB")
    parser.add_argument(
        "folder", nargs="?", metavar="what", help="list: folder of the cards; data: name of the set"
    )
    parser.add_argument("--config", metavar="FILE[:ARG]", help="the experiment card")
    parser.add_argument("--workdir", help="where everything is written and found again")
    parser.add_argument(
        "--force",
        action="store_true",
        help="train: resume although the config has changed; a job: do its cases again",
    )
    parser.add_argument(
        "--count", type=int, help="explain: how many items (default 6); bench: steps (default 30)"
    )
    parser.add_argument(
        "--profile",
        type=int,
        metavar="STEPS",
        help="train, bench: record so many steps as an xplane trace",
    )
    parser.add_argument(
        "--devices", type=int, help="check: for so many devices, pretended on this CPU"
    )
    parser.add_argument("--licence", help="export: of the weights, e.g. CC-BY-4.0")
    parser.add_argument("--on", metavar="DEVICE", help="check: predict the time of this device")
    parser.add_argument(
        "--split",
        help="explain: of which split (default: the first test split); benchmark: of the metadata",
    )
    hosts.add_arguments(parser)
    benchmark.add_arguments(parser)
    models.add_arguments(parser)
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
            following = next(waiting, None)
            if following is None:
                raise SetupError(f"{argument} has no value: write {argument}=VALUE")
            text = following
        found.append((key, text))
    return rest, found


def _leaves(
    options: argparse.Namespace, overrides: list[tuple[str, str]], *, writes: bool = True
) -> list[card.Leaf]:
    """The card's trainings; without `writes` a --workdir may be given, or not."""
    for name in ("config", *(["workdir"] if writes else [])):
        if not getattr(options, name):
            raise SetupError(f"{options.verb} needs --{name}")
    values = card.resolve(keywords.listed(card.read(options.config), overrides), overrides)
    data.check_names(values)
    leaves = card.leaves(values, Path(options.workdir or ""))
    if options.workdir:
        probe(Path(options.workdir))
    return leaves


def _check(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    leaves = _leaves(options, overrides, writes=False)
    _needs_task(options, leaves)
    from launch import check

    where = Path(options.workdir) if options.workdir else None
    return check.check(leaves, where, devices=options.devices or 0, on=options.on)


def _bench(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    leaves = _leaves(options, overrides, writes=options.profile is not None)
    _needs_task(options, leaves)
    from launch import bench

    where, steps = Path(options.workdir) if options.workdir else None, options.count or bench.STEPS
    profile = options.profile or 0
    return bench.bench(leaves, options.config, where, steps=steps, profile=profile)


def _train(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    leaves, workdir = _leaves(options, overrides), Path(options.workdir)
    _needs_task(options, leaves)
    for leaf in leaves:
        refuse_changes(leaf, resume=True, force=options.force)
    if not options.force and finished(workdir, leaves):
        print(f"finished: every run in {workdir} is at its last step; nothing to do")
        print((workdir / "table.md").read_text(encoding="utf-8"), end="")
        return 0
    from launch import verbs

    return verbs.train(leaves, workdir, options.profile or 0, force=options.force)


def _evaluate(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    leaves = _leaves(options, overrides)
    if "evaluate" in leaves[0].experiment.jobs:
        return _job(options, leaves)
    _checkpoints(options, leaves)
    from launch import verbs

    return verbs.evaluate(leaves, Path(options.workdir))


def _explain(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    leaves = _leaves(options, overrides)
    if "explain" in leaves[0].experiment.jobs:
        return _job(options, leaves)
    _checkpoints(options, leaves)
    from launch import verbs

    return verbs.explain(
        leaves, Path(options.workdir), count=options.count or 6, split=options.split
    )


def _export(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    leaves = _leaves(options, overrides)
    _checkpoints(options, leaves)
    from launch import export

    name = Path(options.config.partition(".py")[0])
    return export.export(leaves, name, options.licence)


def _benchmark(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    if options.config is None:
        if options.workdir or overrides:
            what = f"--config.{overrides[0][0]}" if overrides else "--workdir"
            raise SetupError(f"benchmark takes no {what} without --config")
        return benchmark.benchmark(options, overrides)
    for name in ("results", "metadata", "against", "out", "check", "data", "split"):
        if getattr(options, name):
            raise SetupError(f"benchmark takes either --config or --{name}")
    leaves = _leaves(options, overrides)
    _needs_task(options, leaves)
    from launch import compare

    return compare.compare(leaves, Path(options.workdir))


def _needs_task(options: argparse.Namespace, leaves: list[card.Leaf]) -> None:
    experiment = leaves[0].experiment
    if not experiment.task:
        raise SetupError(
            f"{options.config} has no config.task, so there is nothing to {options.verb}; it has "
            f"jobs for {', '.join(experiment.jobs)}"
        )


def _checkpoints(options: argparse.Namespace, leaves: list[card.Leaf]) -> None:
    """For a verb that has no job in the card and so is about trained checkpoints."""
    _needs_task(options, leaves)
    if options.force:
        raise SetupError(
            f"{options.verb} takes --force only where the card has config.jobs.{options.verb}"
        )
    for leaf in leaves:
        refuse_changes(leaf)


def _job(options: argparse.Namespace, leaves: list[card.Leaf]) -> int:
    for name in ("count", "split"):
        if getattr(options, name) is not None:
            raise SetupError(
                f"--{name} is for trained checkpoints; {options.config} has a job for "
                f"{options.verb}, whose keywords are in config.jobs.{options.verb}"
            )
    from launch import jobs

    return jobs.run(leaves, Path(options.workdir), options.verb, force=options.force)


def _only_job(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    leaves = _leaves(options, overrides)
    if options.verb not in leaves[0].experiment.jobs:
        folders = ["configs"] if Path("configs").is_dir() else card.installed()
        others = [str(path) for path in card.files(folders) if card.has_job(path, options.verb)]
        raise SetupError(
            f"{options.config} has no config.jobs.{options.verb} (a mapping with the name "
            f"'module:attribute' of a job and its keywords); cards that have it: "
            f"{', '.join(others) or 'none'}"
        )
    return _job(options, leaves)


def _data(options: argparse.Namespace, _overrides: list[tuple[str, str]]) -> int:
    if options.folder is None:
        data.show()
        return 0
    folder = Path(options.workdir) if options.workdir else None
    print(data.provide(options.folder, folder))
    return 0


def _convert(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    leaves = _leaves(options, overrides)
    _needs_task(options, leaves)
    return models.convert(leaves, options)


def _list(options: argparse.Namespace, _overrides: list[tuple[str, str]]) -> int:
    if options.models:
        if options.folder:
            raise SetupError(f"list --models takes no argument {options.folder!r}")
        models.show()
        return 0
    folders = [Path(options.folder or "configs")]
    if not folders[0].is_dir() and options.folder is None:
        folders = card.installed()
    if not folders or not folders[0].is_dir():
        looked = ", ".join(str(Path.cwd() / f) for f in folders or [Path("configs")])
        raise SetupError(f"no folder {options.folder or 'configs'!r} to list (looked for {looked})")
    inside = {Path(folder): Path("configs") for folder in card.installed()}
    for path in card.files(folders):
        told = card.summary(path)
        if told is not None:
            # An installed card by the name under which it is found, not by where it lies.
            home = inside.get(folders[0])
            print(f"{home / path.relative_to(folders[0]) if home else path}: {told}")
    return 0


def _refuse_what_has_no_effect(options: argparse.Namespace, overrides: list) -> None:
    """Every option belongs to some verbs only; elsewhere it would be ignored silently."""
    for name, verbs in BELONGS.items():
        if options.verb not in verbs and getattr(options, name) not in (None, False):
            option = f"--{name.replace('_', '-')}"
            what = f"argument {options.folder!r}" if name == "folder" else option
            raise SetupError(f"{options.verb} takes no {what}; it is for {', '.join(verbs)}")
    if overrides and options.verb in ("list", "data"):
        raise SetupError(f"{options.verb} takes no --config.{overrides[0][0]}")
    for name in ("count", "profile", "devices"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise SetupError(f"--{name} {value} must be at least 1")


CARDS = ("train", "evaluate", "explain", "verify", "prepare", "predict", "report")
NEEDING_CARDS = (*CARDS, "convert", "check", "bench", "export")
BELONGS = {
    "folder": ("list", "data"),
    "config": (*NEEDING_CARDS, "benchmark"),
    "workdir": (*NEEDING_CARDS, "data", "benchmark"),
    "force": CARDS,
    **dict.fromkeys(hosts.OPTIONS, (*CARDS, "check", "bench")),
    "count": ("explain", "bench"),
    "profile": ("train", "bench"),
    **dict.fromkeys(("devices", "on"), ("check",)),
    "licence": ("export",),
    "split": ("explain", "benchmark"),
    "models": ("list",),
    **dict.fromkeys(("weights", "prefix", "vocabulary"), ("convert",)),
    **dict.fromkeys(("results", "metadata", "against", "out", "check", "data"), ("benchmark",)),
}
VERBS = {
    "check": _check,
    "bench": _bench,
    "train": _train,
    "evaluate": _evaluate,
    "explain": _explain,
    "export": _export,
    "verify": _only_job,
    "prepare": _only_job,
    "predict": _only_job,
    "report": _only_job,
    "benchmark": _benchmark,
    "data": _data,
    "list": _list,
    "convert": _convert,
}


def main(argv: Sequence[str]) -> int:
    """Run one verb; 0 done, 1 something failed while running, 2 something to put right first."""
    with sigterm_unwinds():
        try:
            return _main(argv)
        except Terminated:
            ending.terminated(argv[0])
            raise


def _main(argv: Sequence[str]) -> int:
    try:
        rest, overrides = _overrides(argv)
        options = _parser().parse_args(rest)
        _refuse_what_has_no_effect(options, overrides)
        if options.rehearse:
            return hosts.rehearsed(argv, options)
        hosts.announce(options)
        code = VERBS[options.verb](options, overrides)
        ending.leave()
        return code
    except SetupError as error:
        if "--traceback" in argv:
            traceback.print_exc()
        return failed(2, " ".join(str(error).split()))
    except Exception as error:
        if no_space(error):
            where = f" in {options.workdir}" if options.workdir else ""
            return failed(1, f"no space left on the disk{where}: make room, then {GOES_ON}")
        if not ending.of_several():
            raise
        from launch import cluster

        if cluster.lost(error) and "--traceback" not in argv:
            said = " ".join(str(error).split())[:300]
            return failed(1, f"another host was lost ({said}); {GOES_ON}")
        traceback.print_exc()
        return failed(1, f"this host failed; {GOES_ON}")
    except KeyboardInterrupt:
        print(f"interrupted; {GOES_ON}", file=sys.stderr)
        ending.leave(130)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
