"""How fast a device can be at best: makers' figures of accelerators, measured ones of the rest."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

# Rows of a matrix and numbers of an array, on a CPU and elsewhere: much work for each.
SIDE, COPIED = (1024, 8192), (2**24, 2**28)
INSIDE, ROUNDS = 4, 5


@dataclass(frozen=True)
class Peak:
    """What a device does at best.

    Attributes:
        operations: floating-point operations a second, by type of the factors.
        traffic: bytes a second to and from its memory.
        memory: bytes that it has; None if unknown.
        source: "datasheet" or "measured".
        shared: whether all devices of the process share these figures, as those of a CPU do.
    """

    operations: Mapping[str, float]
    traffic: float
    memory: int | None
    source: str
    shared: bool = False


# Makers' data sheets: 1e12 operations a second, dense (no structured sparsity), in bfloat16 and in
# what XLA multiplies float32 with by default (TF32 on GPUs, bfloat16 on TPUs); 1e9 bytes a second;
# 1e9 bytes. By what a jax.Device.device_kind contains, the first that fits.
SHEETS = {
    "B200": (2250, 1125, 8000, 180),
    "GH200": (989, 494, 4000, 96),
    "H200": (989, 494, 4800, 141),
    "H100 PCIe": (756, 378, 2000, 80),
    "H100 NVL": (835, 417, 3900, 94),
    "H100": (989, 494, 3350, 80),
    "A100-SXM4-80GB": (312, 156, 2039, 80),
    "A100 80GB": (312, 156, 1935, 80),
    "A100": (312, 156, 1555, 40),
    "L40S": (362, 183, 864, 48),
    "L4": (121, 60, 300, 24),
    "TPU v6": (918, 918, 1640, 32),
    "TPU v5p": (459, 459, 2765, 95),
    "TPU v5 lite": (197, 197, 819, 16),
    "TPU v5": (459, 459, 2765, 95),
    "TPU v4": (275, 275, 1228, 32),
}


def sheet(kind: str) -> Peak | None:
    """The data sheet's figures for a `device_kind`; None if it is not in the table."""
    for name, (half, single, traffic, memory) in SHEETS.items():
        if re.search(rf"\b{re.escape(name)}(?![0-9])", kind, re.IGNORECASE):
            by_type = {"bfloat16": half * 1e12, "float16": half * 1e12, "float32": single * 1e12}
            return Peak(by_type, traffic * 1e9, memory * 10**9, "datasheet")
    return None


def peak(device: jax.Device, kinds: Iterable[str] = ("float32",)) -> Peak:
    """The device's peak: its data sheet's, or measured in about a second.

    Args:
        device: one of this process.
        kinds: types of factors to measure where there is no data sheet.
    """
    known = sheet(device.device_kind)
    if known is not None:
        return known
    by_type = {kind: _products(device, kind) for kind in kinds}
    return Peak(by_type, _copies(device), memory(device), "measured", device.platform == "cpu")


def memory(device: jax.Device) -> int | None:
    """Bytes that programs may use on the device (of a CPU: the machine's); None if unknown."""
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (device.memory_stats() or {}).get("bytes_limit")


def _products(device: jax.Device, kind: str) -> float:
    """Operations a second of square matrix products."""
    side = SIDE[device.platform != "cpu"]
    a = jax.device_put(jnp.full((side, side), 1 / side, kind), device)
    return 2 * side**3 / _seconds(jnp.dot, a)


def _copies(device: jax.Device) -> float:
    """Bytes a second, read and written, of a pointwise function."""
    a = jax.device_put(jnp.ones(COPIED[device.platform != "cpu"], jnp.float32), device)
    return 2 * a.nbytes / _seconds(lambda x, _: -x, a)


def _seconds(run: Callable[[jax.Array, jax.Array], jax.Array], a: jax.Array) -> float:
    """Of one of the products a·(a·(a·…)), the fastest but one: the fastest may be a fluke.

    Many in one program: what starting it costs, and fresh memory, is not the device's speed.
    """

    def chain(x: jax.Array, a: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, INSIDE, lambda _, x: run(x, a), x)

    repeated = jax.jit(chain, donate_argnums=0)
    x, times = jax.block_until_ready(repeated(jnp.copy(a), a)), []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        x = jax.block_until_ready(repeated(x, a))
        times.append(time.perf_counter() - start)
    return sorted(times)[1] / INSIDE
