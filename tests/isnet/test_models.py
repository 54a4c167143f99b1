"""Models by name, and the way from torchvision's state dicts to them."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from isnet_jax import models
from isnet_jax.models import convert


def small_dict(**changes):
    """A torchvision-named state dict of a narrow ResNet-18, random."""
    rng = np.random.default_rng(0)
    arrays = {"conv1.weight": rng.normal(size=(4, 3, 7, 7))}
    arrays |= norm("bn1", 4, rng)
    channels = 4
    for stage in range(4):
        out = 4 * 2**stage
        for block in range(2):
            base = f"layer{stage + 1}.{block}"
            arrays[f"{base}.conv1.weight"] = rng.normal(size=(out, channels, 3, 3))
            arrays[f"{base}.conv2.weight"] = rng.normal(size=(out, out, 3, 3))
            arrays |= norm(f"{base}.bn1", out, rng) | norm(f"{base}.bn2", out, rng)
            if channels != out:
                arrays[f"{base}.downsample.0.weight"] = rng.normal(size=(out, channels, 1, 1))
                arrays |= norm(f"{base}.downsample.1", out, rng)
            channels = out
    arrays["fc.weight"] = rng.normal(size=(5, channels))
    arrays["fc.bias"] = rng.normal(size=5)
    return {k: v for k, v in (arrays | changes).items() if v is not None}


def norm(name, size, rng):
    return {
        f"{name}.weight": rng.normal(size=size),
        f"{name}.bias": rng.normal(size=size),
        f"{name}.running_mean": rng.normal(size=size),
        f"{name}.running_var": rng.random(size) + 0.5,
        f"{name}.num_batches_tracked": np.array(7),
    }


# Published parameter counts of torchvision's models with 1000 classes.
COUNTS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "densenet121": 7_978_856,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "vgg11": 132_863_336,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
    "squeezenet1_1": 1_235_496,
    "vit_b_16": 86_567_656,
}


SLOW = ("densenet169", "densenet201")  # flax traces hundreds of initialisers


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in COUNTS]
)
def test_models_have_as_many_parameters_as_torchvisions(name):
    model = nnx.eval_shape(lambda: models.create(name, num_classes=1000, rngs=nnx.Rngs(0)))
    assert sum(v.size for v in jax.tree.leaves(nnx.state(model, nnx.Param))) == COUNTS[name]


def test_every_model_is_counted():
    assert set(models.MODELS) - set(COUNTS) == {"simple_cnn", "resnet", "densenet", "vgg", "vit"}


def test_create_says_what_is_wrong():
    with pytest.raises(ValueError, match="unknown model 'resnet81'.*did you mean 'resnet18'"):
        models.create("resnet81", num_classes=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="resnet18.*widht"):
        models.create("resnet18", num_classes=2, rngs=nnx.Rngs(0), widht=3)
    with pytest.raises(ValueError, match="unknown stem 'tiny'.*imagenet.*small"):
        models.create("resnet18", num_classes=2, rngs=nnx.Rngs(0), stem="tiny")
    for widths in ((), (0,), ("a",)):
        with pytest.raises(ValueError, match="widths=.*must be integers >= 1, at least one"):
            models.create("simple_cnn", num_classes=2, widths=widths, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="pooled=0; must be at least 1"):
        models.create("simple_cnn", num_classes=2, pooled=0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="num_classes=0"):
        models.create("simple_cnn", num_classes=0, rngs=nnx.Rngs(0))


def test_small_stem_keeps_the_resolution():
    @jax.eval_shape
    def stem():
        model = models.create("resnet18", num_classes=2, width=4, stem="small", rngs=nnx.Rngs(0))
        assert model.pool is None
        return model.stem(jnp.zeros((1, 28, 28, 3)))

    assert stem.shape == (1, 28, 28, 4)


def test_from_torch_places_every_array():
    arrays = small_dict()
    model = models.from_torch("resnet18", arrays)
    assert model.stem.kernel.shape == (7, 7, 3, 4)
    np.testing.assert_allclose(
        model.stages[2][0].shortcut.kernel[...],
        np.transpose(arrays["layer3.0.downsample.0.weight"], (2, 3, 1, 0)),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        model.stages[1][1].conv2.norm.var[...], arrays["layer2.1.bn2.running_var"], rtol=1e-6
    )
    np.testing.assert_allclose(model.classifier.kernel[...], arrays["fc.weight"].T, rtol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet50", "densenet121", "vgg11", "vgg11_bn", "vgg16", "vgg16_bn"],
)
def test_every_key_of_torchvisions_models_has_a_place(name, golden):
    packed = (golden / "arch" / "keys" / f"tv_{name}.json.gz").read_bytes()
    keys = json.loads(gzip.decompress(packed))
    shapes = {key: jax.ShapeDtypeStruct(shape, dtype) for key, (shape, dtype) in keys.items()}
    model, places, _, _ = convert.fit(name, shapes)
    arrays = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    paths = set(traverse_util.flatten_dict(nnx.to_pure_dict(arrays)))
    assert {place.path for place in places.values()} == paths and len(places) == len(paths)


def test_from_torch_copies_what_it_is_given():
    arrays = {k: v.astype(np.float32) for k, v in small_dict().items()}
    model = models.from_torch("resnet18", arrays)
    before = np.array(model.classifier.bias[...])
    arrays["fc.bias"][:] = 0
    np.testing.assert_array_equal(model.classifier.bias[...], before)


def test_from_torch_reads_the_old_names_of_densenet():
    config = {"depths": (1, 1), "growth": 4, "stem_width": 8, "num_classes": 2}
    model = nnx.eval_shape(lambda: models.create("densenet", **config, rngs=nnx.Rngs(0)))
    arrays = {k: np.full(p.shape, 2.0) for k, p in convert.torch_places(model)[0].items()}
    new = "features.denseblock2.denselayer1.norm1.weight"
    old = new.replace("norm1", "norm.1")
    renamed = {old if k == new else k: v for k, v in arrays.items()}
    model = models.from_torch("densenet", renamed, depths=(1, 1))
    assert model.blocks[1][0].norm1.scale[...].tolist() == [2.0] * 6
    with pytest.raises(ValueError, match="denselayer1.norm1.weight is there twice"):
        models.from_torch("densenet", {**arrays, old: arrays[new]}, depths=(1, 1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer1.0.bn1.bias": None}, "missing keys: layer1.0.bn1.bias"),
        ({"layer1.2.conv1.weight": np.zeros((4, 4, 3, 3))}, "unexpected keys: layer1.2.conv1"),
        ({"fc.bias": np.zeros(4)}, r"wrong shapes: fc.bias \(4,\) instead of \(5,\)"),
        ({"conv1.weight": None}, "missing keys: conv1.weight"),
        ({"surprise": np.zeros(1)}, "unexpected keys: surprise"),
        ({"x.num_batches_tracked": np.zeros(())}, "unexpected keys: x.num_batches_tracked"),
    ],
)
def test_from_torch_names_what_does_not_fit(changes, said):
    with pytest.raises(ValueError, match=said):
        models.from_torch("resnet18", small_dict(**changes))


def test_from_torch_knows_its_models():
    with pytest.raises(ValueError, match="unknown model with torch weights 'simple_cnn'.*resnet18"):
        models.from_torch("simple_cnn", {})
