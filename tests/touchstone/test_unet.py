"""nnU-Net's U-Net: the reference's logits and gradients, its parameter counts, its plans."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from touchstone_jax.models import create, topology

# Programs run once: compiling is the cost.
QUICKLY = {"xla_backend_optimization_level": 0}
TINY = {"widths": (4, 6, 8), "kernels": (1, 3, 3), "strides": (1, (1, 2, 2), 2)}


def parameters(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def abstract(**config):
    return nnx.eval_shape(lambda: create("unet", num_classes=10, rngs=nnx.Rngs(0), **config))


def drawn(**config):
    """A network with random parameters from NumPy: nothing is compiled to initialise it."""
    shapes = {"num_classes": 3, "in_channels": 2, **config}
    made = nnx.eval_shape(lambda: create("unet", rngs=nnx.Rngs(0), **shapes))
    graph, params = nnx.split(made)
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(rng.normal(size=leaf.shape) * leaf.size**-0.25, jnp.float32)

    return nnx.merge(graph, jax.tree.map(draw, params))


def forward(model, x):
    graph, params = nnx.split(model)
    run = jax.jit(lambda p, x: nnx.merge(graph, p)(x), compiler_options=QUICKLY)
    return run(params, x)


def our_path(key):
    """Path of our parameter for a key of the reference's state dict."""
    kind = {"weight": "scale" if ".norm." in key else "kernel", "bias": "bias"}
    path = re.sub(r"\.(weight|bias)$", lambda m: "." + kind[m[1]], key)
    path = re.sub(r"^encoder\.stages\.(\d+)\.0\.convs\.", r"encoder.\1.layers.", path)
    path = re.sub(r"^decoder\.stages\.(\d+)\.convs\.", r"decoder.\1.layers.", path)
    path = path.replace("decoder.transpconvs.", "ups.").replace("decoder.seg_layers.", "heads.")
    return tuple(int(part) if part.isdigit() else part for part in path.split("."))


def our_array(key, array):
    if array.ndim < 5:
        return array
    # (o, i, x, y, z); the transposed convolution's is (i, o, x, y, z).
    return array.transpose(2, 3, 4, *((0, 1) if "transpconvs" in key else (1, 0)))


@pytest.fixture(scope="module")
def reference(golden):
    """The stored arrays, and our network with the stored weights."""
    stored = np.load(golden / "arch" / "nnunet_unet.npz", allow_pickle=False)
    model = drawn(in_channels=1, widths=(8, 16, 32))
    params = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    for name in stored.files:
        key = name.removeprefix("sd/")
        if name == key or "all_modules" in key or key.startswith("decoder.encoder"):
            continue
        params.pop(our_path(key))[...] = jnp.asarray(our_array(key, stored[name]))
    assert not params, f"no weights for {list(params)}"
    return stored, model


@pytest.fixture(scope="module")
def reference_run(reference):
    """Logits of every stage; gradients of mean(finest²) for all parameters and the input."""
    stored, model = reference
    graph, params = nnx.split(nnx.view(model, deterministic=False))

    @partial(jax.jit, compiler_options=QUICKLY)
    def run(params, x):
        def loss(params, x):
            logits = nnx.merge(graph, params)(x)
            return jnp.square(logits[0]).mean(), logits

        (_, logits), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
        return logits, gradients

    return run(params, jnp.asarray(stored["x"].transpose(0, 2, 3, 4, 1)))


def test_logits_are_the_references(reference, reference_run):
    stored, model = reference
    x = jnp.asarray(stored["x"].transpose(0, 2, 3, 4, 1))
    logits, _ = reference_run
    for i, ours in enumerate((*logits, forward(model, x))):
        name = f"logits_ds/{i}" if i < 2 else "logits"
        np.testing.assert_allclose(
            np.moveaxis(np.asarray(ours), -1, 1), stored[name], rtol=0, atol=1e-5
        )


def test_gradients_are_the_references(reference, reference_run):
    stored, _ = reference
    _, (grad_params, grad_x) = reference_run
    expected = stored["grad_x"].transpose(0, 2, 3, 4, 1)
    assert np.abs(grad_x - expected).max() <= 2e-5 * np.abs(expected).max()
    ours = dict(nnx.to_flat_state(grad_params))
    largest = stored["grad_norms"].max()
    for key, norm in zip(stored["param_names"], stored["grad_norms"], strict=True):
        path = our_path(re.sub("^decoder.encoder", "encoder", str(key)))
        assert abs(float(jnp.linalg.norm(ours[path][...])) - norm) <= 1e-5 * largest, key


def test_parameter_counts_are_the_papers():
    assert parameters(abstract()) == 31_202_034
    plan = topology((2.0, 0.8, 0.8), (96, 160, 160), 6)
    assert parameters(abstract(**plan._asdict())) == 31_119_538


def test_a_coarse_axis_waits_for_the_others():
    plan = topology((5.0, 1.0, 1.0), (24, 128, 128))
    assert plan.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    assert plan.kernels == ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))


def test_isotropic_patches_are_halved_to_four_voxels():
    plan = topology((1.5,) * 3, (128, 96, 64))
    assert plan.strides == ((1,) * 3, *[(2,) * 3] * 4)
    assert topology((1.5,) * 3, (128,) * 3, stages=3) == (
        ((3,) * 3,) * 3,
        ((1,) * 3, *[(2,) * 3] * 2),
    )
    assert topology((1.0,) * 3, (7, 7, 7)) == (((3, 3, 3),), ((1, 1, 1),))
    # One axis alone is halved only while it has 12 voxels.
    assert topology((1.0,) * 3, (11, 4, 4)).strides == ((1, 1, 1),)
    assert topology((1.0,) * 3, (12, 4, 4)).strides == ((1, 1, 1), (2, 1, 1))


@pytest.fixture(scope="module")
def tiny():
    return drawn(**TINY)


def test_training_gives_every_stage_and_evaluation_the_finest(tiny):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 8, 8, 2)), jnp.float32)
    training = nnx.view(tiny, deterministic=False)
    assert tiny.divisor == (2, 4, 4) and tiny.deterministic and not training.deterministic
    stages, alone = forward(training, x), forward(tiny, x)
    assert [s.shape for s in stages] == [(2, 2, 8, 8, 3), (2, 2, 4, 4, 3)]
    np.testing.assert_allclose(stages[0], alone, rtol=1e-4, atol=1e-4)
    # Samples do not meet: the second alone gives what it gave beside the first.
    other = forward(tiny, x.at[0].set(0.0))
    np.testing.assert_allclose(other[1], alone[1], rtol=1e-4, atol=1e-4)
    assert np.abs(other[0] - alone[0]).max() > 0.1


def test_bfloat16_stays_near_float32_and_gives_float32(tiny):
    half = drawn(**TINY, dtype="bfloat16")
    assert {a.dtype for a in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 2, 8, 8, 2)), jnp.float32)
    exact, got = forward(tiny, x), forward(half, x)
    assert got.dtype == jnp.float32
    assert 0 < float(jnp.abs(got - exact).max()) < 0.1 * float(jnp.abs(exact).max())


def test_no_forward_pass_holds_a_dilated_convolution(tiny):
    program = str(jax.make_jaxpr(tiny)(jnp.zeros((1, 2, 4, 4, 2))))
    dilations = set(re.findall(r"lhs_dilation=(\([^)]*\))", program))
    assert dilations and all(set(re.findall(r"\d+", d)) == {"1"} for d in dilations)


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("unett", {}, "unknown model 'unett'; did you mean 'unet'"),
        (
            "unet",
            {"width": (4, 8)},
            "unknown option of model 'unet' 'width'; did you mean 'widths'",
        ),
        ("unet", {"num_classes": 1}, "num_classes=1; expected at least 2"),
        ("unet", {"in_channels": 0}, "in_channels=0; expected at least 1"),
        ("unet", {"widths": (8,)}, r"widths=\(8,\); expected at least two"),
        ("unet", {"widths": (8, 0)}, r"widths=\(8, 0\); expected at least two integers from 1"),
        ("unet", {"widths": (8, 8), "strides": (1, 2, 2)}, "strides=.*expected one for each of 2"),
        ("unet", {"kernels": 2}, "kernels=.*expected odd"),
        ("unet", {"convs": 0}, "convs=0; expected an integer from 1"),
        ("unet", {"dtype": "float16"}, "dtype='float16'; legal: float32, bfloat16"),
    ],
)
def test_bad_arguments_are_told(name, config, said):
    with pytest.raises(ValueError, match=said):
        create(name, **{"num_classes": 2, "rngs": nnx.Rngs(0), **config})


def test_a_volume_that_cannot_be_halved_is_told(tiny):
    with pytest.raises(ValueError, match=r"volume \(2, 6, 8\) must be a multiple of \(2, 4, 4\)"):
        tiny(jnp.zeros((1, 2, 6, 8, 2)))
