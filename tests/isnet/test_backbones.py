"""The backbones: torchvision's function, their maps under every preset, dropout that resumes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx, traverse_util

from isnet_jax import isnet, lrp, models
from isnet_jax.models import convert
from isnet_jax.models.dropout import Dropout

# ---------------------------------------------------------------- against torchvision's arrays

VGG = {"depths": (1, 1, 2, 2, 1), "widths": (8, 16, 16, 16, 16)}
GOLDEN = {
    "tv_resnet_basic_small": ("resnet", {"depths": (1, 2, 1, 1)}),
    "tv_vgg_small": ("vgg", VGG),
    "tv_vgg_bn_small": ("vgg", {**VGG, "norm": True}),
    "tv_vit_small": ("vit", {"depth": 2, "heads": 4}),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_logits_and_gradients_are_torchvisions(case, golden):
    name, config = GOLDEN[case]
    with np.load(golden / "arch" / f"{case}.npz") as file:
        known = dict(file)
    arrays = {k.removeprefix("sd/"): v for k, v in known.items() if k.startswith("sd/")}
    model = models.from_torch(name, arrays, **config)
    model.eval()
    params, rest = isnet.variables(model)
    graphdef = nnx.split(model)[0]

    @jax.jit
    def run(params, x):
        def loss(params, x):
            logits, _ = isnet.bind(graphdef, params, rest)(x)
            return jnp.square(logits).mean(), logits

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    x = jnp.asarray(np.moveaxis(known["x"], 1, -1))
    (loss, logits), (by_params, by_x) = run(params, x)
    assert distance(logits, known["logits"]) <= 1e-5
    assert distance(loss, known["loss"]) <= 1e-5
    assert distance(np.moveaxis(by_x, -1, 1), known["grad_x"]) <= 1e-4
    flat = traverse_util.flatten_dict(by_params)
    places = convert.torch_places(model)[0]
    keys = [str(key).replace("in_proj_", "in_proj.") for key in known["param_names"]]
    norms = [jnp.linalg.norm(flat[places[key].path].ravel()) for key in keys]
    np.testing.assert_allclose(norms, known["grad_norms"], rtol=1e-4)


def distance(a, b):
    """Relative L2 distance of a from b."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# ---------------------------------------------------------------- against forwards written anew


class Reference:
    """Channels-first numpy layers with the arrays of a state dict."""

    def __init__(self, arrays):
        self.arrays = arrays

    def conv(self, x, name, stride=1, padding=0):
        w, b = self.arrays[f"{name}.weight"], self.arrays.get(f"{name}.bias", np.zeros(1))
        x = np.pad(x, [(0, 0)] * 2 + [(padding, padding)] * 2)
        values = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3))
        values = values[:, :, ::stride, ::stride]
        return np.einsum("bihwjk,oijk->bohw", values, w, optimize=True) + b[:, None, None]

    def norm(self, x, name):
        scale, shift, mean, var = (
            self.arrays[f"{name}.{field}"][:, None, None]
            for field in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * scale + shift

    def linear(self, x, name):
        return x @ self.arrays[f"{name}.weight"].T + self.arrays[f"{name}.bias"]

    def windows(self, x, size, stride, ceil=False):
        """(b, c, h', w', values of the window); a window cut by the edge repeats its last row."""
        count = []
        for n in x.shape[2:]:
            count.append(-(-(n - size) // stride) + 1 if ceil else (n - size) // stride + 1)
        rows, columns = (
            np.minimum(np.arange(c)[:, None] * stride + np.arange(size), n - 1)
            for c, n in zip(count, x.shape[2:], strict=True)
        )
        picked = x[:, :, rows[:, None, :, None], columns[None, :, None, :]]
        return picked.reshape(*picked.shape[:4], -1)

    def stem_pool(self, x):
        padded = np.pad(x, [(0, 0)] * 2 + [(1, 1)] * 2, constant_values=-np.inf)
        return self.windows(padded, 3, 2).max(-1)


def relu(x):
    return np.maximum(x, 0)


def bottleneck_forward(ref, x, depths):
    x = ref.stem_pool(relu(ref.norm(ref.conv(x, "conv1", 2, 3), "bn1")))
    for i, depth in enumerate(depths):
        for j in range(depth):
            stride, at = 2 if i > 0 and j == 0 else 1, f"layer{i + 1}.{j}"
            y = relu(ref.norm(ref.conv(x, f"{at}.conv1"), f"{at}.bn1"))
            y = relu(ref.norm(ref.conv(y, f"{at}.conv2", stride, 1), f"{at}.bn2"))
            y = ref.norm(ref.conv(y, f"{at}.conv3"), f"{at}.bn3")
            if f"{at}.downsample.0.weight" in ref.arrays:
                x = ref.norm(ref.conv(x, f"{at}.downsample.0", stride), f"{at}.downsample.1")
            x = relu(x + y)
    return ref.linear(x.mean((2, 3)), "fc")


def densenet_forward(ref, x, depths, transition_relu=False):
    x = ref.stem_pool(relu(ref.norm(ref.conv(x, "features.conv0", 2, 3), "features.norm0")))
    for i, depth in enumerate(depths):
        if i > 0:
            at = f"features.transition{i}"
            x = ref.conv(relu(ref.norm(x, f"{at}.norm")), f"{at}.conv")
            x = ref.windows(relu(x) if transition_relu else x, 2, 2).mean(-1)
        for j in range(depth):
            at = f"features.denseblock{i + 1}.denselayer{j + 1}"
            y = ref.conv(relu(ref.norm(x, f"{at}.norm1")), f"{at}.conv1")
            y = ref.conv(relu(ref.norm(y, f"{at}.norm2")), f"{at}.conv2", 1, 1)
            x = np.concatenate((x, y), 1)
    x = relu(ref.norm(x, "features.norm5"))
    return ref.linear(x.mean((2, 3)), "classifier")


def squeezenet_forward(ref, x):
    x = relu(ref.conv(x, "features.0", 2))
    for i in range(2, 13):
        if i in (2, 5, 8):
            x = ref.windows(x, 3, 2, ceil=True).max(-1)
            continue
        s = relu(ref.conv(x, f"features.{i}.squeeze"))
        one = relu(ref.conv(s, f"features.{i}.expand1x1"))
        three = relu(ref.conv(s, f"features.{i}.expand3x3", 1, 1))
        x = np.concatenate((one, three), 1)
    return relu(ref.conv(x, "classifier.1")).mean((2, 3))


DENSE = {"depths": (2, 1), "growth": 4, "stem_width": 8}
SQUEEZE = {"stem_width": 4, "squeezed": ((2, 2), (2, 2), (2, 2, 2, 2))}
WRITTEN_ANEW = {
    "bottleneck": (
        "resnet",
        {"block": "bottleneck", "depths": (2, 1), "width": 4, "stem_width": 6},
        lambda ref, x: bottleneck_forward(ref, x, (2, 1)),
    ),
    "densenet": ("densenet", DENSE, lambda ref, x: densenet_forward(ref, x, (2, 1))),
    "densenet_relu": (
        "densenet",
        {**DENSE, "transition_relu": True},
        lambda ref, x: densenet_forward(ref, x, (2, 1), True),
    ),
    "squeezenet": ("squeezenet1_1", SQUEEZE, squeezenet_forward),
}


@pytest.mark.parametrize("case", WRITTEN_ANEW)
def test_logits_are_those_of_a_forward_written_anew(case):
    name, config, forward = WRITTEN_ANEW[case]
    config = {**config, "num_classes": 3}
    abstract = nnx.eval_shape(lambda: models.create(name, **config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    arrays = {
        key: (
            0.5 + rng.random(place.shape)
            if "var" in key
            else rng.normal(0, 1 / np.sqrt(np.prod(place.shape[1:])), place.shape)
        ).astype(np.float32)
        for key, place in convert.torch_places(abstract)[0].items()
    }
    model = models.from_torch(name, arrays, **config)
    x = rng.normal(size=(2, 3, 37, 45)).astype(np.float32)
    expected = forward(Reference(arrays), x)
    assert distance(logits_of(model, np.moveaxis(x, 1, -1)), expected) <= 1e-5


def logits_of(model, x):
    graphdef = isnet.programs(model, lrp.create("gradient_x_input")).infer
    return jax.jit(isnet.bind(graphdef, *isnet.variables(model)))(jnp.asarray(x))[0]


# ---------------------------------------------------------------- maps

NARROW = {
    "simple_cnn": ("simple_cnn", {"widths": (4, 4), "pooled": 2, "in_channels": 3}),
    "resnet_basic": ("resnet", {"depths": (1, 1), "width": 4, "stem": "small"}),
    "resnet_bottleneck": ("resnet", {"block": "bottleneck", "depths": (2,), "width": 4}),
    "densenet": ("densenet", {**DENSE, "depths": (1, 1)}),
    "vgg": ("vgg", {"depths": (1, 2), "widths": (4, 6), "hidden": 8, "pooled": 3}),
    "vgg_bn": (
        "vgg",
        {"depths": (1, 1), "widths": (4, 6), "norm": True, "hidden": 8, "pooled": 3},
    ),
    "squeezenet": ("squeezenet1_1", {"stem_width": 8, "squeezed": ((4, 4),)}),
}
SUPERVISED = {
    "simple_cnn": ["pools/0", "relus/1"],
    "resnet_basic": ["stages/0/0/relu2", "stages/1/0/relu2"],
    "resnet_bottleneck": ["stages/0/1/relu3"],
    "densenet": ["transitions/0/relu", "relu5"],
    "vgg": ["stages/0/pool", "stages/1/pool"],
    "vgg_bn": ["stages/0/pool", "stages/1/pool"],
    "squeezenet": ["stages/0/1/squeeze_relu"],
}
PRESETS = ("gradient_x_input", "epsilon", "isnet_flex", "isnet_flex_zb", "zplus")


def narrow(name, **config):
    """A fresh model; filled by numpy, because compiling each layer's initialiser takes long."""
    name, fixed = NARROW[name]
    config = {"num_classes": 6, **fixed, **config}
    abstract = nnx.eval_shape(lambda: models.create(name, **config, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(abstract)
    rng, values = np.random.default_rng(1), {}
    for path, v in traverse_util.flatten_dict(nnx.to_pure_dict(state)).items():
        if path[-1] == "stream":
            values[path] = jax.random.key_data(jax.random.key(0))
        elif path[-1] == "kernel":
            scale = np.sqrt(2 / np.prod(v.shape[:-1]))
            values[path] = jnp.asarray(rng.normal(0, scale, v.shape), v.dtype)
        else:
            value = 1 if path[-1] in ("scale", "var") else 0
            values[path] = jnp.asarray(np.full(v.shape, value), v.dtype)
    return nnx.merge(graphdef, traverse_util.unflatten_dict(values))


@pytest.mark.parametrize("name", NARROW)
def test_a_model_says_where_its_layers_are(name):
    model = narrow(name)
    kinds = {path: layer.kind for path, layer in lrp.rule_layers(model)}
    assert kinds[model.input_layer] == "conv" and kinds[model.input_relu] == "relu"
    assert list(model.supervised) == SUPERVISED[name]
    assert {kinds[path] for path in model.supervised} <= {"relu", "max_pool"}
    for preset in PRESETS:
        matches = lrp.create(preset).matches(model)
        assert {m.path for m in matches} == set(kinds)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_densenet_knows_what_feeds_its_norms(stem, relu):
    model = narrow("densenet", transition_relu=relu, stem=stem)
    found = {p for p, _ in lrp.rule_layers(model) if re.fullmatch(model.before_norm, p)}
    expected = {"blocks/0/0/conv2", "blocks/1/0/conv2", "transitions/0/pool"}
    expected |= set() if stem == "small" else {"pool0"}
    expected |= set() if relu else {"transitions/0/conv"}
    assert found == expected
    others = [narrow(name) for name in NARROW if name != "densenet"]
    assert all(model.before_norm is None for model in others)


# What simple_cnn and the plain VGG are made of is in the others.
@pytest.mark.parametrize("name", sorted(set(NARROW) - {"simple_cnn", "vgg"}))
def test_maps_of_every_preset(name):
    model = narrow(name)
    x = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
    classes = logits_of(model, x).argmax(-1)
    for preset in PRESETS:
        found = lrp.explain(model, x, target=classes, composite=preset)
        assert found.relevance.shape == x.shape and found.conservation_gap.shape == (2,)
        assert jnp.isfinite(found.relevance).all() and jnp.isfinite(found.conservation_gap).all()
        if preset != "gradient_x_input":
            continue
        model.eval()
        grad = jax.jit(jax.grad(lambda x: model(x)[jnp.arange(2), classes].sum()))(x)
        assert distance(found.relevance, grad * x) <= 1e-5
        # Fresh models have no biases, so nothing may be lost.
        assert (jnp.abs(found.conservation_gap) <= 1e-4).all()


# ---------------------------------------------------------------- dropout


def test_dropout_is_off_outside_training():
    model = narrow("vgg")
    x = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    once, again = logits_of(model, x), logits_of(model, x)
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(once, logits_of(narrow("vgg", dropout=0.0), x))
    with pytest.raises(ValueError, match=r"dropout=1.0; must lie in \[0, 1\)"):
        narrow("squeezenet", dropout=1.0)


def test_dropout_keeps_the_mean_and_advances_under_jit():
    layer = Dropout(0.25, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(layer)
    x = jnp.ones((64, 64))

    @jax.jit
    def call(state):
        layer = nnx.merge(graphdef, state)
        return layer(x), nnx.to_pure_dict(nnx.state(layer))

    first, state = call(nnx.to_pure_dict(state))
    second, _ = call(state)
    assert set(np.unique(first)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(float(first.mean()) - 1) < 0.05
    # Independent masks agree where both keep or both drop: 0.75² + 0.25².
    assert abs(float((first == second).mean()) - 0.625) < 0.05


def test_dropout_goes_on_where_a_checkpoint_stopped(tmp_path):
    model = narrow("vgg", depths=(1,), widths=(4,), pooled=2)
    method = isnet.ISNet(composite=lrp.create("isnet_flex"))
    graphs = isnet.programs(model, method.composite)
    batch = {
        "image": jax.random.uniform(jax.random.key(0), (2, 8, 8, 3)),
        "mask": jnp.ones((2, 8, 8, 1)).at[:, :4].set(0),
        "label": jnp.array([0, 1]),
    }

    @jax.jit
    def step(state):
        loss, (_, rest) = isnet.objective(graphs, state["params"], state["rest"], batch, method)
        # Not a gradient, but as good a reason to depend on the past.
        params = jax.tree.map(lambda p: p * (1 - 0.01 * loss), state["params"])
        return {"params": params, "rest": rest}, loss

    params, rest = isnet.variables(model)
    first, loss = step({"params": params, "rest": rest})
    # Same parameters, next random numbers: another loss.
    assert jnp.isfinite(loss) and step({"params": params, "rest": first["rest"]})[1] != loss
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "state", first)
        saver.wait_until_finished()
        restored = saver.restore(tmp_path / "state", jax.eval_shape(lambda: first))
    on, back = step(step(first)[0])[0], step(step(restored)[0])[0]
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), on, back))


def test_converted_models_carry_a_random_stream():
    model = narrow("vgg")
    keys = convert.torch_places(model)[0]
    arrays = {key: np.ones(place.shape, np.float32) for key, place in keys.items()}
    config = {k: v for k, v in NARROW["vgg"][1].items() if k != "hidden"}
    again = models.from_torch("vgg", arrays, **config)
    assert nnx.split(again)[0] == nnx.split(model)[0]
    assert jax.tree.all(
        jax.tree.map(
            lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype),
            isnet.variables(again)[1],
            isnet.variables(model)[1],
        )
    )


# ---------------------------------------------------------------- inputs that are never negative


@pytest.mark.parametrize("name", NARROW)
def test_promised_inputs_are_never_negative(name):
    model = narrow(name)
    kinds = {path: layer.kind for path, layer in lrp.rule_layers(model)}
    promised = [path for path in kinds if re.fullmatch(model.rectified, path)]
    # Of the convolutions and dense layers all but the one that reads the image.
    weighted = {path for path, kind in kinds.items() if kind in ("conv", "dense")}
    assert set(promised) == weighted - {model.input_layer}
    seen = {}

    def remember(path, layer):
        call = type(layer).__call__

        class Watched(type(layer)):
            def __call__(self, x):
                seen[path] = float(x.min())
                return call(self, x)

        layer.__class__ = Watched

    for path, layer in lrp.rule_layers(model):
        if path in promised:
            remember(path, layer)
    model(jax.random.normal(jax.random.key(0), (2, 32, 32, 3)))
    assert set(seen) == set(promised) and min(seen.values()) >= 0


def test_a_promise_halves_the_rule_and_keeps_the_map():
    model = narrow("resnet_basic")
    composite = lrp.create("zplus")
    rules = {match.path: match.rule for match in composite.matches(model)}
    assert rules["stages/0/0/conv1"].nonnegative and not rules["stem"].nonnegative
    assert not rules["stages/0/0/add"].nonnegative
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    ours = lrp.explain(model, x, composite=composite).relevance
    model.rectified = None
    assert not any(getattr(match.rule, "nonnegative", False) for match in composite.matches(model))
    assert distance(ours, lrp.explain(model, x, composite=composite).relevance) <= 1e-5
