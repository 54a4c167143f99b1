"""Models by name, and the way from torchvision's state dicts to them."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isnet_jax import models


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


@pytest.mark.parametrize("name", list(models.MODELS))
def test_create_maps_images_to_logits(name):
    model = models.create(name, num_classes=7, in_channels=1, rngs=nnx.Rngs(0))
    model.eval()
    out = jax.eval_shape(lambda x: model(x), jax.ShapeDtypeStruct((2, 32, 32, 1), jnp.float32))
    assert out.shape == (2, 7) and out.dtype == jnp.float32


def test_create_says_what_is_wrong():
    with pytest.raises(ValueError, match="unknown model 'resnet81'.*did you mean 'resnet18'"):
        models.create("resnet81", num_classes=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="resnet18.*widht"):
        models.create("resnet18", num_classes=2, rngs=nnx.Rngs(0), widht=3)
    with pytest.raises(ValueError, match="unknown stem 'tiny'.*imagenet.*small"):
        models.create("resnet18", num_classes=2, rngs=nnx.Rngs(0), stem="tiny")
    with pytest.raises(ValueError, match="num_classes=0"):
        models.create("simple_cnn", num_classes=0, rngs=nnx.Rngs(0))


def test_small_stem_keeps_the_resolution():
    model = models.create("resnet18", num_classes=2, width=4, stem="small", rngs=nnx.Rngs(0))
    model.eval()
    stem = jax.eval_shape(model.stem, jax.ShapeDtypeStruct((1, 28, 28, 3), jnp.float32))
    assert stem.shape == (1, 28, 28, 4) and model.pool is None


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


def test_from_torch_takes_all_of_torchvisions_resnet18(golden):
    path = golden / "arch" / "keys" / "tv_resnet18.json.gz"
    keys = json.loads(gzip.decompress(path.read_bytes()))
    arrays = {key: np.zeros(shape, dtype) for key, (shape, dtype) in keys.items()}
    model = models.from_torch("resnet18", arrays)
    count = sum(v.size for v in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert count == 11_689_512


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer1.0.bn1.bias": None}, "nothing for: stages/0/0/conv1/norm/bias"),
        ({"layer1.2.conv1.weight": np.zeros((4, 4, 3, 3))}, "unexpected keys: layer1.2.conv1"),
        ({"fc.bias": np.zeros(4)}, r"wrong shapes: fc.bias \(4,\) for classifier/bias \(5,\)"),
        ({"conv1.weight": None}, "'conv1.weight' is missing"),
        ({"surprise": np.zeros(1)}, "unexpected keys: surprise"),
    ],
)
def test_from_torch_names_what_does_not_fit(changes, said):
    with pytest.raises(ValueError, match=said):
        models.from_torch("resnet18", small_dict(**changes))


def test_from_torch_knows_its_models():
    with pytest.raises(ValueError, match="no torch converter for 'vgg11'.*resnet18"):
        models.from_torch("vgg11", {})
