"""Which layer gets which rule, and what is said when the table or a name is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isnet_jax.lrp import (
    INPUT,
    INPUT_RELU,
    PRESETS,
    ZB,
    Composite,
    Epsilon,
    Pass,
    ZPlus,
    create,
)
from isnet_jax.lrp.composite import rule_layers
from isnet_jax.lrp.layers import BatchNorm, Conv, Dense, ReLU
from isnet_jax.models.resnet import ResNet
from isnet_jax.models.simple_cnn import SimpleCNN


@pytest.fixture(scope="module")
def cnn() -> SimpleCNN:
    return SimpleCNN(num_classes=3, widths=(2, 3), pooled=1, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def resnet() -> ResNet:
    build = lambda: ResNet(num_classes=2, depths=(1, 1), width=2, rngs=nnx.Rngs(0))  # noqa: E731
    return nnx.eval_shape(build)


def _rules(composite: Composite, model: nnx.Module) -> dict:
    return {match.path: match.rule for match in composite.matches(model)}


# ---------------------------------------------------------------- matching


def test_layers_come_in_path_order_without_folded_norms(cnn, resnet) -> None:
    assert [path for path, _ in rule_layers(cnn)] == [
        "average",
        "blocks/0",
        "blocks/1",
        "classifier",
        "pools/0",
        "relus/0",
        "relus/1",
    ]
    paths = dict(rule_layers(resnet))
    assert "stages/0/0/conv1" in paths
    assert "stages/1/0/shortcut" in paths
    assert not any(path.endswith("norm") for path in paths)
    assert [p for p, _ in rule_layers(nnx.eval_shape(lambda: _Normed()))] == ["inner", "norm"]


class _Normed(nnx.Module):
    """A norm that stands alone, under the same name as a folded one."""

    def __init__(self) -> None:
        self.inner = Conv(1, 2, (1, 1), rngs=nnx.Rngs(0))
        self.norm = BatchNorm(2, rngs=nnx.Rngs(0))


def test_first_match_wins(cnn) -> None:
    rules = [Epsilon(0.1 * i) for i in range(1, 6)]
    composite = Composite(
        (
            ("blocks/1", rules[0]),
            ("blocks/.*", rules[1]),
            (Dense, rules[2]),
            ("kind:relu", rules[3]),
            (".*", rules[4]),
        )
    )
    assert _rules(composite, cnn) == {
        "average": rules[4],
        "blocks/0": rules[1],
        "blocks/1": rules[0],
        "classifier": rules[2],
        "pools/0": rules[4],
        "relus/0": rules[3],
        "relus/1": rules[3],
    }


def test_types_patterns_and_defaults(cnn) -> None:
    composite = Composite(((nnx.Conv, Epsilon(0.1)), ("classifier", Pass())))
    rules = _rules(composite, cnn)
    assert rules["blocks/0"] == rules["blocks/1"] == Epsilon(0.1)  # subclasses count
    assert rules["relus/0"] == rules["pools/0"] == rules["average"] == Pass()  # no weights
    # A regular expression must match the whole path.
    with pytest.raises(ValueError, match="gives no rule to 2 weighted"):
        Composite((("block", Pass()), ("classifier", Pass()))).matches(cnn)


def test_roles_of_the_input(cnn, resnet) -> None:
    composite = Composite(((INPUT, ZB()), (INPUT_RELU, Epsilon(0.5)), (".*", Pass())))
    for model, first, relu in ((cnn, "blocks/0", "relus/0"), (resnet, "stem", "relu")):
        rules = _rules(composite, model)
        assert [path for path, rule in rules.items() if rule == ZB()] == [first]
        assert [path for path, rule in rules.items() if rule == Epsilon(0.5)] == [relu]
        assert composite.terminal(model)
    assert not Composite(((".*", Pass()),)).terminal(cnn)
    with pytest.raises(ValueError, match="rule for @input, but _Normed has no attribute 'input"):
        composite.matches(nnx.eval_shape(lambda: _Normed()))


def test_presets_fit_the_models(cnn, resnet) -> None:
    for name in PRESETS:
        options = {"rows": (("kind:conv", "zplus"), (".*", "pass"))} if name == "table" else {}
        for model in (cnn, resnet):
            matches = create(name, **options).matches(model)
            assert [m.path for m in matches] == [path for path, _ in rule_layers(model)]
    flex = _rules(create("isnet_flex_zb", epsilon=0.02, low=-1.0), resnet)
    assert flex["stem"] == ZB(-1.0, 1.0, 0.02)
    assert flex["relu"] == flex["pool"] == flex["classifier"] == Pass()
    assert flex["stages/0/0/relu1"] == flex["stages/1/0/relu2"] == Epsilon(0.02)
    block = _rules(create("isnet_epsilon_zb"), resnet)
    assert block["stem"] == ZB()
    assert block["relu"] == Pass()
    assert block["pool"] == block["stages/0/0/add"] == block["classifier"] == Epsilon()
    half = ZPlus(nonnegative=True)
    assert set(_rules(create("zplus"), resnet).values()) == {ZPlus(), half, Pass()}
    assert create("isnet_flex", statistics="through").statistics == "through"


def test_report_has_every_layer(resnet) -> None:
    text = create("isnet_flex_zb").report(resnet)
    lines = text.splitlines()
    assert lines[0].split() == ["layer", "kind", "rule", "by"]
    assert [line.split()[0] for line in lines[1:]] == [path for path, _ in rule_layers(resnet)]
    (stem,) = [line for line in lines if line.startswith("stem")]
    assert "conv" in stem
    assert "ZB(low=0.0" in stem
    assert stem.endswith("@input")
    assert Composite(((ReLU, Pass()), (".*", Pass()))).report(resnet).count("ReLU") >= 4


# ---------------------------------------------------------------- mistakes


def test_unmatched_weighted_layer(resnet) -> None:
    with pytest.raises(ValueError, match="no rule to 1 weighted layer.*classifier .dense.") as e:
        Composite((("kind:conv", Epsilon()), ("kind:relu", Pass())), name="mine").matches(resnet)
    assert "'mine'" in str(e.value)
    assert "kind:conv" in str(e.value)
    assert "kind:relu" in str(e.value)


def test_path_that_matches_nothing(cnn) -> None:
    with pytest.raises(ValueError, match="pattern 'bloks/0' matches no layer of SimpleCNN") as e:
        Composite((("bloks/0", Epsilon()), (".*", Pass()))).matches(cnn)
    assert "blocks/0" in str(e.value)
    # Shadowed by an earlier entry is a slip too; kinds and types may be absent.
    with pytest.raises(ValueError, match="pattern 'blocks/0' matches no layer"):
        Composite(((".*", Pass()), ("blocks/0", Epsilon()))).matches(cnn)
    Composite((("kind:add", Epsilon()), (BatchNorm, Epsilon()), (".*", Pass()))).matches(cnn)


@pytest.mark.parametrize(("kind", "rule"), [("relu", ZPlus()), ("dense", ZB()), ("avg_pool", ZB())])
def test_rule_in_the_wrong_place(kind: str, rule, cnn) -> None:
    with pytest.raises(ValueError) as error:
        Composite(((f"kind:{kind}", rule), (".*", Pass()))).matches(cnn)
    if kind == "dense":  # defined for it, but not at the input
        assert "may only stand at the input layer 'blocks/0', not at 'classifier'" in str(error)
    else:
        assert f"{type(rule).__name__} is not defined for layer" in str(error)
        assert f"of kind '{kind}'; it exists for {sorted(rule.kinds)}" in str(error)


def test_malformed_tables() -> None:
    with pytest.raises(TypeError, match="entry '.*': 'epsilon' is not an LRP rule"):
        Composite(((".*", "epsilon"),))
    with pytest.raises(TypeError, match="is not an LRP rule"):
        Composite(((".*", Epsilon),))
    with pytest.raises(
        ValueError, match="unknown composite statistics 'frozen'; legal values: detach, through"
    ):
        Composite((), statistics="frozen")


def test_unknown_names_give_the_nearest_and_all() -> None:
    with pytest.raises(ValueError, match="composite 'isnet_flx'; did you mean 'isnet_flex'") as e:
        create("isnet_flx")
    assert all(name in str(e.value) for name in PRESETS)
    with pytest.raises(ValueError, match="legal values: epsilon, isnet_epsilon_zb"):
        create("qqq")
    with pytest.raises(ValueError, match="option of composite 'epsilon' 'epsilom'; did you mean"):
        create("epsilon", epsilom=0.1)


# ---------------------------------------------------------------- views


def test_view_leaves_the_model_alone(cnn) -> None:
    before, state = nnx.split(cnn)
    pure = nnx.to_pure_dict(state)
    copies = jax.tree.map(np.array, pure)
    view = create("isnet_epsilon_zb").view(cnn)
    view.eval()
    after, same = nnx.split(cnn)
    assert before == after
    assert hash(before) == hash(after)
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, pure, nnx.to_pure_dict(same)))
    assert view.blocks[0].rule == ZB()
    assert cnn.blocks[0].rule is None
    # The same values under other Variables: writing through the view does not reach the model.
    mine = {id(v) for _, v in nnx.iter_graph(cnn) if isinstance(v, nnx.Variable)}
    theirs = {id(v) for _, v in nnx.iter_graph(view) if isinstance(v, nnx.Variable)}
    assert mine
    assert not mine & theirs
    view.classifier.kernel[...] = jnp.zeros_like(view.classifier.kernel[...])
    view.train()
    view(jnp.ones((2, 4, 4, 1)))
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(cnn)), copies)
    # A view of a view starts from its own table.
    assert Composite(((".*", Pass()),)).view(view).blocks[0].rule == Pass()


def test_view_carries_the_statistics_mode(cnn) -> None:
    for mode in ("detach", "through"):
        view = Composite(((".*", Pass()),), mode).view(cnn)
        assert [block.norm.statistics for block in view.blocks] == [mode, mode]
    assert cnn.blocks[0].norm.statistics == "detach"


def test_view_computes_the_same_in_both_modes_of_batch_norm(cnn) -> None:
    x = jnp.asarray(np.random.default_rng(0).random((3, 4, 4, 1)), jnp.float32)
    graphdef, state = nnx.split(cnn)
    pure = nnx.to_pure_dict(state)
    for mode in ("train", "eval"):
        plain = nnx.merge(graphdef, pure)
        view = create("zplus").view(plain)
        for model in (plain, view):
            getattr(model, mode)()
        np.testing.assert_array_equal(plain(x), view(x))
        mean = plain.blocks[0].norm.mean[...]
        np.testing.assert_array_equal(mean, view.blocks[0].norm.mean[...])
        assert (np.asarray(mean) != 0).any() == (mode == "train")
    # Biased variance, in the value and in the running average.
    layer = BatchNorm(1, momentum=0.9, rngs=nnx.Rngs(0))
    layer.train()
    z = np.asarray(layer(x))
    expected = (x - x.mean()) / np.sqrt(np.var(x) + 1e-5)
    np.testing.assert_allclose(z, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.var[...], 0.9 + 0.1 * np.var(x), rtol=1e-5)
    np.testing.assert_allclose(layer.mean[...], 0.1 * x.mean(), rtol=1e-5)


def test_a_terminal_rule_needs_to_know_the_input_layer() -> None:
    class Anonymous(nnx.Module):
        def __init__(self) -> None:
            self.dense = Dense(3, 2, rngs=nnx.Rngs(0))

    with pytest.raises(ValueError, match="ZB at 'dense'.*input_layer"):
        Composite(((".*", ZB()),)).view(Anonymous())


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("kind:rellu", "unknown layer kind.*'rellu'.*did you mean 'relu'"),
        ("@imput", "unknown role.*'@imput'.*did you mean '@input'"),
        ("blocks/(", "'blocks/\\(' is no regular expression"),
    ],
)
def test_a_mistyped_pattern_is_named(pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Composite(((pattern, Pass()), (".*", Pass())))


def test_rules_are_made_without_touching_a_device() -> None:
    # Under a trace any JAX computation in a constructor would be caught as one on tracers.
    jax.make_jaxpr(lambda x: x * ZB(low=(0.0, 0.1), high=(1.0, 1.0), bias="cancel").epsilon)(1.0)
    with pytest.raises(ValueError, match="3 channels and ZB.high 2"):
        ZB(low=(0.0,) * 3, high=(1.0,) * 2, bias="cancel")
