"""The reference cases that several test files compare with: networks, loaders, conventions."""

import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx

from isnet_jax.losses import HeatmapLoss
from isnet_jax.lrp.layers import AvgPool, Conv, Dense, MaxPool, ReLU

SETTINGS = {
    "flex_script": HeatmapLoss(1, 1, 0.9, 1, "l2"),
    "block_script": HeatmapLoss(1, 3, 0.9, 1, "l2"),
    "flex_class": HeatmapLoss(1, 1, 0, 1, "hybrid"),
    "block_class": HeatmapLoss(1, 3, 0.996, 10, "hybrid"),
}


class SeqCNN(nnx.Module):
    """Case (a): conv-ReLU-max-conv-BN-ReLU-avg-flatten-linear, flattened channels first."""

    input_layer = "conv0"
    input_relu = "relu0"
    output_layer = "fc"
    supervised = ("pool", "relu1")

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv0 = Conv(3, 8, (3, 3), padding=1, rngs=rngs)
        self.relu0 = ReLU()
        self.pool = MaxPool((2, 2))
        self.conv1 = Conv(8, 12, (3, 3), padding=1, use_bias=True, norm=True, rngs=rngs)
        self.relu1 = ReLU()
        self.average = AvgPool((2, 2))
        self.fc = Dense(768, 5, rngs=rngs)

    def __call__(self, x):
        x = self.pool(self.relu0(self.conv0(x)))
        x = self.average(self.relu1(self.conv1(x)))
        return self.fc(jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1))


# torch name -> our path
NAMES = {
    "0.weight": ("conv0", "kernel"),
    "0.bias": ("conv0", "bias"),
    "3.weight": ("conv1", "kernel"),
    "3.bias": ("conv1", "bias"),
    "4.weight": ("conv1", "norm", "scale"),
    "4.bias": ("conv1", "norm", "bias"),
    "8.weight": ("fc", "kernel"),
    "8.bias": ("fc", "bias"),
}
STATISTICS = {
    "4.running_mean": ("conv1", "norm", "mean"),
    "4.running_var": ("conv1", "norm", "var"),
}


def to_ours(array):
    """Torch weight to ours: (out, in, *window) to (*window, in, out)."""
    array = np.asarray(array, np.float64)
    return array if array.ndim < 2 else np.transpose(array, (*range(2, array.ndim), 1, 0))


def last(array):
    """Channels last."""
    return np.moveaxis(np.asarray(array, np.float64), -3, -1)


def error(ours, theirs):
    return np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs)


def batch_of(case):
    return {
        "image": jnp.asarray(last(case["x"])),
        "mask": jnp.asarray(last(case["mask"])),
        "label": jnp.asarray(case["labels"]),
    }


@functools.cache
def load(path):
    return dict(np.load(path))


def seq_cnn(golden):
    """(arrays, model) of case (a); to be called with float64 on."""
    case = load(golden / "isnet" / "case_a_seqcnn.npz")
    model = SeqCNN()
    for name, path in (NAMES | STATISTICS).items():
        variable = functools.reduce(getattr, path, model)
        variable.set_value(jnp.asarray(to_ours(case[f"w/{name}"])))
    return case, model
