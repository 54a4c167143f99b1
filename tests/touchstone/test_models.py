"""All families: parameters, training mode, recomputation, bfloat16, refusals."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.touchstone.tiny_models import BATCHES, SCALES, TINY, sides
from touchstone_jax.layers.dropout import Dropout, RandomStream
from touchstone_jax.models import MODELS, count, create
from touchstone_jax.models.catalogue import CATALOGUE
from touchstone_jax.models.catalogue import table as catalogue_table
from touchstone_jax.models.graph import FixedTable
from touchstone_jax.models.hybrid import ResidualBlock
from touchstone_jax.models.ushape import recomputed

ANISOTROPIC = {"kernels": ((1, 3, 3), *[3] * 5), "strides": (1, (1, 2, 2), *[2] * 4)}

# The printed number is of no known code, or rounded.
FEWER = ("diff_unet", "segvol")

COUNTS = [  # beside those of the catalogue
    ("resenc_l", 10, {"kernels": 3}, 102_356_210),
    ("unetr", 9, {"width": 16}, 92_783_961),
    ("swin_unetr", 9, {"version": 1}, 62_187_051),
    ("uniseg", 10, {"tasks": 0}, 31_175_776),
]


BACKBONES = ("unet_clip", "swin_unetr_clip")  # printed without their heads
FAST = {"xla_backend_optimization_level": 0}
QUICK = ("unet", "stunet_b", "uniseg")  # to trace


def abstract(name, **config):
    return nnx.eval_shape(lambda: create(name, rngs=nnx.Rngs(0), **config))


@pytest.mark.parametrize("name", CATALOGUE)
def test_parameters_are_as_many_as_the_originals(name):
    row = CATALOGUE[name]
    assert count.count_parameters(name) == row.parameters
    # The printed number, or what the reason tells of.
    near = abs((row.parameters + row.tower) / 1e6 - row.printed) < 0.05
    assert near or name in ("medformer", "resenc_l", "uniseg", *BACKBONES, *FEWER)


@pytest.mark.parametrize(("name", "classes", "config", "expected"), COUNTS)
def test_other_configurations_have_their_originals_parameters(name, classes, config, expected):
    assert count.count_parameters(name, num_classes=classes, **config) == expected


def test_nextou_trains_less_than_it_stores():
    model = abstract("nextou", num_classes=3, **TINY["nextou"])
    fixed = count.size_of(model, FixedTable)
    assert fixed > 0 and count.size_of(model) + fixed == count.size_of(model, nnx.Param, FixedTable)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n not in QUICK else ()) for n in CATALOGUE]
)
def test_operations_are_those_of_the_catalogue(name):
    row = CATALOGUE[name]
    found = count.count_operations(name, row.patch, **row.config)
    assert round(found / 1e9) == row.gflops


def test_the_table_names_every_network_its_card_and_the_reason():
    lines = catalogue_table().splitlines()
    assert len(lines) == 1 + len(CATALOGUE)
    assert set(CATALOGUE) == set(MODELS) - {"stunet"}
    line = next(line for line in lines if line.startswith("stunet_h"))
    for part in ("1,457,326,221", "1457.3M", "128x128x128", "Huang", "stunet_h.py", "105 classes"):
        assert part in line
    line = next(line for line in lines if line.startswith("segvol"))
    assert all(part in line for part in ("180,890,064", "117,724,112", "63,165,952"))


def drawn(name, **config):
    """A tiny network with random parameters from NumPy: nothing is compiled to initialise it."""
    made = abstract(name, num_classes=3, in_channels=2, **TINY[name], **config)
    graphdef, state = nnx.split(made)
    rng = np.random.default_rng(0)

    def draw(variable):
        if isinstance(variable, RandomStream):
            return variable.replace(jax.random.key_data(jax.random.key(1)))
        values = rng.normal(size=variable.shape) * max(variable.size, 1) ** -0.25
        values = np.abs(values) if isinstance(variable, nnx.BatchStat) else values
        return variable.replace(jnp.asarray(values, jnp.float32))

    return nnx.merge(
        graphdef, jax.tree.map(draw, state, is_leaf=lambda v: isinstance(v, nnx.Variable))
    )


def volume(name, seed=0, batch=1):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(batch, *sides(name), 2)), jnp.float32)


def scales_of(model, x):
    """Logits of all scales; of a network with a loss of its own, what it takes the loss of."""
    if not hasattr(model, "training_loss"):
        return model(x)
    labels, annotated = jnp.zeros(x.shape[:4], jnp.uint8), jnp.ones((len(x), 3), bool)
    labels, seen = labels.at[:, :6, :4].set(1).at[:, 6:, :, 2:].set(2), []

    def loss(logits):
        seen.append(logits)
        return {"loss": jnp.float32(0)}

    model.training_loss(x, labels, annotated, jax.random.key(0), loss)
    return seen[0]


def step(model, x):
    """Logits of all scales, gradients of the sum of their squares, and the other variables."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        copy = nnx.merge(graphdef, params, nnx.to_pure_dict(rest))
        logits = scales_of(copy, x)
        total = sum(jnp.square(scale.astype(jnp.float32)).mean() for scale in logits)
        return total, (logits, nnx.to_pure_dict(nnx.state(copy, nnx.Not(nnx.Param))))

    program = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(nnx.to_pure_dict(params))
    (_, (logits, after)), gradients = program.compile(compiler_options=FAST)(
        nnx.to_pure_dict(params)
    )
    return logits, gradients, after


def test_every_family_is_tried():
    assert set(TINY) == {name for name in MODELS if not re.match("stunet_", name)}


HEAVY = ("lhunet", "segvol", "sam_adapter", "swin_unetr_clip")  # to compile


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in HEAVY else ()) for n in TINY]
)
def test_training_gives_all_scales_and_reaches_every_parameter(name):
    model = drawn(name)
    model.train()
    logits, gradients, _ = step(model, volume(name, batch=BATCHES.get(name, 1)))
    scales = SCALES.get(name, (1, 2))
    expected = [tuple(n // s for n in sides(name)) for s in scales]
    assert [scale.shape[1:] for scale in logits] == [(*shape, 3) for shape in expected]
    assert {scale.dtype for scale in logits} == {jnp.dtype("float32")}
    for path, g in jax.tree_util.tree_leaves_with_path(gradients):
        if name == "uctransnet" and "'conv'), DictKey(key='bias')" in str(path):
            continue  # a batch norm takes it away again
        at = jax.tree_util.keystr(path, simple=True, separator="/")
        unused = name == "uniseg" and "conv_1" in at  # the stem for one channel
        unused = unused or re.search(getattr(model, "frozen", "^$"), at)
        assert np.isfinite(g).all() and (unused or np.abs(g).max() > 0), path


class Noisy(nnx.Module):
    """Everything that a recomputed block may carry: statistics and a stream of random numbers."""

    def __init__(self, rngs):
        self.block = ResidualBlock(2, 3, 3, {"rngs": rngs})
        self.dropout = Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.block(x))


def test_recomputed_blocks_give_the_same_and_keep_their_state():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 4, 2)), jnp.float32)
    graphdef, params, rest = nnx.split(Noisy(nnx.Rngs(0)), nnx.Param, ...)

    def run(call):
        def loss(params):
            copy = nnx.merge(graphdef, params, nnx.to_pure_dict(rest))
            copy.train()
            total = jnp.square(call(copy, x)).mean()
            return total, nnx.to_pure_dict(nnx.state(copy, nnx.Not(nnx.Param)))

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(nnx.to_pure_dict(params))

    plain, again = run(lambda module, x: module(x)), run(recomputed)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), nnx.to_pure_dict(rest), plain[0][1])
    assert all(jax.tree.leaves(changed))


def test_only_the_inputs_of_blocks_are_kept():
    """Of a recomputed U-Net the gradients need fewer numbers from the way there."""

    def kept(**config):
        model = drawn("stunet", **config)
        model.deterministic = False
        graphdef, params = nnx.split(model)

        def forward(params, x):
            return sum(jnp.square(s).mean() for s in nnx.merge(graphdef, params)(x))

        _, pull = jax.eval_shape(lambda p, x: jax.vjp(forward, p, x), params, volume("stunet"))
        return sum(leaf.size for leaf in jax.tree.leaves(pull))

    assert kept(remat=True) < 0.5 * kept()


@pytest.mark.parametrize("name", ["mednext_l", "unetr"])
def test_bfloat16_stays_near_float32(name):
    x, made = volume(name), []
    for dtype in ("float32", "bfloat16"):
        graphdef, state = nnx.split(drawn(name, dtype=dtype))
        program = jax.jit(lambda s, x, g=graphdef: nnx.merge(g, s)(x)).lower(state, x)
        made.append(program.compile(compiler_options=FAST)(state, x))
    exact, half = made
    assert half.dtype == jnp.float32
    assert 0 < float(jnp.abs(exact - half).max()) < 0.1 * float(jnp.abs(exact).max())


@pytest.mark.parametrize(
    "name",
    [
        *("unet_clip", "medformer", "uctransnet"),
        *("unetr", "swin_unetr", "swin_unetr_clip", "unest"),
        pytest.param("lhunet", marks=pytest.mark.slow),
    ],
)
def test_half_precision_and_recomputed_blocks_give_float32_logits(name):
    """Of the whole step in training mode; only traced, with strict promotion of types."""
    config = {**TINY[name], "dtype": "bfloat16", "remat": True}
    model = abstract(name, num_classes=3, in_channels=2, **config)
    graphdef, state = nnx.split(model)
    model = nnx.merge(graphdef, nnx.to_pure_dict(state))
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest, x):
        copy = nnx.merge(graphdef, params, rest)
        logits = copy(x)
        assert {scale.dtype for scale in logits} == {jnp.dtype("float32")}
        after = nnx.to_pure_dict(nnx.state(copy, nnx.Not(nnx.Param)))
        return sum(jnp.square(scale).mean() for scale in logits), after

    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    x = jax.ShapeDtypeStruct((2, *sides(name), 2), jnp.float32)
    (_, after), gradients = jax.eval_shape(jax.value_and_grad(loss, has_aux=True), params, rest, x)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), params, gradients)
    assert all(jax.tree.leaves(same))
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), rest, after)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("resenc_l", {"blocks": (1, 2)}, r"resenc_l: blocks=\(1, 2\); expected 6 integers"),
        ("stunet_b", {"depth": 2}, "unknown option of model 'stunet_b' 'depth'"),
        ("stunet_b", {"pools": (2, 2)}, "expected 5, one between levels"),
        ("stunet", {"dtype": "float16"}, "stunet: dtype='float16'; legal: float32, bfloat16"),
        ("mednext_l", {"kernel": 4}, "kernel=4; expected an odd size"),
        ("mednext_l", {"blocks": (1, 1)}, "expected an odd number from 3"),
        ("uniseg", {"in_channels": 3}, r"in_channels=3; stems=\(1, 2, 4\) have no such one"),
        ("uniseg", {"task": 9}, r"task=9; expected 0..8"),
        ("lhunet", {"patch": 48}, r"patch=\(48, 48, 48\); expected multiples of 32"),
        ("lhunet", {"heads": (8, 8, 10)}, r"heads\[2\]=10 does not divide 128"),
        ("nextou", {"patch": 60}, "cannot be divided by the pools"),
        ("nextou", {"widths": (24, 48, 100, 192, 312, 312)}, "100 is no multiple of 6"),
        ("nextou", {"neighbours": (4, 8, 16, 200)}, "neighbours=200, but a graph has only 150"),
        ("nextou", {"ratios": (4, 3, 1, 1)}, "has no cubes of 3"),
        ("unet_clip", {"widths": (64, 128, 255, 512)}, "255, 512.; expected even numbers"),
        ("unet_clip", {"groups": (16, 24)}, "24 groups do not divide 64 channels"),
        ("unet_clip", {"organs": ("liver", "spleen")}, "2 names for 1 organs"),
        ("unet_clip", {"organs": ("livr",)}, "'livr'; did you mean 'liver'"),
        ("medformer", {"convs": (2, 0, 0, 0, 0, 0, 0, 2)}, "8 integers from 0, the last two"),
        ("medformer", {"heads": (4, 8, 9, 8, 4)}, "heads=9 does not divide 320 channels"),
        ("medformer", {"attentions": (2, 4, 6, 4, 0)}, "expected 5 integers from 1"),
        ("medformer", {"fusion": (320, 7, 2)}, "heads do not divide the channels"),
        ("uctransnet", {"patch": 120}, r"patch=\(120, 120, 120\); expected multiples of 16"),
        ("uctransnet", {"heads": 0}, "uctransnet: heads=0; expected an integer from 1"),
        ("unetr", {"patch": 90}, r"patch=\(90, 90, 90\); expected multiples of 16"),
        ("unetr", {"heads": 10}, "heads=10 does not divide hidden=768"),
        ("unetr", {"taps": (3, 6, 12)}, "expected three rising integers below 12"),
        ("unetr", {"embedding": "linear"}, "embedding='linear'; legal: perceptron, conv"),
        ("diff_unet", {"widths": (8, 8, 15, 8, 8, 8)}, "levels 2 to 4 must be even"),
        ("diff_unet", {"steps": 1}, r"steps=1; expected an integer in 2..1000"),
        ("diff_unet", {"seed": -1}, r"seed=-1; expected an integer in 0"),
        ("segvol", {"patch": 40}, r"segvol: patch=\(40, 40, 40\); .* token=\(16, 16, 4\)"),
        ("segvol", {"heads": 5}, "segvol: heads=5 does not divide width=768"),
        ("segvol", {"decoder_heads": 0}, "segvol: decoder_heads=0; expected an integer from 1"),
        ("segvol", {"decoder_heads": 5}, "width=768; expected a multiple of 8 and of twice 5"),
        ("segvol", {"aligned": False}, r"embeddings \(1, 512\); expected width=768"),
        ("sam_adapter", {"side": 1000}, "side=1000; expected a multiple of 16"),
        ("sam_adapter", {"encoder": "tiny"}, "encoder='tiny'; legal: tiny_vit, vit"),
        ("sam_adapter", {"encoder_config": {"depths": (1, 2)}}, "encoder_config.depths=.*4 integ"),
        (
            "sam_adapter",
            {"encoder_config": {"depths": 2}},
            r"encoder_config.depths=\(2,\).*4 integ",
        ),
        ("sam_adapter", {"encoder_config": {"depth": 2}}, "'depth'; did you mean 'depths'"),
        ("swin_unetr", {"version": 3}, "version=3; legal: 1, 2"),
        ("swin_unetr", {"merging": "old"}, "merging='old'; legal: fixed, legacy"),
        ("swin_unetr", {"heads": (3, 6, 12, 25)}, r"heads\[3\]=25 does not divide 384"),
        ("swin_unetr", {"depths": (2, 2, 2)}, "expected 4 integers from 1"),
        ("unest", {"patch": 48}, r"patch=\(48, 48, 48\); expected multiples of 32"),
        ("unest", {"patch": 32}, "and not all 32"),
        ("unest", {"heads": (3, 8, 16)}, r"heads\[0\]=3 does not divide 128"),
        ("unest", {"skip": 1.0}, r"skip=1.0; expected a share in \[0, 1\)"),
    ],
)
def test_bad_arguments_are_told(name, config, said):
    with pytest.raises(ValueError, match=said):
        abstract(name, **{"num_classes": 2, **config})


@pytest.mark.parametrize("shape", [(32, 32, 32), (32, 32, 48)])
def test_swin_unetr_refuses_volumes_with_a_deepest_level_of_one_voxel(shape):
    model = drawn("swin_unetr")
    x = jax.ShapeDtypeStruct((1, *shape, 2), jnp.float32)
    with pytest.raises(ValueError, match="swin_unetr: volume .* a multiple of .* and larger"):
        nnx.eval_shape(lambda m, x: m(x), model, x)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((8, 8, 8, 2), r"unet: input \(8, 8, 8, 2\); expected \(batch, x, y, z, channels\)"),
        ((1, 8, 8, 8, 1), r"convolution of \(1, 8, 8, 8, 1\): expected .* 2 channels"),
    ],
)
def test_other_axes_and_channels_are_told(shape, said):
    with pytest.raises(ValueError, match=said):
        drawn("unet")(jnp.zeros(shape, jnp.float32))


@pytest.mark.parametrize("name", ["uniseg", "lhunet", "nextou", "uctransnet", "unetr", "unest"])
def test_networks_of_one_patch_refuse_others(name):
    model = drawn(name)
    shape = (1, *(2 * n for n in sides(name)), 2)
    with pytest.raises(ValueError, match=f"{name}: volume .* expected the patch"):
        nnx.eval_shape(lambda m, x: m(x), model, jax.ShapeDtypeStruct(shape, jnp.float32))
