"""Full-size originals: every key of theirs has its place in ours; shapes alone, no numbers."""

import gzip
import json

import jax
import pytest

from touchstone_jax.models import convert, count
from touchstone_jax.models.catalogue import CATALOGUE

# File -> network, arguments that the keys do not tell, keys that hold nothing of their own.
LISTS = {
    "clip_unet": ("unet_clip", {}, 42),
    "diffunet": ("diff_unet", {}, 0),
    "medformer_kits": ("medformer", {}, 0),
    "uctransnet_3d_48": ("uctransnet", {}, 21),
    "unetr_fs32": ("unetr", {}, 24),
    "swin_unetr_v2": ("swin_unetr", {}, 8),
    "clip_swinunetr": ("swin_unetr_clip", {}, 8),
    "unest_base": ("unest", {}, 0),
}


@pytest.mark.parametrize("file", LISTS)
def test_every_key_of_a_full_size_original_is_used_or_known(golden, file):
    name, config, ignored = LISTS[file]
    with gzip.open(golden / "arch" / "keys" / f"{file}.json.gz") as stored:
        shapes = {key: shape for key, (shape, _) in json.load(stored).items()}
    arrays = {key: jax.ShapeDtypeStruct(tuple(shape), "float32") for key, shape in shapes.items()}
    found = convert.fit(name, arrays, **config)
    assert len(found.ignored) == ignored and len(found.places) + ignored == len(arrays)
    assert count.size_of(found.model) == CATALOGUE[name].parameters
