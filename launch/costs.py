"""What one step costs, read off its trace and its compiled program; nothing is run."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from launch.peaks import Peak

COLLECTIVES = (
    *("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"),
    *("ragged-all-to-all", "collective-broadcast"),
)
# " = f32[8,4]{1,0} all-reduce(" or " = (f32[8], f32[8]) all-reduce-start("; "-done" is its end.
_COLLECTIVE = re.compile(rf" = (.+?) ({'|'.join(COLLECTIVES)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")


# ------------------------------------------------------------------------- operations


def operations(jaxpr: Any) -> Counter[str]:
    """Floating-point operations by type of the factors, e.g. {"float32": 2e9}, of all devices.

    Two for each multiply-add of a convolution or matrix product; products with padding, or with
    the zeros that a dilation puts between rows, are not counted (nor is anything else: pointwise
    functions, norms, pools and sorts). A scan counts as often as it runs, a while loop once, of
    the branches of a condition the dearest.

    Args:
        jaxpr: of a trace, e.g. ``jax.jit(f).trace(x).jaxpr``.
    """
    total: Counter[str] = Counter()
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name = equation.primitive.name
        if name in _COUNTED:
            kind = np.dtype(equation.invars[0].aval.dtype).name
            total[kind] += 2 * _COUNTED[name](equation)
            continue
        inside = [operations(one) for one in inner(equation.params)]
        if name == "cond" and inside:
            inside = [max(inside, key=Counter.total)]
        times = equation.params["length"] if name == "scan" else 1
        for one in inside:
            total.update({kind: times * count for kind, count in one.items()})
    return total


def inner(params: Mapping[str, Any]) -> Iterator[Any]:
    """The programs among an equation's parameters."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if hasattr(getattr(one, "jaxpr", one), "eqns"):
                yield one


def _dot(equation: Any) -> int:
    """Multiply-adds of a dot_general."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, made = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return math.prod(made) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    """Multiply-adds of a conv_general_dilated that meet a number of the image."""
    how = equation.params
    image, kernel, made = how["dimension_numbers"]
    left, right = (v.aval.shape for v in equation.invars)
    out = equation.outvars[0].aval.shape
    total = out[made[0]] * out[made[1]] * right[kernel[1]]
    for i, (low, _) in enumerate(how["padding"]):
        last = (left[image[2 + i]] - 1) * how["lhs_dilation"][i]
        at = np.arange(out[made[2 + i]])[:, None] * how["window_strides"][i] - low
        at = at + np.arange(right[kernel[2 + i]])[None] * how["rhs_dilation"][i]
        real = (at >= 0) & (at <= last) & (at % how["lhs_dilation"][i] == 0)
        total *= int(real.sum())
    return total


_COUNTED = {"dot_general": _dot, "conv_general_dilated": _convolution}


def seconds_of_operations(work: Mapping[str, float], peak: Peak, devices: int) -> float:
    """How long the operations of a step (`operations`) take at the least, spread over all devices.

    A type of which the peak says nothing is reckoned as float32, or as the slowest there is.
    """
    others = peak.operations.get("float32", min(peak.operations.values(), default=math.inf))
    each = (count / peak.operations.get(kind, others) for kind, count in work.items())
    return sum(each) / (1 if peak.shared else devices)


def seconds_of_traffic(bytes_each: float, peak: Peak, devices: int) -> float:
    """How long the bytes that each device reads and writes take at the least."""
    return bytes_each * (devices if peak.shared else 1) / peak.traffic


# ------------------------------------------------------------------------- the program


def parameters(state: Mapping[str, Any]) -> int:
    """Numbers in the state's "params", or in all of it if it has none; abstract or not."""
    leaves = jax.tree.leaves(state.get("params", state))
    return sum(math.prod(leaf.shape) for leaf in leaves)


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes on each device: "state" and batch that go in, "new" arrays that come out of the step
    (what it writes over its input aside), "temporary" ones, and the "peak" of all together.
    """
    found: Any = compiled.memory_analysis()
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    parts = {
        "arguments": found.argument_size_in_bytes,
        "new": new,
        "temporary": found.temp_size_in_bytes,
    }
    return parts | {"peak": sum(parts.values())}


def traffic(compiled: jax.stages.Compiled) -> float:
    """Bytes that each device's operations read and write, caches aside; NaN if XLA does not say."""
    told = compiled.cost_analysis() or {}
    return float(told.get("bytes accessed", math.nan))


def collectives(text: str) -> dict[str, dict[str, int]]:
    """Kind -> {"count", "bytes" of the results on each device} in the text of a compiled program.

    Those in a loop's body count once.
    """
    found: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        match = _COLLECTIVE.search(line)
        if match is None:
            continue
        shapes, kind, starts = match.groups()
        sizes = [_bytes(*array) for array in _ARRAY.findall(shapes)]
        # The start of an asynchronous one returns (operands …, results …).
        if starts and shapes.startswith("(") and kind != "all-reduce":
            sizes = sizes[1:2] if len(sizes) % 2 else sizes[len(sizes) // 2 :]
        one = found.setdefault(kind, {"count": 0, "bytes": 0})
        one["count"] += 1
        one["bytes"] += sum(sizes)
    return found


def _bytes(kind: str, bits: str, shape: str) -> int:
    numbers = math.prod(int(n) for n in shape.split(",") if n)
    return numbers * max(1, int(bits or 8) // 8)
