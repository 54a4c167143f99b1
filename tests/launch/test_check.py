"""`check` and what it reads off a trace and a compiled program."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from launch import check, costs, mesh, peaks
from launch.__main__ import main
from launch.experiment import Mesh, build
from tests.launch.conftest import CARD

WIDTH, FEATURES, CLASSES = 64, 8, 3
PARAMETERS = FEATURES * WIDTH + WIDTH * WIDTH + WIDTH * CLASSES + CLASSES

# ------------------------------------------------------------------------- operations


def test_products_are_counted_as_xla_counts_them() -> None:
    for stride, dilated, spread, groups in itertools.product((1, 2), (1, 2), (1, 3), (1, 2)):

        def run(x, w, how=(stride, dilated, spread, groups)):
            return jax.lax.conv_general_dilated(
                x,
                w,
                (how[0], 1),
                ((2, 1), (0, 3)),
                lhs_dilation=(how[1], 1),
                rhs_dilation=(1, how[2]),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=how[3],
            )

        traced = jax.jit(run).trace(jnp.zeros((2, 7, 8, 4)), jnp.zeros((3, 2, 4 // groups, 6)))
        # Alone in its program, the convolution is all that XLA's own analysis finds.
        told = traced.lower().cost_analysis()["flops"]
        assert costs.operations(traced.jaxpr) == {"float32": told}


def test_loops_branches_and_types_are_told_apart() -> None:
    def run(a, b):
        def body(carry, _):
            return carry @ a, None

        many, _ = jax.lax.scan(body, a, length=5)
        one = jax.lax.cond(a[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, many)
        return one, jax.checkpoint(lambda x: x @ x)(b)

    traced = jax.jit(run).trace(jnp.zeros((4, 4)), jnp.zeros((8, 8), jnp.bfloat16))
    assert costs.operations(traced.jaxpr) == {"float32": 7 * 2 * 4**3, "bfloat16": 2 * 8**3}


def test_seconds_follow_from_peak_and_devices() -> None:
    peak = peaks.Peak({"bfloat16": 4e12, "float32": 1e12}, 1e12, None, "datasheet")
    work = {"bfloat16": 8e12, "float32": 1e12, "float64": 1e12}
    assert costs.seconds_of_operations(work, peak, 4) == pytest.approx((2 + 1 + 1) / 4)
    assert costs.seconds_of_traffic(3e12, peak, 4) == pytest.approx(3)
    shared = peaks.Peak({"float32": 1e12}, 1e12, None, "measured", shared=True)
    assert costs.seconds_of_operations(work, shared, 4) == pytest.approx(10)
    assert costs.seconds_of_traffic(3e12, shared, 4) == pytest.approx(12)


def test_peaks_are_looked_up_or_measured() -> None:
    for kind, bfloat16 in (("NVIDIA H200", 989e12), ("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12)):
        assert peaks.sheet(kind).operations["bfloat16"] == bfloat16
    for kind in ("NVIDIA L400", "cpu", "NVIDIA A1000"):
        assert peaks.sheet(kind) is None
    found = peaks.peak(jax.devices()[0], ("float32",))
    assert found.source == "measured" and found.shared and found.memory > 2**28
    assert 1e8 < found.operations["float32"] < 1e15 and 1e7 < found.traffic < 1e13


# ------------------------------------------------------------------------- the program


def sharded(out: PartitionSpec, f: Callable) -> jax.stages.Compiled:
    """`f` of float32 (8, 100), a row on each of the devices, compiled; its result lies as `out`."""
    eight = mesh.make(Mesh())
    rows, made = (NamedSharding(eight, spec) for spec in (PartitionSpec("data"), out))
    x = jax.ShapeDtypeStruct((8, 100), jnp.float32, sharding=rows)
    return jax.jit(f, out_shardings=made).lower(x).compile()


def test_messages_of_a_compiled_program() -> None:
    total = sharded(PartitionSpec(), lambda x: x.sum(0))
    assert costs.collectives(total.as_text()) == {"all-reduce": {"count": 1, "bytes": 400}}
    whole = sharded(PartitionSpec(), lambda x: x)
    assert costs.collectives(whole.as_text()) == {"all-gather": {"count": 1, "bytes": 3200}}
    apart = sharded(PartitionSpec("data"), jnp.negative)
    assert costs.collectives(apart.as_text()) == {}


def test_messages_as_gpus_start_and_end_them() -> None:
    text = """
  %s = (f32[2,4]{1,0}, f32[16,4]{1,0}) all-gather-start(%p), dimensions={0}
  %d = f32[16,4]{1,0} all-gather-done(%s)
  %r = (bf16[8]{0}, f32[]) all-reduce-start(%a, %b), to_apply=%add
  %e = (bf16[8]{0}, f32[]) all-reduce-done(%r)
  %t = (s8[4]{0}, /*index=1*/s8[4]{0}) all-to-all(%u, %v)
  %f = f32[16,4]{1,0} fusion(%d, %all-reduce.7), calls=%g
"""
    assert costs.collectives(text) == {
        "all-gather": {"count": 1, "bytes": 256},
        "all-reduce": {"count": 1, "bytes": 20},
        "all-to-all": {"count": 1, "bytes": 8},
    }


def test_memory_is_that_of_one_device() -> None:
    found = costs.memory(sharded(PartitionSpec("data"), lambda x: jnp.sin(x) + 1))
    assert (found["arguments"], found["new"]) == (400, 400)
    assert found["peak"] == 800 + found["temporary"]


# ------------------------------------------------------------------------- the verb


def checked(workdir: Path, *flags: str, card: str = CARD) -> tuple[int, list[dict]]:
    """(exit code, check.json) of `check` in this process."""
    code = main(["check", "--config", card, "--workdir", str(workdir), *flags])
    return code, json.loads((workdir / "check.json").read_text())


def test_a_sound_card_has_no_findings(tmp_path: Path, capsys) -> None:
    code, (report,) = checked(tmp_path, "--on", "H200", "--config.steps=1000")
    assert code == 0 and report["findings"] == []
    assert report["data"]["items"] == {"train": 40, "val": 10, "test": 13, "other": 5}
    assert report["data"]["batch"]["x"]["shape"] == [8, FEATURES]
    assert report["data"]["batch"]["y"]["max"] <= CLASSES - 1
    assert report["parameters"] == PARAMETERS
    # Forward and towards the weights, and back towards the input but for the first layer.
    first, others = FEATURES * WIDTH, WIDTH * WIDTH + WIDTH * CLASSES
    assert report["operations"] == {"float32": 2 * 8 * (2 * first + 3 * others)}
    assert report["devices"] == 8 and "all-reduce" in report["collectives"]
    assert report["collectives"]["all-reduce"]["bytes"] >= 4 * PARAMETERS
    predicted = report["predicted"]
    assert (predicted["on"], predicted["peak_source"]) == ("H200", "datasheet")
    assert predicted["computing_seconds"] == pytest.approx(
        report["operations"]["float32"] / (8 * 494e12)
    )
    assert predicted["training_seconds"] == pytest.approx(1000 * predicted["step_seconds"])
    shown = capsys.readouterr().out
    assert f"{PARAMETERS:,}" in shown and "no findings" in shown and "on H200" in shown


def test_every_run_is_checked_once_and_nothing_else_is_written(tmp_path: Path, capsys) -> None:
    code, reports = checked(tmp_path, card=CARD + ":runs")  # two runs of two seeds
    assert code == 0 and [report["run"] for report in reports] == ["plain", "noisy"]
    assert [path.name for path in tmp_path.iterdir()] == ["check.json"]


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("task.nan_at=11", "train: 8 of 320 values in x of the first batch are not finite"),
        ("task.fail=data", "Toy: no folder 'nowhere'"),
        ("task.fail=constructor", "Toy: fail = 'constructor': legal are"),
        ("batch_size=9", "must be a multiple of"),
        ("mesh.fsdp=3", "8 devices"),
        ("task.width=-1", "Toy.init"),
        ("task.fail=step", "fail = 'step'"),
        ("task.shift=word", "config.task.shift = 'word' must be float or None"),
    ],
)
def test_findings(key: str, part: str, tmp_path: Path, capsys) -> None:
    size = () if key.startswith("batch") else ("--config.batch_size=40",)  # every item, once
    code, (report,) = checked(tmp_path, "--on", "H200", *size, f"--config.{key}")
    (finding,) = report["findings"]
    assert code == 1 and part in finding and part in capsys.readouterr().out


def test_what_does_not_fit_is_a_finding(tmp_path: Path, capsys, monkeypatch) -> None:
    small = peaks.Peak({"float32": 1e12}, 1e12, 1000, "datasheet")
    monkeypatch.setattr(peaks, "sheet", lambda kind: small)
    code, (report,) = checked(tmp_path, "--on", "Tiny")
    (finding,) = report["findings"]
    assert code == 1 and "Tiny has 1,000 B: a smaller config.batch_size" in finding


def test_a_mesh_larger_than_the_machine_is_compiled_for(spawn: Callable) -> None:
    where = ("check", "--config", CARD, "--config.batch_size=32", "--on=TPU v4")
    done = spawn(*where, "--devices=32", "--config.mesh.fsdp=16")
    assert done.returncode == 0, done.stderr
    assert "devices      32 " in done.stdout and "'fsdp': 16" in done.stdout
    assert "all-gather" in done.stdout


def test_a_mesh_that_the_card_names_is_pretended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(jax.config, "update", lambda *one: asked.append(one))
    for devices, shape in ((0, {"data": 8, "fsdp": 4}), (0, {"fsdp": 2}), (0, {}), (5, {})):
        values = {"task": {"name": "a:b"}, "steps": 1, "batch_size": 1, "mesh": shape}
        assert check._pretend(build(values), devices) == bool(devices or shape)
    assert asked == [
        ("jax_num_cpu_devices", 32),
        ("jax_num_cpu_devices", 2),
        ("jax_platforms", "cpu"),
        ("jax_num_cpu_devices", 5),
    ]


def test_mistakes_on_the_command_line(tmp_path: Path, capsys) -> None:
    for flags, part in (
        (("--on", "abacus"), "legal are B200"),
        (("--devices", "0"), "--devices 0 must be at least 1"),
        (("--profile", "2"), "check takes no --profile"),
    ):
        assert main(["check", "--config", CARD, *flags]) == 2
        assert part in capsys.readouterr().err
    assert main(["train", "--config", CARD, "--workdir", str(tmp_path), "--on", "H200"]) == 2
    assert "train takes no --on" in capsys.readouterr().err


def test_shapes_of_arrays_that_say_little() -> None:
    assert check._array(np.zeros((0, 3), np.float32)) == {"shape": [0, 3], "type": "float32"}
    assert "min" not in check._array(np.full(2, np.nan, np.float16))


def test_numbers_are_written_with_their_prefix() -> None:
    assert [check._scaled(n, "FLOP") for n in (0, 999, 1.7e9, 2.5e17)] == [
        *("0 FLOP", "999 FLOP", "1.7 GFLOP", "250 PFLOP"),
    ]
    assert [check._size(n) for n in (0, 1023, 1536, 2**31)] == [
        "0 B",
        "1,023 B",
        "1.5 KiB",
        "2 GiB",
    ]
    assert [check._time(s) for s in (2e-6, 0.25, 90, 600, 9000)] == [
        *("2 µs", "250 ms", "90 s", "10 min", "2.5 h"),
    ]
