"""Networks with the reference implementations' weights give the references' logits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from touchstone_jax.models import convert, graph

FAST = {"xla_backend_optimization_level": 0}

CASES = {
    "nnunet_unet": ("unet", {"widths": (8, 16, 32)}),
    "nnunet_resenc": ("resenc_l", {"widths": (8, 16, 32, 32), "blocks": (1, 2, 3, 2)}),
    "stunet": (
        "stunet",
        {"widths": (8, 16, 32, 32), "depth": (1, 2, 1, 2), "pools": (2, 2, (1, 2, 2))},
    ),
    "mednext_k3": (
        "mednext_l",
        {
            "channels": 8,
            "blocks": (1, 2, 1, 1, 2, 1, 1, 2, 1),
            "expansions": (2, 2, 3, 3, 4, 3, 3, 2, 2),
        },
    ),
    "uniseg": ("uniseg", {"widths": (8, 16, 32, 40, 40, 40), "patch": (32, 64, 64), "tasks": 4}),
    "lhunet": (
        "lhunet",
        {
            "patch": 64,
            "cnn_widths": (4, 8),
            "hybrid_widths": (16, 40, 72),
            "heads": (4, 4, 8),
            "projections": (16, 8),
        },
    ),
    "nextou_v1": (
        "nextou",
        {
            "patch": 64,
            "widths": (12, 24, 48, 48, 48),
            "pools": (2, 2, 2, 2),
            "neighbours": (4, 8, 16),
            "ratios": (4, 2, 1),
        },
    ),
    "uctransnet_3d": ("uctransnet", {"patch": 32, "width": 8, "layers": 2}),
    "medformer": (
        "medformer",
        {
            "widths": (8, 16, 24, 32, 40),
            "convs": (1, 1, 0, 0, 0, 1, 1, 1),
            "attentions": (1, 2, 2, 2, 1),
            "heads": (2, 4, 5, 4, 2),
            "codes": 2,
            "fusion": (40, 5, 2),
        },
    ),
    "clip_universal_unet": ("unet_clip", {"widths": (8, 16, 32, 64), "groups": (8, 4)}),
    "unetr_perceptron": ("unetr", {"patch": 32, "heads": 4}),
    "swin_unetr_v2": ("swin_unetr", {}),
    "unest": ("unest", {"patch": 64, "heads": (2, 4, 8)}),
}
# The worst difference as a share of the largest logit; float32 itself is off by up to 5e-6.
TOLERANCE = {"medformer": 3e-5, "lhunet": 3e-5, "nextou_v1": 4e-5}


def channels_last(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def logits_of(model, *inputs):
    """Of all scales, from one program compiled in haste."""
    # Not `train()`: norms and dropout stay as they are in evaluation.
    model.deterministic = False
    graphdef, state = nnx.split(model)
    state = nnx.to_pure_dict(state)
    program = jax.jit(lambda state, *inputs: nnx.merge(graphdef, state)(*inputs))
    return program.lower(state, *inputs).compile(compiler_options=FAST)(state, *inputs)


@pytest.fixture
def neighbours(monkeypatch):
    """Replays stored neighbours, for ties may break either way; shares that are ours as well."""
    real, shares = graph.nearest, []

    def replay(stored):
        calls = iter(range(10))

        def nearest(x, keys, bias, count):
            theirs = jnp.asarray(stored[f"in/knn_edge_index/{next(calls)}"][0].astype(np.int32))
            ours = real(x, keys, bias, count)
            same = (ours[..., None] == theirs[..., None, :]).any(-1).mean()
            jax.debug.callback(lambda share: shares.append(float(share)), same)
            return theirs

        monkeypatch.setattr(graph, "nearest", nearest)

    replay.shares = shares
    return replay


@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_references(golden, case, neighbours):
    name, config = CASES[case]
    path = golden / "arch" / f"{case}.npz"
    stored = convert.read_arrays(path)
    model = convert.from_torch(name, convert.read_arrays(path, "sd/"), **config)
    inputs = [channels_last(stored["x"])]
    if case == "uniseg":
        inputs.append({"task": jnp.asarray(stored["in/task_id"].reshape(-1).astype(np.int32))})
    if case == "nextou_v1":
        neighbours(stored)
    logits = logits_of(model, *inputs)
    scales = sorted(key for key in stored if key.startswith("logits_ds/")) or ["logits"]
    assert len(logits) == len(scales)
    for got, key in zip(logits, scales, strict=True):
        expected = np.moveaxis(stored[key], 1, -1)
        if model.activation == "sigmoid":  # the original has no background
            assert not got[..., 0].any()
            got = got[..., 1:]
        worst = np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()
        assert worst <= TOLERANCE.get(case, 1e-5), (key, worst)
    if case == "nextou_v1":
        jax.effects_barrier()
        assert len(neighbours.shares) == 10 and min(neighbours.shares) > 0.999


def test_fresh_tables_are_the_originals(golden):
    """NexToU's fixed tables; the stored ones have eight bits of mantissa."""
    arrays = convert.read_arrays(golden / "arch" / "nextou_v1.npz", "sd/")
    tables = {key: array for key, array in arrays.items() if key.endswith("relative_pos")}
    assert len(tables) == 10
    for table in {table.shape: table for table in tables.values()}.values():
        fresh = jax.jit(graph.relative_positions, static_argnums=(0, 1, 2))(48, *table.shape[1:])
        np.testing.assert_allclose(fresh, table, rtol=0, atol=2.0**-8)


def test_every_key_is_used_or_a_copy(golden):
    arrays = convert.read_arrays(golden / "arch" / "nnunet_resenc.npz", "sd/")
    name, config = CASES["nnunet_resenc"]
    found = convert.fit(name, arrays, **config)
    assert set(found.places) | set(found.ignored) == set(arrays)
    assert not set(found.places) & set(found.ignored)
    assert len(found.places) == 98 and len(found.ignored) == 234
    # A copy holds the same numbers as the key that is read.
    key = "decoder.encoder.stem.convs.0.all_modules.0.weight"
    assert key in found.ignored
    np.testing.assert_array_equal(arrays[key], arrays["encoder.stem.convs.0.conv.weight"])


def test_sizes_are_read_from_the_arrays(golden):
    arrays = convert.read_arrays(golden / "arch" / "stunet.npz", "sd/")
    found = convert.fit("stunet", arrays, **CASES["stunet"][1])
    assert (found.config["in_channels"], found.config["num_classes"]) == (1, 3)


@pytest.fixture
def arrays(golden):
    return convert.read_arrays(golden / "arch" / "nnunet_unet.npz", "sd/")


SEG = "decoder.seg_layers.1.bias"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({SEG: None}, f"missing keys: {SEG}"),
        ({"surplus.weight": np.zeros(2)}, "unexpected keys: surplus.weight"),
        ({SEG: np.zeros(4)}, f"wrong shapes: {SEG} (4,) instead of (3,)"),
        ({SEG: np.full(3, np.nan, np.float32)}, f"{SEG} has NaN or infinite values"),
        ({"decoder.seg_layers.0.weight": None}, "key 'decoder.seg_layers.0.weight' is missing"),
    ],
)
def test_weights_that_do_not_fit_are_named(arrays, change, said):
    arrays |= change
    arrays = {key: value for key, value in arrays.items() if value is not None}
    with pytest.raises(ValueError, match=re.escape(said)):
        convert.from_torch("unet", arrays, widths=(8, 16, 32))


def test_keys_with_a_prefix_are_told(arrays):
    with pytest.raises(ValueError, match=r"is missing; is 'network\.' the prefix of all\?"):
        convert.from_torch("unet", {f"network.{key}": value for key, value in arrays.items()})


def test_unknown_model_is_told():
    with pytest.raises(ValueError, match="unknown model 'unnet'; did you mean 'unet'"):
        convert.from_torch("unnet", {})


def test_files_of_arrays(tmp_path):
    from safetensors.numpy import save_file

    array = np.arange(3, dtype=np.float32)
    np.savez(tmp_path / "a.npz", **{"network.w": array, "other": array})
    save_file({"w": array}, tmp_path / "a.safetensors")
    for name, prefix in (("a.npz", "network."), ("a.safetensors", "")):
        (found,) = convert.read_arrays(tmp_path / name, prefix).items()
        assert found[0] == "w" and (found[1] == array).all()
    with pytest.raises(ValueError, match=r"no key starts with 'net2'; it has network.w, other"):
        convert.read_arrays(tmp_path / "a.npz", "net2")
    (tmp_path / "a.pth").write_bytes(b"anything")
    with pytest.raises(ValueError, match="pickles .* are not opened"):
        convert.read_arrays(tmp_path / "a.pth")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"objects.npz: cannot be read"):
        convert.read_arrays(tmp_path / "objects.npz")
    with pytest.raises(FileNotFoundError, match=r"b.npz: no such file"):
        convert.read_arrays(tmp_path / "b.npz")
