"""The same training on one device and on every shape of eight."""

import re
from pathlib import Path

import grain
import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from launch import card, mesh
from launch.build import make_task
from launch.experiment import Mesh, SetupError
from launch.record import rows
from launch.stream import Stream, feeder
from launch.train import abstract_state, train
from launch.workdir import claim
from tests.launch.conftest import CARD
from tests.launch.toy import Toy


def trained(folder: Path, steps: int, data: int, fsdp: int) -> dict[str, np.ndarray]:
    """Path -> array of the state after `steps` of the toy card on a mesh of data × fsdp."""
    keys = {"steps": steps, "eval_every": 0, "mesh.data": data, "mesh.fsdp": fsdp}
    values = card.resolve(card.read(CARD), [(k, str(v)) for k, v in keys.items()])
    (leaf,) = card.leaves(values, folder)
    task = make_task(leaf.experiment)
    claim(leaf, task)
    state = train(leaf, task, mesh.make(leaf.experiment.mesh))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(array) for path, array in leaves}


def assert_close(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for path, array in expected.items():
        assert np.abs(got[path] - array).max() <= 1e-5 * max(1e-3, np.abs(array).max()), path


def test_meshes_agree_with_one_device(tmp_path: Path) -> None:
    expected = trained(tmp_path / "one", 4, 1, 1)
    for data, fsdp in ((8, 1), (1, 8), (4, 2)):
        assert_close(trained(tmp_path / f"{data}x{fsdp}", 4, data, fsdp), expected)


def test_what_one_mesh_began_another_ends(tmp_path: Path) -> None:
    trained(tmp_path / "moved", 2, 8, 1)
    assert_close(trained(tmp_path / "moved", 4, 2, 4), trained(tmp_path / "one", 4, 1, 1))


def test_fsdp_splits_the_large_arrays_and_their_moments() -> None:
    placed = abstract_state(Toy(optimizer=optax.adam(1e-3)), mesh.make(Mesh(fsdp=8)))
    split = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(placed)
        if leaf.sharding.spec != PartitionSpec()
    }
    moments = {"opt_state/0/mu/middle", "opt_state/0/nu/middle"}
    assert split == {"params/middle", "ema/middle", *moments}


@pytest.mark.parametrize("shape", [Mesh(3, 3), Mesh(-1, 3), Mesh(-1, 16), Mesh(4, 1, 3)])
def test_a_mesh_that_does_not_fit_is_refused(shape: Mesh) -> None:
    with pytest.raises(SetupError, match="8 devices"):
        mesh.make(shape)


def test_batches_are_a_pure_function_of_the_step() -> None:
    data = Toy(optimizer=optax.sgd(0.1)).dataset("train")
    stream = Stream(data, 3, 8, mesh.make(Mesh()))
    all_of_them = [np.asarray(batch["index"]) for batch in stream.batches(0, 11)]
    assert len(all_of_them) == 11
    later = [np.asarray(batch["index"]) for batch in stream.batches(7, 11)]
    assert np.array_equal(all_of_them[7:], later)
    assert np.array_equal(all_of_them[9], np.asarray(stream[9]["index"]))
    first_epoch = np.concatenate(all_of_them[:5])
    assert sorted(first_epoch) == list(range(40)) and list(first_epoch) != sorted(first_epoch)
    abstract, real = stream.abstract(), stream[0]
    for name, like in abstract.items():
        assert (like.shape, like.dtype) == (real[name].shape, real[name].dtype)
        assert real[name].sharding == like.sharding


def test_a_batch_of_one_item_a_host() -> None:
    data = Toy(optimizer=optax.sgd(0.1)).dataset("train")
    stream = Stream(data, 3, 1, mesh.make(Mesh(data=1)))
    seen = [int(batch["index"][0]) for batch in stream.batches(0, 80)]
    assert sorted(seen[:40]) == sorted(seen[40:]) == list(range(40)) and seen[:40] != seen[40:]
    assert int(stream[2**31 - 1]["index"][0]) in range(40)


def test_feed_keeps_file_order_and_marks_what_it_repeats() -> None:
    feed = feeder(5, mesh.make(Mesh()))  # 5 becomes 8, a row a device
    batches = list(feed(Toy(optimizer=optax.sgd(0.1)).dataset("test")))
    assert [batch["x"].shape for batch in batches] == [(8, 8), (8, 8)]
    valid = np.concatenate([np.asarray(batch["valid"]) for batch in batches])
    index = np.concatenate([np.asarray(batch["index"]) for batch in batches])
    assert valid.tolist() == [True] * 13 + [False] * 3
    assert index[valid].tolist() == list(range(13))


# ------------------------------------------------------------------------- space and rules


def test_space_splits_depth_and_keeps_rows_together() -> None:
    split = mesh.make(Mesh(data=2, space=4))
    volumes = mesh.batch_sharding(split, (4, 8, 6, 6, 1))
    assert volumes.spec == PartitionSpec(("data", "fsdp"), "space")
    assert volumes.shard_shape((4, 8, 6, 6, 1)) == (2, 2, 6, 6, 1)
    for whole in ((4,), (4, 8), (4, 6, 8, 8, 1)):
        assert mesh.batch_sharding(split, whole).spec == PartitionSpec(("data", "fsdp"))
    with pytest.raises(SetupError, match="fsdp and space cannot both be above 1"):
        mesh.make(Mesh(data=2, fsdp=2, space=2))
    with pytest.raises(SetupError, match=r"config.mesh.space = 4 divides .* of none: x \(8,\)"):
        Stream(Toy(optimizer=optax.sgd(0.1)).dataset("train"), 0, 8, split).abstract()


def test_rows_of_a_host_are_those_its_devices_hold() -> None:
    data = grain.MapDataset.source(np.arange(64 * 32, dtype=np.float32).reshape(64, 8, 4))
    data = data.map(lambda x: {"x": x})
    expected = np.asarray(Stream(data, 5, 8, mesh.make(Mesh(data=1)))[3]["x"])
    assert len(np.unique(expected)) == 8 * 32
    for shape in (Mesh(8), Mesh(2, 4), Mesh(2, 1, 4), Mesh(1, 1, 8)):
        assert np.array_equal(Stream(data, 5, 8, mesh.make(shape))[3]["x"], expected)
    # Devices in another order than that of their numbers, as on some pods.
    mixed = jax.sharding.Mesh(np.array(jax.devices())[[3, 0, 7, 1, 2, 6, 5, 4]].reshape(4, 1, 2),
                              ("data", "fsdp", "space"))  # fmt: skip
    assert np.array_equal(Stream(data, 5, 8, mixed)[3]["x"], expected)


def test_rules_split_by_name_and_none_is_idle() -> None:
    task, split = Toy(optimizer=optax.adam(1e-3)), mesh.make(Mesh(data=2, fsdp=4))
    rules = (("first", (None, "fsdp")), ("params/middle", ()), ("(mu|nu)/middle", ("data",)))
    placed = abstract_state(task, split, rules)
    assert placed["params"]["first"].sharding.spec == PartitionSpec(None, "fsdp")
    assert placed["opt_state"][0].nu["first"].sharding.spec == PartitionSpec(None, "fsdp")
    assert placed["params"]["middle"].sharding.spec == PartitionSpec()
    assert placed["opt_state"][0].mu["middle"].sharding.spec == PartitionSpec("data")
    assert placed["ema"]["middle"].sharding.spec == PartitionSpec("fsdp")  # by its size
    for rule, part in (
        ((("kernels", ("fsdp",)),), "'kernels' is not used by any of the"),
        ((("first", ()), ("params/first", ("fsdp",))), "'params/first' is not used"),
        ((("bias", ("fsdp",)),), "fsdp=4 does not divide 3"),
        ((("bias", (None, "fsdp")),), "ema/last/bias has the shape (3,)"),
    ):
        with pytest.raises(SetupError, match=re.escape(part)):
            abstract_state(task, split, rule)
    with pytest.raises(SetupError, match="space = 4 needs it whole"):
        abstract_state(task, mesh.make(Mesh(data=2, space=4)), (("params/middle", ("data",)),))


@pytest.mark.parametrize(
    ("rules", "part"),
    [
        ("('first',)", "holds 'first'; legal are (pattern, (axis, …))"),
        ("(('fi[rst', ()),)", "pattern 'fi[rst': unterminated"),
        ("(('first', ('model',)),)", "names the axis 'model'; legal are None, data, fsdp, space"),
    ],
)
def test_rules_that_are_none(rules: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=re.escape(part)):
        card.leaves(card.resolve(card.read(CARD), [("mesh.rules", rules)]), tmp_path)


def test_losses_do_not_depend_on_how_many_devices(tmp_path: Path) -> None:
    """8, then 4, 2 and 1 devices for three steps each, against one for all of them."""
    trained(tmp_path / "one", 12, 1, 1)
    for steps, data in ((3, 8), (6, 4), (9, 2), (12, 1)):
        trained(tmp_path / "less", steps, data, 1)
    one, less = (rows(tmp_path / name / "seed0/metrics.jsonl") for name in ("one", "less"))
    assert [row["items"] for row in one] == [row["items"] for row in less]
    assert len(one) == 12 and len({row["items"] for row in one}) == 12
    for expected, got in zip(one, less, strict=True):
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-6)
