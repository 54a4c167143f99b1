"""CLIP's text tower and its words: transformers' numbers, both layouts of weights, bad files."""

import gzip
import json
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from touchstone_jax.models import count, text
from touchstone_jax.models.catalogue import CATALOGUE
from touchstone_jax.models.clip_text import ClipText, embed, name_vectors, read_tower
from touchstone_jax.models.clip_tokens import END, ORIGINAL, START, Vocabulary, read_vocabulary

# 86 pairs that were merged most often in a few sentences, and what transformers 5.24 makes of texts
# with the vocabulary that follows from them.
WORDS = json.loads(
    (Path(__file__).parents[1] / "data" / "clip_tokens.json").read_text(encoding="utf-8")
)
SIZE = 600


def written(folder, header="#version: 0.2", pairs=WORDS["merges"]):
    folder.mkdir(exist_ok=True)
    (folder / "merges.txt").write_text("\n".join([header, *pairs, ""]), encoding="utf-8")
    return folder / "merges.txt"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return read_vocabulary(written(tmp_path_factory.mktemp("words")), SIZE)


# ---------------------------------------------------------------- words


def test_texts_have_the_numbers_of_transformers(vocabulary):
    assert len(vocabulary) == SIZE and len(WORDS["texts"]) > 50
    for said, numbers in WORDS["texts"]:
        assert vocabulary.encode(said) == numbers, said


def test_a_vocabulary_comes_in_three_forms(tmp_path, vocabulary):
    said = "A computerized tomography of the patient's Left Kidney"
    numbers = vocabulary.encode(said)
    packed = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    lines = [f'"{ORIGINAL}.txt#version: 0.2', *WORDS["merges"], "more pairs", "than are", "used ."]
    packed.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert read_vocabulary(packed, SIZE).encode(said) == numbers
    # With numbers of its own: transformers' two files, here in the opposite order.
    merges = [tuple(pair.split()) for pair in WORDS["merges"]]
    theirs = {token: SIZE - 1 - n for token, n in Vocabulary(merges)._numbers.items()}
    written(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(theirs), encoding="utf-8")
    assert read_vocabulary(tmp_path, SIZE).encode(said) == [SIZE - 1 - n for n in numbers]


def test_every_byte_has_a_number(vocabulary):
    every = "".join(map(chr, range(0x21, 0x250)))
    numbers = vocabulary.encode(every)
    assert (numbers[0], numbers[-1]) == (SIZE - 2, SIZE - 1) == tuple(vocabulary.encode(""))
    assert len(set(numbers)) > 150 and max(numbers[1:-1]) < SIZE - 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("no.txt", None, "no.txt: no such file"),
        ("words.json", b"{}", "words.json: a vocabulary must be a .txt or .txt.gz file"),
        ("a.txt", b"#version\na b\nc\n", "a.txt: no list of byte pairs, two to a line"),
        ("a.txt", b"", "a.txt: no list of byte pairs"),
        ("a.txt", b"\xff\xfe\n", "a.txt: no list of byte pairs"),
        ("a.txt.gz", b"no gzip", "a.txt.gz: no list of byte pairs"),
        ("a.txt", b"#version\na b\n", "1 pairs make a vocabulary of 515 tokens; the weights have"),
        ("", b"[1]", "vocab.json: expected token -> number"),
        ("", b"{", "Expecting"),
        ("", json.dumps({START: 0, END: 0}).encode(), "numbers of 2 tokens; expected 0, 1, … once"),
        ("", json.dumps({START: 0, END: 1}).encode(), "no number for the token '!'"),
    ],
)
def test_a_bad_vocabulary_is_told(tmp_path, name, content, said):
    written(tmp_path)
    if content is not None:
        (tmp_path / (name or "vocab.json")).write_bytes(content)
    error = FileNotFoundError if content is None else ValueError
    with pytest.raises(error, match=re.escape(said)) as told:
        read_vocabulary(tmp_path / name, SIZE)
    assert "\n" not in str(told.value) and str(tmp_path) in str(told.value)


# ---------------------------------------------------------------- the tower

# Of transformers 5.24 in float64 on the weights of the test: every 16th channel behind the last
# norm, and every 8th of the projection, of these texts.
TEXTS = (
    "A computerized tomography of a liver.",
    "A computerized tomography of a left kidney",
    "",
    "the patient's stomach 12",
)
POOLED = """
-0.06084 -0.43014  1.76409  1.98915  1.69342 -0.80361  0.94337  0.46878 -0.9753  -0.59676  2.65709
 0.19524  0.93876  0.15247 -0.50663  0.18     0.54021 -0.55042  1.51343  1.10534  0.34916  0.49413
-0.21426  0.77915 -0.68964 -0.69822  2.17932 -0.38532  1.70235  0.28071 -0.43107  0.23756
"""
PROJECTED = """
 1.00664 -1.86453  2.34316 -0.00166  0.29468 -0.51584  0.58378  0.18459  0.15626 -0.88122  3.29611
-1.29011  0.99776 -0.9603   0.45669  0.72424
"""
WIDTH, HIDDEN, CONTEXT, PROJECTION = 128, 192, 64, 32


def transformers_weights():
    """Key in transformers' layout -> array."""
    shapes = {
        "text_model.embeddings.token_embedding.weight": (SIZE, WIDTH),
        "text_model.embeddings.position_embedding.weight": (CONTEXT, WIDTH),
        "text_projection.weight": (PROJECTION, WIDTH),
    }
    linear = {f"self_attn.{part}_proj": (WIDTH, WIDTH) for part in ("q", "k", "v", "out")}
    linear |= {"mlp.fc1": (HIDDEN, WIDTH), "mlp.fc2": (WIDTH, HIDDEN)}
    for block in ("encoder.layers.0.", "encoder.layers.1."):
        for name, shape in linear.items():
            shapes[f"text_model.{block}{name}.weight"] = shape
            shapes[f"text_model.{block}{name}.bias"] = shape[:1]
    norms = [f"encoder.layers.{i}.layer_norm{j}" for i in (0, 1) for j in (1, 2)]
    for name in (*norms, "final_layer_norm"):
        shapes |= {f"text_model.{name}.{part}": (WIDTH,) for part in ("weight", "bias")}
    rng, arrays = np.random.default_rng(0), {}
    for key, shape in sorted(shapes.items()):
        array = rng.normal(size=shape)
        array *= math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.3
        array *= 6 if "embedding" in key else 1
        array += len(shape) == 1 and key.endswith("weight")
        arrays[key] = array.astype(np.float32)
    return arrays


def openai_weights(arrays):
    """The same in OpenAI's layout."""
    found = {
        "token_embedding.weight": arrays["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": arrays["text_model.embeddings.position_embedding.weight"],
        "text_projection": arrays["text_projection.weight"].T,
    }
    for part in ("weight", "bias"):
        found[f"ln_final.{part}"] = arrays[f"text_model.final_layer_norm.{part}"]
        for i in (0, 1):
            there, here = f"text_model.encoder.layers.{i}.", f"transformer.resblocks.{i}."
            qkv = [arrays[f"{there}self_attn.{p}_proj.{part}"] for p in "qkv"]
            found[f"{here}attn.in_proj_{part}"] = np.concatenate(qkv)
            for ours, theirs in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                found[f"{here}{ours}.{part}"] = arrays[f"{there}{theirs}.{part}"]
    return found


@pytest.fixture(scope="module")
def weights():
    return transformers_weights()


@pytest.fixture(scope="module")
def tower(weights):
    return read_tower(weights)


@pytest.mark.parametrize(
    ("projected", "expected", "step"), [(False, POOLED, 16), (True, PROJECTED, 8)]
)
def test_vectors_are_those_of_transformers(tower, vocabulary, projected, expected, step):
    made = embed(tower, vocabulary, TEXTS, projected=projected)
    assert made.shape == (4, PROJECTION if projected else WIDTH) and made.dtype == np.float32
    np.testing.assert_allclose(
        made[:, ::step].reshape(-1), np.array(expected.split(), float), atol=2e-5
    )


def same(one, other):
    leaves = zip(*(jax.tree.leaves(nnx.state(tower)) for tower in (one, other)), strict=True)
    return all(bool((a == b).all()) for a, b in leaves)


def test_all_layouts_are_read_and_the_rest_of_the_file_is_not(weights, tower):
    pictures = {"visual.proj": np.zeros(3), "logit_scale": np.ones(())}
    assert same(read_tower({**openai_weights(weights), **pictures}), tower)
    short = {key.removeprefix("text_model."): array for key, array in weights.items()}
    assert same(read_tower(short), tower)
    more = {"text_model.embeddings.position_ids": np.arange(CONTEXT)[None]}
    inside = {f"text_encoder.clip_text_model.{k}": v for k, v in (weights | more).items()}
    assert same(read_tower({**inside, "text_encoder.dim_align.weight": np.ones(2)}), tower)
    half = {key: array.astype(np.float16) for key, array in openai_weights(weights).items()}
    assert read_tower(half).token_embedding.weight.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token_embedding.weight": None}, "0 text towers of CLIP"),
        ({"b.token_embedding.weight": np.zeros((2, 2))}, "2 text towers of CLIP"),
        ({"positional_embedding": None}, "no tables of tokens and positions, or no block 0"),
        ({"transformer.resblocks.0.mlp.c_fc.weight": None}, "no block 0"),
        ({"ln_final.bias": None}, "does not fit text tower: missing keys: norm.bias"),
        ({"transformer.x": np.ones(2)}, "unexpected keys: transformer.x"),
        ({"ln_final.bias": np.ones(3)}, "wrong shapes: norm.bias (3,) instead of (128,)"),
        ({"ln_final.bias": np.full(128, np.nan)}, "norm.bias has NaN or infinite values"),
        ({"transformer.resblocks.0.attn.in_proj_bias": None}, "missing keys: blocks.0.attn.qkv"),
        ({"token_embedding.weight": np.zeros((9, 100))}, "width=100; expected a multiple of 64"),
    ],
)
def test_weights_that_are_no_tower_are_told(weights, change, said):
    arrays = {k: v for k, v in (openai_weights(weights) | change).items() if v is not None}
    with pytest.raises(ValueError, match=re.escape(said)) as told:
        read_tower(arrays)
    assert "\n" not in str(told.value)


def test_texts_that_do_not_fit_a_tower_are_told(tower, vocabulary):
    with pytest.raises(ValueError, match=r"66 tokens of the text 'q q .*'; expected at most 64"):
        embed(tower, vocabulary, ["q " * 64], projected=False)
    assert embed(tower, vocabulary, ["q " * 62], projected=False).shape == (1, WIDTH)
    assert embed(tower, vocabulary, [], projected=False).shape == (0, WIDTH)
    with pytest.raises(ValueError, match=r"a vocabulary of 514 tokens; the weights have 600"):
        embed(tower, Vocabulary([]), ["a"], projected=False)
    bare = read_tower({k: v for k, v in transformers_weights().items() if "projection" not in k})
    with pytest.raises(ValueError, match=r"no projection; its weights have no 'text_projection'"):
        embed(bare, vocabulary, ["a"], projected=True)


# ---------------------------------------------------------------- names of organs


def test_names_are_said_as_people_say_them():
    names = ("adrenal_gland_left", "kidney_right", "gall_bladder", "liver", "left")
    expected = ["left adrenal gland", "right kidney", "gall bladder", "liver", "left"]
    assert [text.spoken(name) for name in names] == expected


@pytest.mark.parametrize(
    ("network", "sentence", "projected"),
    [
        ("segvol", "A computerized tomography of a {}.", False),
        ("unet_clip", "A computerized tomography of a {}", True),
        ("swin_unetr_clip", "A computerized tomography of a {}", True),
    ],
)
def test_a_file_of_vectors_is_made_in_the_networks_words(
    tmp_path, weights, tower, vocabulary, network, sentence, projected
):
    organs = ("liver", "kidney_left")
    np.savez(tmp_path / "clip.npz", **{f"model.{key}": array for key, array in weights.items()})
    target = tmp_path / "names.npz"
    made = name_vectors(
        {"name": network}, tmp_path / "clip.npz", "model.", written(tmp_path), organs, target
    )
    said = [sentence.format("liver"), sentence.format("left kidney")]
    expected = embed(tower, vocabulary, said, projected=projected)
    np.testing.assert_array_equal(made.embeddings, expected)
    read = text.read_embeddings(target, 2, ("kidney_left", "liver"))
    np.testing.assert_array_equal(read, expected[::-1])
    assert made.alone


def test_other_weights_in_the_file_are_seen(tmp_path, weights):
    arrays = {**openai_weights(weights), "visual.proj": np.zeros(3, np.float32)}
    for more, alone in (({}, True), ({"mask_decoder.x": np.zeros(3)}, False)):
        np.savez(tmp_path / "clip.npz", **arrays, **more)
        files = (tmp_path / "clip.npz", "", written(tmp_path), ("liver",), tmp_path / "names.npz")
        assert name_vectors({"name": "unet_clip"}, *files).alone == alone


def test_networks_without_names_are_told(tmp_path):
    files = (tmp_path / "no.npz", "", tmp_path / "no.txt", ("liver",), tmp_path / "names.npz")
    with pytest.raises(
        ValueError, match=r"'unet' reads no names; those that do: unet_clip, segvol"
    ):
        name_vectors({"name": "unet"}, *files)
    with pytest.raises(ValueError, match=r"no names of organs for the network 'segvol'"):
        name_vectors({"name": "segvol"}, *files[:3], (), files[4])


# ---------------------------------------------------------------- what it all counts


def test_segvols_parts_make_up_the_published_count():
    def size(**config):
        return count.size_of(nnx.eval_shape(lambda: ClipText(rngs=nnx.Rngs(0), **config)))

    tower, aligned = size(), 512 * 768 + 768
    assert tower == 63_165_952 and size(projected=512) - tower == 262_144
    row = CATALOGUE["segvol"]
    assert (row.parameters - aligned, row.tower) == (117_330_128, tower)
    assert row.parameters + row.tower == 117_330_128 + 63_165_952 + 393_984 == 180_890_064
    assert abs((row.parameters + row.tower) / 1e6 - row.printed) < 0.15
