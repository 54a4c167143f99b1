"""What a card will cost, told before it starts: data, network, step, memory, messages, time.

The step is compiled for the devices and never run; the first batch is read and looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch import cluster, costs, peaks
from launch import mesh as meshes
from launch.build import keep_compiled_programs, make_task
from launch.card import Leaf
from launch.experiment import REFUSALS, Experiment, SetupError, Task, told
from launch.record import check_extras
from launch.stream import Stream
from launch.train import abstract_state, trace_step
from launch.workdir import write_json

# Nothing is run: its machine code need not be good, and making it so takes most of the time. Other
# platforms' compilers need not know these options.
_UNRUN = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def check(
    leaves: Sequence[Leaf], workdir: Path | None, *, devices: int = 0, on: str | None = None
) -> int:
    """Print what every run costs and what is wrong with it; 0, or 1 if anything is.

    Args:
        leaves: of each run the first is checked; its seeds cost the same.
        workdir: where check.json is written, if anywhere.
        devices: so many are pretended, on the CPU; 0 for those there are.
        on: a device of `peaks.SHEETS` for which the time is predicted; None for the one here.

    Raises:
        SetupError: `on` is not in the table.
    """
    if on is not None and peaks.sheet(on) is None:
        raise SetupError(f"--on {on!r}: legal are {', '.join(peaks.SHEETS)}")
    pretended = _pretend(leaves[0].experiment, devices)
    cluster.join()
    keep_compiled_programs()
    reports, seen = [], set()
    for leaf in leaves:
        if leaf.run in seen:
            continue
        seen.add(leaf.run)
        shown = _Shown()
        reports.append(examine(leaf, on=on, here=not pretended, show=shown.so_far))
        shown.all(reports[-1])
    if workdir is not None and jax.process_index() == 0:
        write_json(workdir / "check.json", reports)
    return int(any(report["findings"] for report in reports))


def _pretend(experiment: Experiment, devices: int) -> bool:
    """Let this process have as many CPU devices as are asked for, or as the card's mesh needs.

    Whether it has others now than it had otherwise.
    """
    sizes = [size for size in vars(experiment.mesh).values() if isinstance(size, int)]
    wanted = devices or math.prod(max(size, 1) for size in sizes)
    if wanted == 1 and not devices:
        return False
    try:
        if devices:
            jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError:  # devices are in use already: the mesh says whether they are enough
        return False
    return jax.default_backend() == "cpu"


# ------------------------------------------------------------------------- one run


def examine(
    leaf: Leaf,
    *,
    on: str | None = None,
    here: bool = True,
    show: Callable[[dict[str, Any]], None] = lambda report: None,
) -> dict[str, Any]:
    """Everything about one training as plain JSON values, "findings" among them.

    What cannot be known because of a finding is left out. Devices that are not `here` are not
    asked whether the step fits into their memory. `show` gets what is known before the step is
    compiled, which is most of the time.
    """
    report: dict[str, Any] = {"run": leaf.run, "findings": []}
    try:
        _examine(leaf, on, here, report, show)
    except SetupError as error:
        report["findings"].append(" ".join(str(error).split()))
    return report


def _examine(
    leaf: Leaf,
    on: str | None,
    here: bool,
    report: dict[str, Any],
    show: Callable[[dict[str, Any]], None],
) -> None:
    experiment = leaf.experiment
    check_extras(experiment.tensorboard)
    mesh = meshes.make(experiment.mesh)
    task = make_task(experiment)
    stream = Stream(task.dataset("train"), leaf.seed, experiment.batch_size, mesh)
    stream.abstract()  # refuses items that are no numbers
    report["data"] = _data(task, stream, report["findings"])
    placed = abstract_state(task, mesh, experiment.mesh.rules)
    report["parameters"] = costs.parameters(placed)
    traced = trace_step(task, placed, stream, mesh)
    work = costs.operations(traced.jaxpr)
    report |= {"devices": mesh.size, "mesh": dict(mesh.shape), "operations": dict(work)}
    show(report)
    on_cpu = mesh.local_devices[0].platform == "cpu"
    compiled = traced.lower().compile(compiler_options=_UNRUN if on_cpu else None)
    peak = peaks.sheet(on) if on else peaks.peak(mesh.local_devices[0], work)
    assert peak is not None  # `on` was looked up before the run was
    report |= {
        "memory": costs.memory(compiled),
        "collectives": costs.collectives(compiled.as_text()),
        "predicted": _predicted(work, compiled, peak, mesh.size),
    }
    report["predicted"]["on"] = on or mesh.local_devices[0].device_kind
    report["predicted"]["training_seconds"] = report["predicted"]["step_seconds"] * experiment.steps
    needs = report["memory"]["peak"] * (jax.local_device_count() if peak.shared else 1)
    if (here or on) and peak.memory is not None and needs > peak.memory:
        report["findings"].append(
            f"a step needs {_size(needs)} of memory, {report['predicted']['on']} has "
            f"{_size(peak.memory)}: a smaller config.batch_size, more devices, or fsdp"
        )


def _data(task: Task, stream: Stream, findings: list[str]) -> dict[str, Any]:
    """Items of each split and the arrays of the first batch; what is wrong goes to `findings`."""
    splits = [s for s in dict.fromkeys(("train", task.val_split, *task.test_splits)) if s]
    found: dict[str, Any] = {"items": {}, "batch": {}}
    for split in splits:
        try:
            data = task.dataset(split)
            found["items"][split] = len(data)
            arrays = stream[0] if split == "train" else data[0]
            host = {name: _here(value) for name, value in arrays.items()}
        except REFUSALS as error:
            findings.append(f"{split}: {told(error)}")
            continue
        where = "the first batch" if split == "train" else "the first item"
        for name, array in host.items():
            bad = int((~np.isfinite(array)).sum()) if _inexact(array) else 0
            if bad:
                findings.append(
                    f"{split}: {bad} of {array.size} values in {name} of {where} are not finite"
                )
            if split == "train":
                found["batch"][name] = _array(array) | {"shape": list(arrays[name].shape)}
    return found


def _here(value: Any) -> np.ndarray:
    """The rows of a global array that are on this host, or a plain array."""
    if not isinstance(value, jax.Array):
        return np.asarray(value)
    return np.concatenate([np.asarray(shard.data) for shard in value.addressable_shards])


def _inexact(array: np.ndarray) -> bool:
    return bool(jax.numpy.issubdtype(array.dtype, np.inexact))


def _array(array: np.ndarray) -> dict[str, Any]:
    told: dict[str, Any] = {"shape": list(array.shape), "type": array.dtype.name}
    known = array[np.isfinite(array)] if _inexact(array) else array
    if known.size and known.dtype.kind in "biuf":
        told |= {"min": float(known.min()), "max": float(known.max())}
    return told


def _predicted(
    work: dict[str, int], compiled: jax.stages.Compiled, peak: peaks.Peak, devices: int
) -> dict[str, Any]:
    """Seconds of a step: its operations at the peak, then its memory traffic at the peak.

    Messages between devices are left out. The traffic is that of the program compiled here.
    """
    computing = costs.seconds_of_operations(work, peak, devices)
    moving = costs.seconds_of_traffic(costs.traffic(compiled), peak, devices)
    return {
        "step_seconds": computing + moving,
        "computing_seconds": computing,
        "moving_seconds": moving,
        "peak": {"operations": dict(peak.operations), "traffic": peak.traffic},
        "peak_source": peak.source,
    }


# ------------------------------------------------------------------------- in words


class _Shown:
    """Prints a report's lines as they become known, each once, on the first host."""

    def __init__(self) -> None:
        self._count = 0

    def so_far(self, report: dict[str, Any]) -> None:
        """What is known, findings aside."""
        self._print(_known(report))

    def all(self, report: dict[str, Any]) -> None:
        """The rest."""
        self._print(text(report).splitlines())

    def _print(self, lines: list[str]) -> None:
        if jax.process_index() == 0 and len(lines) > self._count:
            print("\n".join(lines[self._count :]), flush=True)
        self._count = len(lines)


def text(report: dict[str, Any]) -> str:
    """The report of one run as a person reads it."""
    findings = [f"  finding      {finding}" for finding in report["findings"]]
    return "\n".join([*_known(report), *(findings or ["  no findings"])])


def _known(report: dict[str, Any]) -> list[str]:
    lines = [f"{report['run'] or 'the training'}:"]
    if "data" in report:
        items = ", ".join(f"{split} {n:,}" for split, n in report["data"]["items"].items())
        lines.append(f"  items        {items}")
        for name, array in report["data"]["batch"].items():
            lines.append(f"  batch        {name} {_array_text(array)}")
    if "parameters" in report:
        lines.append(f"  parameters   {report['parameters']:,}")
    if "operations" in report:
        work = " + ".join(f"{_scaled(n, 'FLOP')} {k}" for k, n in report["operations"].items())
        lines.append(f"  devices      {report['devices']} {report['mesh']}")
        lines.append(f"  step         {work or 'no products'}")
    if "memory" in report:
        lines += _compiled_text(report)
    return lines


def _compiled_text(report: dict[str, Any]) -> list[str]:
    memory, predicted = report["memory"], report["predicted"]
    parts = ", ".join(f"{name} {_size(n)}" for name, n in memory.items() if name != "peak")
    sent = ", ".join(
        f"{kind} {one['count']} ({_size(one['bytes'])})"
        for kind, one in report["collectives"].items()
    )
    peak = predicted["peak"]
    rates = ", ".join(f"{_scaled(n, 'FLOP/s')} {k}" for k, n in peak["operations"].items())
    rates = ", ".join([*([rates] if rates else []), _scaled(peak["traffic"], "B/s")])
    return [
        f"  memory       {_size(memory['peak'])} on each device ({parts})",
        f"  collectives  {sent or 'none'}",
        f"  predicted    {_time(predicted['step_seconds'])} a step, "
        f"{_time(predicted['training_seconds'])} in all, without evaluation; "
        f"{_time(predicted['computing_seconds'])} at least",
        f"               on {predicted['on']} ({predicted['peak_source']}: {rates})",
    ]


def _array_text(array: dict[str, Any]) -> str:
    shown = f"{tuple(array['shape'])} {array['type']}"
    return shown + (f" in [{array['min']:.4g}, {array['max']:.4g}]" if "min" in array else "")


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:,.4g} {unit}"


def _scaled(value: float, unit: str) -> str:
    prefixes = ("", "k", "M", "G", "T", "P", "E")
    thousands = min(len(prefixes) - 1, max(0, int(math.log10(max(value, 1)) // 3)))
    return f"{value / 1000**thousands:.3g} {prefixes[thousands]}{unit}"


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
