"""Attribution scores against slow derivations, known answers, and every policy and refusal."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from isnet_jax import attribution, lrp, scores
from isnet_jax.models.simple_cnn import SimpleCNN
from touchstone_jax.metrics import dice

NAN = float("nan")
RNG = np.random.default_rng(0)
R = RNG.normal(size=(3, 4, 5, 2)).astype(np.float32)
MASK = (RNG.random((3, 4, 5, 1)) < 0.4).astype(np.uint8)

OF_THE_MAP = {
    "mass_in_mask": scores.mass_in_mask,
    "relevance_rank": scores.relevance_rank,
    "pointing_game": scores.pointing_game,
    "heatmap_mask_dsc": scores.heatmap_mask_dsc,
}
every_score = pytest.mark.parametrize("score", OF_THE_MAP.values(), ids=OF_THE_MAP)

# Logit 0 is a weighted sum of the four pixels, logit 1 is zero.
WEIGHTS = np.array([4.0, 1.0, 3.0, 2.0], np.float32)
ONES = np.ones((1, 2, 2, 1), np.float32)
MAP = WEIGHTS.reshape(1, 2, 2, 1)


def weighted(x: jax.Array) -> jax.Array:
    y = x.reshape(x.shape[0], -1) @ jnp.asarray(WEIGHTS, x.dtype)[:, None]
    return jnp.concatenate([y, jnp.zeros_like(y)], -1)


def _sigmoid(values: list[float]) -> np.ndarray:
    return 1 / (1 + np.exp(-np.array(values, np.float64)))


# ---------------------------------------------------------------- where the map lies


def test_mass_in_mask_by_hand() -> None:
    mask = MASK.copy()
    mask[1], mask[2] = 0, 1
    expected = []
    for b in range(3):
        inside = total = 0.0
        for y, x, c in np.ndindex(4, 5, 2):
            total += abs(float(R[b, y, x, c]))
            inside += abs(float(R[b, y, x, c])) * int(mask[b, y, x, 0])
        expected.append(inside / total)
    share = scores.mass_in_mask(R, mask)
    assert share.shape == (3,) and share.dtype == jnp.float32
    np.testing.assert_allclose(share, expected, rtol=1e-6)
    assert share[1] == 0 and share[2] == 1
    tiny = R * np.float32(1e-30)
    np.testing.assert_allclose(scores.mass_in_mask(tiny, mask), share, rtol=1e-5)
    half = scores.mass_in_mask(R, np.full((3, 4, 5, 1), 0.5))
    np.testing.assert_allclose(half, 0.5, rtol=1e-6)


@pytest.mark.parametrize("pool", scores.POOLS)
def test_relevance_rank_by_sorting(pool: str) -> None:
    value = {"sum": R.sum(-1), "abs": np.abs(R).sum(-1), "positive": np.maximum(R.sum(-1), 0)}[pool]
    expected = []
    for b in range(3):
        pixels = sorted(np.ndindex(4, 5), key=lambda p, b=b: -value[b][p])
        k = int(MASK[b].sum())
        least = value[b][pixels[k - 1]]
        assert pool != "positive" or least > 0 or b != 0
        above = [MASK[b][p][0] for p in pixels if value[b][p] > least]
        tied = [MASK[b][p][0] for p in pixels if value[b][p] == least]
        expected.append((sum(above) + (k - len(above)) * np.mean(tied)) / k)
    np.testing.assert_allclose(scores.relevance_rank(R, MASK, pool=pool), expected, rtol=1e-6)


def test_relevance_rank_shares_ties_out() -> None:
    relevance = np.array([3, 1, 1, 1, 1, 0], np.float32).reshape(1, 1, 6, 1)
    mask = np.array([1, 1, 0, 0, 0, 1]).reshape(1, 1, 6, 1)
    # Of 3 places, one is the 3 (inside); two go to four ties of which one is inside.
    expected = (1 + 2 * 1 / 4) / 3
    for order in (slice(None), slice(None, None, -1)):
        ours = scores.relevance_rank(relevance[:, :, order], mask[:, :, order])
        np.testing.assert_allclose(ours, [expected], rtol=1e-6)


def test_pointing_game_by_distance() -> None:
    for tolerance in (0.0, 1.0, 1.5, 2.0):
        expected = []
        for b in range(3):
            y, x = np.unravel_index(R[b].sum(-1).argmax(), (4, 5))
            near = [np.hypot(y - v, x - u) for v, u in zip(*MASK[b, ..., 0].nonzero(), strict=True)]
            expected.append(float(min(near) <= tolerance))
        ours = scores.pointing_game(R, MASK, tolerance=tolerance)
        np.testing.assert_array_equal(ours, expected)
    relevance = np.zeros((2, 1, 5, 1), np.float32)
    relevance[0, 0, 4], relevance[1, 0, 0] = 1, -2
    mask = np.array([1, 1, 0, 0, 0]).reshape(1, 1, 5, 1).repeat(2, 0)
    for tolerance, expected in ((2.9, [0, 0]), (3.0, [1, 1])):
        ours = scores.pointing_game(relevance, mask, tolerance=tolerance)
        # The second map's maximum is 0, first at pixel 1: inside.
        np.testing.assert_array_equal(ours, [expected[0], 1])
    np.testing.assert_array_equal(scores.pointing_game(relevance, mask, pool="abs"), [0, 1])


@pytest.mark.parametrize("quantile", [None, 0.7, 0.0])
@pytest.mark.parametrize("convention", ["deepmind", "touchstone"])
def test_heatmap_mask_dsc_by_threshold(quantile: float | None, convention: str) -> None:
    value, expected = np.maximum(R.sum(-1), 0), []
    for b in range(3):
        inside = MASK[b, ..., 0] > 0
        least = np.sort(value[b], None)[-inside.sum()]
        least = least if quantile is None else np.quantile(value[b], quantile)
        found = (value[b] >= least) & (value[b] > 0)
        expected.append(dice(found, inside, convention=convention))
    ours = scores.heatmap_mask_dsc(R, MASK, quantile=quantile, convention=convention)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert ours.min() > 0 and ours.max() < 1
    same = scores.heatmap_mask_dsc(MASK.astype(np.float32), MASK)
    np.testing.assert_array_equal(same, 1)


# ---------------------------------------------------------------- policies


@every_score
def test_policies_of_empty_masks_and_zero_maps(score: attribution.Function) -> None:
    relevance, mask = R.copy(), np.ones_like(MASK)
    relevance[1], mask[2] = 0, 0
    told = np.array(score(relevance, mask, empty_mask=-1.0, zero_map=-2.0))
    assert told[0] >= 0.5  # everything is inside
    np.testing.assert_array_equal(told[1:], [-2, -1])
    both = score(np.zeros_like(R), np.zeros_like(MASK), empty_mask=-1.0, zero_map=-2.0)
    np.testing.assert_array_equal(both, -2)
    default = score(relevance, mask)
    np.testing.assert_array_equal(
        default[1:],
        {
            scores.mass_in_mask: [NAN, 0],
            scores.heatmap_mask_dsc: [0, NAN],
        }.get(score, [NAN, NAN]),
    )


@every_score
def test_sick_maps_score_nan_and_nobody_else(score: attribution.Function) -> None:
    relevance = R.copy()
    relevance[0, 1, 1, 0], relevance[1, 0, 0, 1] = np.nan, np.inf
    ours = score(relevance, MASK)
    assert np.isnan(ours[:2]).all()
    assert ours[2] == score(R, MASK)[2]


@every_score
def test_jit_vmap_and_types(score: attribution.Function, x64: None) -> None:
    plain = score(R, MASK)
    assert plain.dtype == jnp.float32
    np.testing.assert_array_equal(jax.jit(score)(R, MASK), plain)
    stacked = jax.vmap(score)(R[:, None], MASK[:, None])[:, 0]
    np.testing.assert_allclose(stacked, plain, rtol=1e-6)
    double = score(R.astype(np.float64), MASK)
    assert double.dtype == jnp.float64
    np.testing.assert_allclose(double, plain, rtol=1e-5)
    half = score(R.astype(jnp.bfloat16), MASK.astype(bool))
    assert half.dtype == jnp.float32


@every_score
def test_shapes_and_types_refused(score: attribution.Function) -> None:
    one_dimensional = score(R[:, 0], MASK[:, 0] | 1)
    assert one_dimensional.shape == (3,)
    for mask in (MASK[..., 0], MASK[:, :3], np.repeat(MASK, 2, -1), MASK[:2]):
        with pytest.raises(ValueError, match=r"relevance \(3, 4, 5, 2\) and mask"):
            score(R, mask)
    with pytest.raises(ValueError, match="a map must be floating point, got int"):
        score(R.astype(np.int32), MASK)
    if score is not scores.mass_in_mask:
        with pytest.raises(ValueError, match="unknown pool 'summ'; did you mean 'sum'"):
            score(R, MASK, pool="summ")


def test_a_large_mask_in_half_precision() -> None:
    relevance = jnp.ones((1, 80, 80, 1), jnp.bfloat16)
    mask = jnp.zeros((1, 80, 80, 1)).at[:, :40].set(1)
    np.testing.assert_allclose(scores.relevance_rank(relevance, mask), [0.5])
    np.testing.assert_allclose(scores.mass_in_mask(relevance, mask), [0.5])


def test_quantile_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="quantile=1.5; must lie in"):
        scores.heatmap_mask_dsc(R, MASK, quantile=1.5)


# ---------------------------------------------------------------- deletion and insertion


def test_deletion_and_insertion_of_a_known_ranking() -> None:
    gone = scores.deletion_auc(weighted, ONES, MAP, 0, steps=4)
    curve = _sigmoid([10, 6, 3, 1, 0])  # pixels of weight 4, 3, 2, 1 leave in turn
    np.testing.assert_allclose(gone.curve, curve[None], rtol=1e-6)
    np.testing.assert_allclose(gone.auc, [np.trapezoid(curve, dx=1 / 4)], rtol=1e-6)
    come = scores.insertion_auc(weighted, ONES, MAP, 0, steps=4)
    np.testing.assert_allclose(come.curve, _sigmoid([0, 4, 7, 9, 10])[None], rtol=1e-6)
    wrong = scores.deletion_auc(weighted, ONES, -MAP, 0, steps=4)
    np.testing.assert_allclose(wrong.curve, _sigmoid([10, 9, 7, 4, 0])[None], rtol=1e-6)
    assert wrong.auc[0] > gone.auc[0]
    other = scores.deletion_auc(weighted, ONES, MAP, 1, steps=4)
    np.testing.assert_allclose(other.curve, 1 - gone.curve, atol=1e-6)


def test_unequal_chunks_channels_and_baseline() -> None:
    rng = np.random.default_rng(4)
    x, relevance = rng.normal(size=(2, 2, 5, 3)), rng.normal(size=(2, 2, 5, 2))
    x, relevance = x.astype(np.float32), relevance.astype(np.float32)
    w = rng.normal(size=(30, 4)).astype(np.float32)
    f = lambda x: x.reshape(x.shape[0], -1) @ w  # noqa: E731
    cover = rng.normal(size=(3,)).astype(np.float32)
    changed = [0, 3, 7, 10]
    for score in (scores.deletion_auc, scores.insertion_auc):
        ours = jax.jit(partial(score, f, steps=3, baseline=cover))(x, relevance)
        for b in range(2):
            c = int(np.argmax(f(x)[b]))
            order = np.argsort(-relevance[b].sum(-1).ravel(), kind="stable")
            curve = []
            for n in changed:
                flat, covered = x[b].reshape(10, 3).copy(), order[:n]
                if score is scores.insertion_auc:
                    covered = order[n:]
                flat[covered] = cover
                logits = flat.ravel() @ w
                curve.append(np.exp(logits[c]) / np.exp(logits).sum())
            np.testing.assert_allclose(ours.curve[b], curve, rtol=2e-5)
            area = np.trapezoid(curve, np.array(changed) / 10)
            np.testing.assert_allclose(ours.auc[b], area, rtol=2e-5)


def test_deletion_edges() -> None:
    one = scores.deletion_auc(lambda x: weighted(x)[:, :1], ONES, MAP, steps=1)
    np.testing.assert_array_equal(one.auc, [1])
    pair, maps = np.repeat(ONES, 2, 0), np.concatenate([MAP, 0 * MAP])
    auc = scores.deletion_auc(weighted, pair, maps, steps=2).auc
    assert np.isfinite(auc[0]) and np.isnan(auc[1])
    assert scores.deletion_auc(weighted, pair, maps, steps=2, zero_map=0.5).auc[1] == 0.5
    assert np.isnan(scores.insertion_auc(weighted, ONES, MAP * np.nan, steps=2).auc).all()
    unknown = jax.jit(lambda t: scores.deletion_auc(weighted, pair, maps, t, steps=2))
    assert np.isnan(unknown(np.array([-1, 2])).curve).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"steps": 0}, "steps=0; must lie in 1..4"),
        ({"steps": 5}, "steps=5; must lie in 1..4"),
        ({"target": 2}, "target has a class outside 0..1: 2"),
        ({"baseline": np.zeros(3)}, "does not broadcast to x"),
        ({"pool": "max"}, "unknown pool 'max'"),
        ({"relevance": MAP[..., 0]}, r"relevance \(1, 2, 2\) and x"),
        ({"relevance": MAP.astype(int)}, "a map must be floating point, got int"),
        ({"x": ONES.astype(int)}, "x must be floating point"),
    ],
)
def test_perturbation_refuses(options: dict, told: str) -> None:
    for score in (scores.deletion_auc, scores.insertion_auc):
        with pytest.raises(ValueError, match=told):
            score(weighted, **{"x": ONES, "relevance": MAP, "steps": 2, **options})


# ---------------------------------------------------------------- sensitivity


def test_max_sensitivity_by_loop() -> None:
    key = jax.random.key(7)
    run = jax.jit(lambda k: scores.max_sensitivity(jnp.square, R, rng=k, samples=5, radius=0.3))

    @jax.vmap
    def draw(i: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, i), R.shape, R.dtype, -1, 1)

    worst = np.zeros(3)
    for u in np.asarray(jax.jit(draw)(jnp.arange(5))):
        change = ((R + np.float32(0.3) * u) ** 2 - R**2).reshape(3, -1)
        size = np.linalg.norm((R**2).reshape(3, -1), axis=1)
        worst = np.maximum(worst, np.linalg.norm(change, axis=1) / size)
    np.testing.assert_allclose(run(key), worst, rtol=1e-5)


def test_max_sensitivity_of_constant_zero_and_sick_maps() -> None:
    run = partial(scores.max_sensitivity, x=R, rng=jax.random.key(0), samples=2)
    np.testing.assert_array_equal(run(lambda x: jnp.ones_like(x)), 0)
    assert np.isnan(run(lambda x: jnp.zeros_like(x))).all()
    np.testing.assert_array_equal(run(lambda x: jnp.zeros_like(x), zero_map=9.0), 9)
    # Zero at x, NaN beside it.
    assert np.isnan(run(lambda x: jnp.where(x == R, 0.0, jnp.nan), zero_map=9.0)).all()
    with pytest.raises(ValueError, match="samples=0; must be at least 1"):
        run(jnp.square, samples=0)


# ---------------------------------------------------------------- parameter randomisation


def test_rank_correlation_is_spearman() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(4, 6, 5)).round(1).astype(np.float32)
    b = (a + rng.normal(size=a.shape)).round(0).astype(np.float32)
    a[3] = 2.0
    ours = scores.rank_correlation(a, b)
    for i in range(3):
        slow = stats.spearmanr(a[i].ravel(), b[i].ravel()).statistic
        np.testing.assert_allclose(ours[i], slow, rtol=1e-5)
    assert np.isnan(ours[3])
    assert scores.rank_correlation(a, b, constant_map=0.0)[3] == 0
    np.testing.assert_allclose(scores.rank_correlation(a[:3], -a[:3]), -1, rtol=1e-6)
    sick = a.copy()
    sick[0, 0, 0] = np.nan
    assert np.isnan(scores.rank_correlation(sick, b)[0])
    with pytest.raises(ValueError, match="expected one shape"):
        scores.rank_correlation(a, b[:2])


PARAMS = {
    "top": {"kernel": np.linspace(1, 2, 4).astype(np.float32)},
    "blocks": {0: {"kernel": RNG.normal(size=(4, 4)).astype(np.float32), "count": np.int32(3)}},
}


def _map(params: dict, x: jax.Array) -> jax.Array:
    """Order of the map: the bottom's alone, scaled by the top's sum."""
    return (x @ params["blocks"][0]["kernel"]) * params["top"]["kernel"].sum()


def test_randomisation_cascades_from_the_top() -> None:
    x = np.random.default_rng(2).normal(size=(3, 5, 5, 4)).astype(np.float32)

    @jax.jit
    def run(key: jax.Array, other: jax.Array) -> list[jax.Array]:
        one = partial(scores.parameter_randomisation, _map, PARAMS, x)
        return [
            one(rng=key, layers=("top", "blocks/0")),
            one(rng=key),
            one(rng=key, layers=("blocks", "top")),
            one(rng=other),
            one(rng=key, how="normal"),
        ]

    cascade, everything, upwards, other, normal = run(jax.random.key(0), jax.random.key(1))
    assert cascade.shape == (2, 3)
    # Shuffled, the top keeps its sum; then the bottom changes the map.
    np.testing.assert_allclose(cascade[0], 1, atol=1e-3)
    assert (np.abs(cascade[1]) < 0.9).all()
    np.testing.assert_allclose(everything, cascade[1:], atol=1e-3)
    np.testing.assert_allclose(upwards[0], cascade[1], atol=1e-3)
    assert not np.allclose(other, everything, atol=1e-3)
    assert (np.abs(normal) < 0.95).all()


def test_randomisation_does_what_it_says_to_the_arrays() -> None:
    seen = []

    def spy(params: dict, x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda p: seen.append(p), params)
        return _map(params, x)

    x = np.ones((1, 2, 2, 4), np.float32)
    run = partial(scores.parameter_randomisation, spy, PARAMS, x, rng=jax.random.key(0))
    jax.block_until_ready(run())
    jax.effects_barrier()
    before, after = (tree["blocks"][0] for tree in seen)
    assert not np.array_equal(before["kernel"], after["kernel"])
    np.testing.assert_array_equal(np.sort(before["kernel"], None), np.sort(after["kernel"], None))
    assert before["count"] == after["count"] == 3


def test_randomisation_of_absolute_and_constant_maps() -> None:
    x = np.random.default_rng(3).normal(size=(2, 3, 3, 4)).astype(np.float32)
    params = {"w": jnp.array([1.0, -1.0])}
    flip = lambda p, x: jnp.where(p["w"][0] > 0, x, -x)  # noqa: E731
    flat = lambda p, x: jnp.ones_like(x) * p["w"][0]  # noqa: E731

    @jax.jit
    @jax.vmap
    def run(key: jax.Array) -> list[jax.Array]:
        one = partial(scores.parameter_randomisation, params=params, x=x, rng=key)
        return [one(flip), one(flip, absolute=True), one(flat), one(flat, constant_map=0.0)]

    signed, absolute, constant, stated = run(jax.random.split(jax.random.key(0), 8))
    # A shuffle of two weights either keeps them or turns the map over.
    np.testing.assert_allclose(np.unique(signed.round(5)), [-1, 1])
    np.testing.assert_allclose(absolute, 1, rtol=1e-6)
    assert np.isnan(constant).all()
    np.testing.assert_array_equal(stated, 0)


def test_lrp_maps_of_a_network_are_traced_through() -> None:
    model = SimpleCNN(
        num_classes=3, in_channels=2, widths=(3,), pooled=2, norm=False, rngs=nnx.Rngs(0)
    )
    composite = lrp.create("epsilon")
    view = composite.view(model)
    view.eval()
    graphdef, state = nnx.split(view)
    terminal = composite.terminal(model)

    def maps(state: dict, x: jax.Array) -> jax.Array:
        f = lambda x: (nnx.merge(graphdef, state)(x), None)  # noqa: E731
        return lrp.relevance(f, x, lrp.Logit(), terminal=terminal).relevance[:, 0]

    @jax.jit
    def kept(state: dict, x: jax.Array, key: jax.Array) -> jax.Array:
        layers = ("classifier", "blocks/0")
        return scores.parameter_randomisation(maps, state, x, rng=key, layers=layers)

    x = RNG.normal(size=(2, 6, 6, 2)).astype(np.float32)
    correlation = kept(nnx.to_pure_dict(state), x, jax.random.key(1, impl="rbg"))
    assert correlation.shape == (2, 2) and (correlation < 0.9).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"layers": ("bottom",)}, "no parameter under 'bottom'; there are: blocks/0/count"),
        ({"layers": ("to",)}, "no parameter under 'to'"),
        ({"layers": ()}, "layers=.*; expected a sequence of paths"),
        ({"layers": "top"}, "layers='top'; expected a sequence of paths"),
        ({"how": "shufle"}, "did you mean 'shuffle'"),
    ],
)
def test_randomisation_refuses(options: dict, told: str) -> None:
    x = np.ones((1, 2, 2, 4), np.float32)
    with pytest.raises(ValueError, match=told):
        scores.parameter_randomisation(_map, PARAMS, x, rng=jax.random.key(0), **options)
