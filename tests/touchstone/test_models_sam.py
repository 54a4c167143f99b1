"""SegVol and SAM-Adapter: the references' masks, what prompts change, what is trained."""

import gzip
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, traverse_util
from jax.extend.core import Var

from tests.touchstone.test_models import FAST, drawn, scales_of
from tests.touchstone.tiny_models import TINY, sides
from tests.touchstone.toy_prepared import plan, write_set
from touchstone_jax import tasks
from touchstone_jax.models import convert, count, create
from touchstone_jax.models.prompted import KINDS, drawn_prompts
from touchstone_jax.models.segvol import NOT_ASKED
from touchstone_jax.models.weights import into_state

NARROW = {"width": 48, "layers": 3, "heads": 4, "hidden": 96, "quality_hidden": 32}
DECODER = {"decoder_heads": 4, "decoder_hidden": 64, "aligned": False}
SAM = {
    "in_channels": 3,
    "side": 128,
    "encoder": "vit",
    "encoder_config": {"width": 48, "heads": 4, "depth": 2, "window": 3, "whole": (1,)},
    "width": 32,
    "heads": 4,
    "hidden": 64,
}


def compiled(model, call, *inputs):
    graphdef, state = nnx.split(model)
    program = jax.jit(lambda state, *inputs: call(nnx.merge(graphdef, state), *inputs))
    program = program.lower(state, *inputs).compile(compiler_options=FAST)
    return lambda *inputs: program(state, *inputs)


def amplified(model, pattern, factor):
    """With larger weights where the path matches: the drawn ones let little through."""
    graphdef, state = nnx.split(model)
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    for path in flat:
        if re.search(pattern, "/".join(map(str, path))):
            flat[path] = factor * flat[path]
    return nnx.merge(graphdef, traverse_util.unflatten_dict(flat))


def test_segvols_mask_for_a_box_and_a_name_is_the_references(golden):
    """Theirs are volumes (z, y, x)."""
    path = golden / "arch" / "segvol.npz"
    stored = convert.read_arrays(path)
    config = {"num_classes": 2, "patch": (32, 32, 8), "embeddings": stored["in/text_embedding"]}
    arrays = convert.read_arrays(path, "sd/")
    model = convert.from_torch("segvol", arrays, **config, **NARROW, **DECODER)
    box = stored["in/box"].reshape(1, 1, 2, 3)[..., ::-1].reshape(1, 1, 6)
    prompts = {**asked(1, 1, 0), "boxes": jnp.asarray(box), "boxed": jnp.ones((1, 1), bool)}
    x = jnp.asarray(stored["x"].transpose(0, 4, 3, 2, 1))
    expected = stored["logits"][0, 0].transpose(2, 1, 0)
    scale = np.abs(expected).max()

    def both(model, x, prompts):
        low, quality = model.masks_and_quality(x, prompts)
        return model(x, prompts), jax.image.resize(low, (1, 32, 32, 8, 1, 4), "trilinear"), quality

    made, masks, quality = compiled(model, both, x, prompts)(x, prompts)
    assert np.abs(made[0, ..., 1] - expected).max() <= 1e-5 * scale
    assert np.abs(masks[0, ..., 0, 0] - expected).max() <= 1e-5 * scale
    assert quality.shape == (1, 1, 4)
    for i in range(4):  # all are different, and so are their qualities
        for j in range(i):
            assert np.abs(masks[..., i] - masks[..., j]).max() > 1e-2 * scale
            assert abs(quality[0, 0, i] - quality[0, 0, j]) > 1e-3
    np.testing.assert_array_equal(model.text[...], stored["in/text_embedding"])


def test_an_originals_weights_leave_the_names_vectors(golden):
    vectors = np.random.default_rng(0).normal(size=(3, 48)).astype(np.float32)
    config = {"patch": (32, 32, 8), "embeddings": vectors, **NARROW, **DECODER}
    fresh = nnx.eval_shape(lambda: create("segvol", num_classes=4, rngs=nnx.Rngs(0), **config))
    params, rest = (nnx.to_pure_dict(part) for part in nnx.split(fresh, nnx.Param, ...)[1:])
    state = {"params": params, "rest": {**rest, "text": jnp.asarray(2 * vectors)}}
    file = golden / "arch" / "segvol.npz"
    made, said = into_state(state, {"name": "segvol", **config}, file, "sd/")
    np.testing.assert_array_equal(made["rest"]["text"], 2 * vectors)
    with np.load(file, allow_pickle=False) as arrays:
        stored = arrays["sd/mask_decoder.mask_tokens.weight"]
    np.testing.assert_array_equal(made["params"]["mask_decoder"]["mask_tokens"]["weight"], stored)
    assert "arrays of" in said and "hold nothing of their own" in said
    made, _ = into_state(state, {"name": "segvol", **config}, file, "sd/", 3 * vectors)
    np.testing.assert_array_equal(made["rest"]["text"], 3 * vectors)
    with pytest.raises(
        ValueError, match=r"vectors \(2, 48\) of names; the network reads \(3, 48\)"
    ):
        into_state(state, {"name": "segvol", **config}, file, "sd/", vectors[:2])


def test_sam_adapters_masks_are_the_references(golden):
    path = golden / "arch" / "sam_adapter_vit.npz"
    stored = convert.read_arrays(path)
    model = convert.from_torch("sam_adapter", convert.read_arrays(path, "sd/"), **SAM)
    x = jnp.asarray(np.moveaxis(stored["x"], 1, -1))
    call = compiled(model, lambda m, x: (m.masks(x), m.masks_and_quality(x)), x)
    made, (masks, quality) = call(x)
    expected = np.moveaxis(stored["logits"], 1, -1)
    assert np.abs(made - expected).max() <= 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(masks[..., 1:], made, rtol=1e-5, atol=1e-5)
    assert masks.shape == (1, 32, 32, 4) and quality.shape == (1, 4)


def full_size(golden, file):
    with gzip.open(golden / "arch" / "keys" / f"{file}.json.gz") as stored:
        return {key: tuple(shape) for key, (shape, _) in json.load(stored).items()}


def fitted(name, shapes, **config):
    arrays = {key: jax.ShapeDtypeStruct(shape, "float32") for key, shape in shapes.items()}
    return convert.fit(name, arrays, **config)


def test_segvol_has_all_of_the_published_parameters(golden):
    shapes = full_size(golden, "segvol_without_clip")
    # The list is without the text's half.
    shapes |= {"text_encoder.dim_align.weight": (768, 512), "text_encoder.dim_align.bias": (768,)}
    found = fitted("segvol", shapes, num_classes=10)
    assert len(found.places) + len(found.ignored) == len(shapes)
    assert all(key.split(".")[-2] == "norm_cross_attn" for key in found.ignored)  # later MONAI's
    aligned = 768 * 512 + 768
    assert count.size_of(found.model) - aligned == 117_330_128 and aligned == 393_984


def test_sam_adapter_has_all_of_the_published_parameters(golden):
    shapes = full_size(golden, "sam_adapter_mobile_vit_t")
    found = fitted("sam_adapter", shapes)
    assert len(found.places) + len(found.ignored) == len(shapes)
    assert all(key.endswith("num_batches_tracked") for key in found.ignored)
    assert count.size_of(found.model) == 11_640_499


# ---------------------------------------------------------------- prompts


def asked(batch, organs, points):
    shape = (batch, organs)
    return {
        "named": jnp.ones(shape, bool),
        "points": jnp.zeros((*shape, points, 3)),
        "signs": jnp.full((*shape, points), -1, jnp.int32),
        "boxes": jnp.zeros((*shape, 6)),
        "boxed": jnp.zeros(shape, bool),
    }


@pytest.fixture(scope="module")
def answer():
    """Prompts -> logits of the two organs of one image."""
    model, first = drawn("segvol"), asked(1, 2, 2)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 16, 8, 2)), jnp.float32)
    call = compiled(model, lambda m, x, p: m(x, p), x, first)
    return lambda **changes: np.asarray(call(x, {**first, **changes}))[0, ..., 1:]


def test_another_name_gives_another_mask(answer):
    made = answer()
    assert np.abs(made[..., 0] - made[..., 1]).max() > 1e-2
    one = answer(named=jnp.asarray([[True, False]]))
    np.testing.assert_allclose(one[..., 0], made[..., 0], rtol=1e-5, atol=1e-5)
    assert (one[..., 1] == NOT_ASKED).all()


def test_points_and_boxes_change_the_mask_of_their_organ_alone(answer):
    made, masks = answer(), []
    at, nowhere = jnp.zeros((1, 2, 2, 3)), jnp.full((1, 2, 2), -1, jnp.int32)
    for place, sign in (((2, 3, 1), 1), ((2, 3, 1), 0), ((9, 12, 5), 1)):
        points = at.at[0, 0, 0].set(jnp.asarray(place, jnp.float32))
        masks.append(answer(points=points, signs=nowhere.at[0, 0, 0].set(sign)))
    for first, box in ((0, (1, 2, 3, 9, 9, 6)), (0, (1, 2, 3, 9, 14, 6))):
        boxes = jnp.zeros((1, 2, 6)).at[0, first].set(jnp.asarray(box, jnp.float32))
        masks.append(answer(boxes=boxes, boxed=jnp.asarray([[True, False]])))
    for i, mask in enumerate(masks):
        np.testing.assert_allclose(mask[..., 1], made[..., 1], rtol=1e-5, atol=1e-5)
        for other in (made, *masks[:i]):
            assert np.abs(mask[..., 0] - other[..., 0]).max() > 1e-4
    alone = answer(named=jnp.zeros((1, 2), bool), points=at, signs=nowhere.at[0, 0, 0].set(1))
    assert np.abs(alone[..., 0]).max() > 1e-2 and (alone[..., 1] == NOT_ASKED).all()


def test_what_is_no_point_moves_nothing(answer):
    np.testing.assert_allclose(
        answer(points=jnp.full((1, 2, 2, 3), 7.0)), answer(), rtol=1e-5, atol=1e-5
    )


@pytest.fixture(scope="module")
def refined():
    """Masks as prompts -> all masks of the two organs of one image, and their qualities."""
    model = amplified(drawn("segvol"), "prompt_encoder.*kernel", 10)
    prompts = {**asked(1, 2, 0), "named": jnp.asarray([[True, False]])}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 16, 8, 2)), jnp.float32)
    low = jnp.zeros((1, 8, 8, 8, 2))

    def call(model, x, masks):
        return model.masks_and_quality(x, prompts, masks)

    run = compiled(model, call, x, low)
    return lambda masks: tuple(map(np.asarray, run(x, jnp.asarray(masks, jnp.float32))))


def test_a_mask_as_a_prompt_changes_all_masks_of_its_organ(refined):
    nothing = np.zeros((1, 8, 8, 8, 2))
    masks, quality = refined(nothing)
    assert masks.shape == (1, 8, 8, 8, 2, 4) and quality.shape == (1, 2, 4)
    assert (masks[..., 1, :] == NOT_ASKED).all() and (quality[:, 1] == NOT_ASKED).all()
    given = nothing.copy()
    given[0, 2:5, 1:4, 3, 0] = 9
    others = [refined(given), refined(given[:, ::-1]), refined(given.swapaxes(1, 2))]
    for i, (changed, told) in enumerate(others):
        for before, known in [(masks, quality), *others[:i]]:
            assert (np.abs(changed - before)[..., 0, :].max((0, 1, 2, 3)) > 1e-4).all()
            assert (np.abs(told - known)[0, 0] > 1e-5).all()
        assert (changed[..., 1, :] == NOT_ASKED).all()
    given[..., 1] = 5  # of an organ that is not asked for
    np.testing.assert_allclose(refined(given)[0], others[0][0], rtol=1e-5, atol=1e-5)


def test_a_mask_of_another_size_is_told():
    model = drawn("segvol")
    x = jnp.zeros((1, 16, 16, 8, 2))
    with pytest.raises(ValueError, match=r"masks \(1, 4, 8, 8, 2\); expected \(1, 8, 8, 8, 2\)"):
        model.masks_and_quality(x, masks=jnp.zeros((1, 4, 8, 8, 2)))


def test_training_asks_as_a_user_might():
    labels = np.zeros((6, 9, 8, 7), np.uint8)
    labels[:, 2:5, 3:7, 1:3] = 1
    labels[:, 5, 0, 6] = 3
    labels[:, 8, 7, 6] = 255
    draw = jax.jit(drawn_prompts, static_argnums=2)
    kinds = set()
    for seed in range(4):
        made = jax.tree.map(np.asarray, draw(jax.random.key(seed), jnp.asarray(labels), 3))
        assert made.points.shape == (6, 3, 21, 3)
        for b, organ in np.ndindex(6, 3):
            there = made.signs[b, organ]
            kind = (made.named[b, organ], (there >= 0).any(), made.boxed[b, organ])
            if organ == 1:
                assert kind == (True, False, False)
                continue
            kinds.add(tuple(map(int, kind)))
            at = made.points[b, organ].astype(int)
            found = labels[b][tuple(at.T)] == organ + 1
            assert found[there == 1].all() and not found[there == 0].any()
            assert not kind[1] or (1 <= (there == 1).sum() <= 11 and (there == 0).sum() <= 10)
            box = (2, 3, 1, 4, 6, 2) if organ == 0 else (5, 0, 6, 5, 0, 6)
            np.testing.assert_array_equal(made.boxes[b, organ], box)
    assert kinds == set(KINDS)


# Of transformers 5.24's "Segment Anything" in float64, on the weights, the tokens and the prompts
# of the test: by two points, and by those, a box and a mask: each mask's quality, then each mask at
# every 16th pixel of both axes.
POINTS = """
 0.88623  0.14594 -0.60294  0.01857 -0.04919  0.03126 -0.0292  -0.01675 -0.1692  -0.02173 -0.05074
-0.19559 -0.01922  0.05426  0.09322 -0.0704   0.16836  0.16519  0.18246  0.19095
"""
ALL = """
 0.91127 -0.00853 -0.61624  0.14064 -0.11386  0.02032 -0.03113 -0.04344 -0.15784 -0.02765 -0.00247
-0.17521 -0.03964  0.04126  0.13215 -0.12046  0.15015  0.1351   0.12616  0.18582
"""
SLICES = {
    "side": 128,
    "encoder": "vit",
    "encoder_config": {"width": 8, "heads": 1, "depth": 1, "window": 3, "whole": ()},
    "width": 32,
    "heads": 4,
    "hidden": 64,
    "quality_hidden": 24,
}


class Given(nnx.Module):
    """Tokens of an image that was looked at before."""

    def __init__(self, tokens):
        self.tokens = nnx.Variable(jnp.asarray(tokens, jnp.float32))

    def __call__(self, slices, run):
        return self.tokens[...]


@pytest.fixture(scope="module")
def segment_anything():
    """SAM-Adapter without its adapters, and with tokens for an image."""
    model = nnx.eval_shape(lambda: create("sam_adapter", num_classes=3, rngs=nnx.Rngs(0), **SLICES))
    places, rng = convert.torch_places(model), np.random.default_rng(0)
    graphdef, state = nnx.split(model)
    values = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    for key, place in sorted(places.items()):
        if key.startswith("image_encoder.") or "Adapter" in key:
            values[place.path] = jnp.zeros(values[place.path].shape)
            continue
        array = rng.normal(size=place.shape)
        array *= math.prod(place.shape[1:]) ** -0.5 if array.ndim > 1 else 0.3
        array += array.ndim == 1 and key.endswith("weight")
        values[place.path] = jnp.asarray(array.transpose(np.argsort(place.axes)), jnp.float32)
    model = nnx.merge(graphdef, traverse_util.unflatten_dict(values))
    rng = np.random.default_rng(1)
    model.image_encoder = Given(np.moveaxis(rng.normal(size=(1, 32, 8, 8)), 1, -1))
    mask = 3 * rng.normal(size=(1, 32, 32))
    return model, jnp.asarray(mask, jnp.float32)


@pytest.mark.parametrize(("expected", "everything"), [(POINTS, False), (ALL, True)])
def test_prompts_masks_and_qualities_are_segment_anythings(segment_anything, expected, everything):
    """Theirs are places (x, y); a pixel's row is y."""
    model, mask = segment_anything
    prompts = {
        "points": jnp.asarray([[[90.0, 30.0], [10.0, 64.0]]]),
        "signs": jnp.asarray([[1, 0]]),
    }
    if everything:
        prompts |= {"boxes": jnp.asarray([[40.0, 20.0, 110.0, 100.0]]), "masks": mask}
    x = jnp.zeros((1, 128, 128, 3))
    masks, quality = compiled(model, lambda m, x, p: m.masks_and_quality(x, **p), x, prompts)(
        x, prompts
    )
    picked = np.moveaxis(np.asarray(masks), -1, 1)[0, :, ::16, ::16].reshape(-1)
    found = np.concatenate([np.asarray(quality)[0], picked])
    np.testing.assert_allclose(found, np.array(expected.split(), float), atol=2e-5)


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ({"points": (1, 2, 2)}, "points and signs are given together"),
        ({"signs": (1, 2)}, "points and signs are given together"),
        ({"points": (1, 2, 3), "signs": (1, 2)}, r"points \(1, 2, 3\); expected \(1, 2, 2\)"),
        ({"boxes": (2, 4)}, r"boxes \(2, 4\); expected \(1, 4\)"),
        ({"masks": (1, 128, 128)}, r"masks \(1, 128, 128\); expected \(1, 32, 32\)"),
    ],
)
def test_prompts_that_do_not_fit_a_slice_are_told(segment_anything, prompts, said):
    model, _ = segment_anything
    given = {name: jnp.zeros(shape) for name, shape in prompts.items()}
    with pytest.raises(ValueError, match=said):
        model.masks_and_quality(jnp.zeros((1, 128, 128, 3)), **given)


def test_the_encoder_tells_what_a_picture_shows():
    encoder = drawn("sam_adapter").image_encoder
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 2)), jnp.float32)

    def both(encoder, x):
        told = encoder.classify(x)
        encoder.neck = lambda tokens: tokens
        return told, encoder(x)

    told, tokens = map(np.asarray, compiled(encoder, both, x)(x))
    mean = tokens.mean((1, 2))
    mean = (mean - mean.mean(-1, keepdims=True)) / np.sqrt(mean.var(-1, keepdims=True) + 1e-5)
    scale, shift, kernel, bias = (
        np.asarray(variable[...])
        for variable in (
            encoder.norm_head.scale,
            encoder.norm_head.bias,
            encoder.head.kernel,
            encoder.head.bias,
        )
    )
    assert told.shape == (2, 1000)
    np.testing.assert_allclose(told, (mean * scale + shift) @ kernel + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["segvol", "sam_adapter"])
def test_nothing_is_computed_or_trained_of_what_is_not_asked_for(name):
    model = drawn(name)
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params = nnx.to_pure_dict(params)
    x = jax.ShapeDtypeStruct((1, *sides(name), 2), jnp.float32)
    traced = jax.make_jaxpr(lambda p, x: scales_of(nnx.merge(graphdef, p, rest), x))(params, x)
    read = {v for equation in traced.jaxpr.eqns for v in equation.invars if isinstance(v, Var)}
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    unread = {p for p, v in zip(paths, traced.jaxpr.invars, strict=False) if v not in read}
    for part in ("mask_downscaling/", "iou_prediction_head/", "mlps/0/", "mlps/1/"):
        of_part = {p for p in paths if part in p}
        other = part == ("mlps/0/" if name == "segvol" else "mlps/1/")
        assert of_part and (not of_part & unread if other else of_part <= unread)
    assert all(re.search(model.frozen, path) for path in unread)


# ---------------------------------------------------------------- slices, and what is trained


@pytest.mark.parametrize("name", ["diff_unet", "segvol", "sam_adapter"])
def test_half_precision_makes_float32_logits_and_is_used(name):
    """Traced only, recomputed blocks among it, in both modes."""
    model = drawn(name, dtype="bfloat16", remat=True)
    x = jax.ShapeDtypeStruct((1, *sides(name), 2), jnp.float32)
    model.train()
    graphdef, state = nnx.split(model)
    traced = jax.make_jaxpr(lambda s, x: scales_of(nnx.merge(graphdef, s), x))(state, x)
    model.eval()
    made = nnx.eval_shape(lambda m, x: m(x), model, x)
    assert [a.dtype for a in traced.out_avals] == [made.dtype] == [jnp.float32]
    assert "bf16" in str(traced) and "remat" in str(traced)


def test_slices_are_looked_at_one_by_one():
    model = amplified(drawn("sam_adapter"), "image_encoder.*kernel", 3)
    x = np.random.default_rng(0).normal(size=(1, 12, 10, 3, 2)).astype(np.float32)
    call = compiled(model, lambda m, x: m(x), jnp.asarray(x))
    made = np.asarray(call(jnp.asarray(x)))
    assert made.shape == (1, 12, 10, 3, 3) and made.dtype == np.float32
    turned = np.asarray(call(jnp.asarray(x[..., ::-1, :].copy())))
    np.testing.assert_allclose(turned[..., ::-1, :], made, rtol=1e-4, atol=1e-4)
    x[..., 1, :] += 1
    changed = np.abs(np.asarray(call(jnp.asarray(x))) - made).max((0, 1, 2, 4))
    assert changed[1] > 1e-4 and max(changed[0], changed[2]) < 1e-5


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return tasks.Segmenter(
        optimizer=optax.adamw(1e-2, weight_decay=0.1),
        data=str(write_set(tmp_path_factory.mktemp("prepared"), 2, plan())),
        model={"name": "sam_adapter", **TINY["sam_adapter"]},
        patch=(16, 16, 1),
        augmentation={"preset": "none"},
        validation=("case_0",),
        ema=0.5,
    )


def moved(name):
    """Whether a parameter of SAM-Adapter is trained."""
    asked = not re.search("/iou_prediction_head/|_mlps/0/", name)
    return "_Adapter/" in name or (name.startswith("mask_decoder/") and asked)


def test_the_optimizer_keeps_nothing_of_what_is_frozen(task):
    state = jax.eval_shape(task.init, jax.random.key(0))
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state["params"]):
        moves = moved(jax.tree_util.keystr(path, simple=True, separator="/"))
        sizes[moves] = sizes.get(moves, 0) + leaf.size
    assert sizes[False] > 1000
    # Two moments of each parameter, and the number of steps.
    assert sum(leaf.size for leaf in jax.tree.leaves(state["opt_state"])) == 2 * sizes[True] + 1


@pytest.mark.slow
def test_only_adapters_and_decoder_move(task):
    batch = {
        "image": jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 1, 1)), "f4"),
        "labels": jnp.zeros((2, 16, 16, 1), jnp.uint8).at[:, 4:].set(1),
        "annotated": jnp.ones((2, 10), bool),
    }
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        before = jax.jit(task.init)(jax.random.key(0))
        step = jax.jit(task.step).lower(before, batch, jax.random.key(1))
        step = step.compile(compiler_options=FAST)
        after, values = step(step(before, batch, jax.random.key(1))[0], batch, jax.random.key(2))
    assert float(values["gradient_norm"]) > 0
    params = jax.tree_util.tree_leaves_with_path(before["params"])
    now, mean = (jax.tree.leaves(tree["params"]) for tree in (after, after["ema"]))
    for (path, old), new, kept in zip(params, now, mean, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        moves = moved(name)
        assert bool((old != new).any()) == moves, name
        assert moves or bool((kept == old).all()), name
    for old, new in zip(*(jax.tree.leaves(s["rest"]) for s in (before, after)), strict=True):
        np.testing.assert_array_equal(old, new)


# Of the original's TinyViT in float64, on the weights and the picture of the test: every 60th
# channel at every 30th row and 29th column, the first 24.
TINY_VIT = """
 0.55597  0.07656 -0.28996 -0.90848 -1.27385 -0.45693  0.07522 -0.82279 -0.17284 -0.98336 -1.78078
-1.05606 -1.78822  0.57781 -0.00651  0.00399 -0.48983 -1.10391 -1.11139 -1.25265  0.05886 -0.08036
-0.45332 -1.74628
"""


def picture():
    at = np.arange(1024) / 1024
    waves = [np.outer(np.cos(9 * at), np.sin(4 * at)), np.outer(at, at)]
    waves.append(np.outer(np.sin(200 * at), 1 - at))
    return jnp.asarray(3 * np.stack(waves, -1)[None], jnp.float32)


@pytest.mark.slow
def test_tiny_vit_is_the_originals():
    """Its last width must be 320 and its side 1024: the original knows no others."""
    config = {"widths": (8, 16, 20, 320), "depths": (1, 2, 1, 1), "heads": (1, 2, 2, 5)}
    model = nnx.eval_shape(
        lambda: create("sam_adapter", num_classes=2, encoder_config=config, rngs=nnx.Rngs(0))
    )
    places = convert.torch_places(model)
    graphdef, state = nnx.split(model.image_encoder)
    values, rng = traverse_util.flatten_dict(nnx.to_pure_dict(state)), np.random.default_rng(0)
    for key in sorted(key for key in places if key.startswith("image_encoder.")):
        shape = places[key].shape
        if re.search(r"\.(norm_)?head\.", key):  # for which the reference was not asked
            at = places[key].path[1:]
            values[at] = jnp.zeros(values[at].shape)
            continue
        drawn = rng.normal(size=shape)
        drawn *= 1.4 * math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.3
        if len(shape) == 1 and key.endswith("weight"):
            drawn += 1
        if len(shape) == 1 and key.endswith("bias"):
            drawn /= 4
        if key.endswith("attention_biases"):
            drawn *= 8
        if key.endswith("running_var"):
            drawn = np.abs(drawn) + 0.5
        drawn = drawn.transpose(np.argsort(places[key].axes))
        values[places[key].path[1:]] = jnp.asarray(drawn, jnp.float32)
    encoder = nnx.merge(graphdef, traverse_util.unflatten_dict(values))
    made = compiled(encoder, lambda m, x: m(x), picture())(picture())
    expected = np.array(TINY_VIT.split(), float)
    picked = np.moveaxis(np.asarray(made), -1, 1)[0, ::60, ::30, ::29].reshape(-1)[:24]
    np.testing.assert_allclose(picked, expected, atol=1e-4)
