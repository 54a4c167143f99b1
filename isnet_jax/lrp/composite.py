"""Composites: ordered tables ``pattern -> rule`` over the layers of a model.

A composite is applied to a *view* of the model: the same variables, other static metadata. The
model itself is never touched, its checkpoints never change, and inference runs the plain program.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

from flax import nnx

from isnet_jax.legal import call, check, unknown
from isnet_jax.lrp.rules import (
    CPLRP,
    RULES,
    ZB,
    AlphaBeta,
    AttnLRP,
    Epsilon,
    Flat,
    Gamma,
    Norm,
    Pass,
    Rule,
    ZPlus,
)

INPUT = "@input"
"""Pattern for the layer that reads the image: the path in the model's attribute `input_layer`."""

INPUT_RELU = "@input_relu"
"""Pattern for the ReLU right after it: the path in the model's attribute `input_relu`."""

OUTPUT = "@output_layer"
"""Pattern for the layer that makes the logits: the path in `output_layer`."""

BEFORE_NORM = "@before_norm"
"""Pattern for layers whose output goes into a norm of its own: the model's regular expression
`before_norm`, none if it has no such attribute. Such a pair is one linear map: the norm stabilises.
"""

ROLES = {
    INPUT: "input_layer",
    INPUT_RELU: "input_relu",
    OUTPUT: "output_layer",
    BEFORE_NORM: "before_norm",
}

WEIGHTED = ("conv", "dense", "norm")
"""Layer kinds that must be matched by some entry; the others default to `Pass`."""


@dataclasses.dataclass(frozen=True)
class Match:
    """One layer of a model and the rule it got: slash path, kind, rule, and the entry's pattern."""

    path: str
    kind: str
    rule: Rule
    pattern: str


@dataclasses.dataclass(frozen=True)
class Composite:
    """An ordered table of (pattern, rule); the first match wins.

    A pattern is one of `ROLES`, a layer kind written ``"kind:conv"``, a layer class, or a
    regular expression that must match the whole slash path, e.g. ``"stages/0/.*"``.

    Attributes:
        entries: the table.
        statistics: "detach" (BatchNorm's batch statistics are constants of the map: LRP) or
            "through" (the original LRP-Flex in training mode; not LRP).
        name: for reports.
    """

    entries: tuple[tuple[str | type, Rule], ...]
    statistics: str = "detach"
    name: str = "custom"

    def __post_init__(self) -> None:
        check("composite statistics", self.statistics, ("detach", "through"))
        for pattern, rule in self.entries:
            if not isinstance(rule, Rule):
                raise TypeError(f"composite entry {pattern!r}: {rule!r} is not an LRP rule")
            if isinstance(pattern, str):
                _check_pattern(pattern)
            elif not isinstance(pattern, type):
                raise TypeError(f"composite pattern {pattern!r} must be a string or a layer class")

    def matches(self, model: nnx.Module) -> list[Match]:
        """The rule of every layer, in path order.

        Raises:
            ValueError: a weighted layer matches nothing or is no layer of ours; an entry matches
                nothing although it names a path, or LRP-Flex's ReLUs; a rule does not exist for a
                layer's kind; or a terminal rule stands elsewhere than at the input layer.
        """
        self._check_foreign(model)
        roles = self._roles(model)
        found, unmatched = [], []
        for path, layer in rule_layers(model):
            entry = next((e for e in self.entries if _hit(e[0], path, layer, roles)), None)
            if entry is None and layer.kind in WEIGHTED:
                unmatched.append(f"{path} ({layer.kind})")
                continue
            pattern, rule = entry or ("default", Pass())
            rule = _promised(rule, path, model)
            _check(rule, path, layer, roles.get(INPUT))
            shown = pattern if isinstance(pattern, str) else pattern.__name__
            found.append(Match(path, layer.kind, rule, shown))
        if unmatched:
            raise ValueError(
                f"composite {self.name!r} gives no rule to {len(unmatched)} weighted layer(s): "
                f"{', '.join(unmatched)}; its patterns are {[str(p) for p, _ in self.entries]}"
            )
        self._check_idle(found, model)
        return found

    def view(self, model: nnx.Module) -> nnx.Module:
        """A model over copies of the same variables, with this composite's rules attached.

        Raises:
            ValueError: see `matches`.
        """
        rules = {match.path: match.rule for match in self.matches(model)}
        graphdef, state = nnx.split(model)
        twin = nnx.merge(graphdef, nnx.to_pure_dict(state))
        for path, layer in rule_layers(twin):
            layer.rule = rules[path]
        for _, module in nnx.iter_modules(twin):
            if hasattr(module, "statistics"):
                module.statistics = self.statistics
        return twin

    def terminal(self, model: nnx.Module) -> bool:
        """Whether the pulled-back cotangent is the relevance itself (a terminal input rule)."""
        return any(match.rule.terminal for match in self.matches(model))

    def report(self, model: nnx.Module) -> str:
        """A table of what matched: path, kind, rule, pattern."""
        rows = [("layer", "kind", "rule", "by")]
        rows += [(m.path, m.kind, str(m.rule), m.pattern) for m in self.matches(model)]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(line.rstrip() for line in lines)

    def _roles(self, model: nnx.Module) -> dict[str, str]:
        """The paths that the model declares for the ``@`` patterns."""
        roles = {}
        for pattern, attribute in ROLES.items():
            path = getattr(model, attribute, None)
            if path is not None:
                roles[pattern] = path
            elif pattern != BEFORE_NORM and any(p == pattern for p, _ in self.entries):
                raise ValueError(
                    f"composite {self.name!r} has a rule for {pattern}, but "
                    f"{type(model).__name__} has no attribute {attribute!r}; set it to that "
                    "layer's path or use the path as the pattern"
                )
        return roles

    def _check_foreign(self, model: nnx.Module) -> None:
        """Refuses layers that cannot carry a rule: their derivative would pass for one."""
        if all(isinstance(rule, Pass) for _, rule in self.entries):
            return
        strangers = foreign_layers(model)
        if strangers:
            raise ValueError(
                f"composite {self.name!r}: {', '.join(strangers)} cannot carry a rule; "
                "explain isnet_jax.lrp.attach(model, composite) instead"
            )

    def _check_idle(self, found: list[Match], model: nnx.Module) -> None:
        used = {match.pattern for match in found}
        if any(p == "kind:relu" for p, _ in self.entries) and "kind:relu" not in used:
            raise ValueError(
                f"composite {self.name!r} has its rule at ReLUs, but {type(model).__name__} has no "
                "layer of kind 'relu'; isnet_jax.lrp.flex treats ReLUs that are functions"
            )
        for pattern, _ in self.entries:
            # Kinds and types may be absent from a model; a path that is absent is a slip.
            general = (".*", BEFORE_NORM)
            path = isinstance(pattern, str) and not pattern.startswith("kind:")
            if path and pattern not in general and pattern not in used:
                raise ValueError(
                    f"composite {self.name!r}: pattern {pattern!r} matches no layer of "
                    f"{type(model).__name__}; its layers are {[p for p, _ in rule_layers(model)]}"
                )


class RuleLayer(Protocol):
    """A layer that can carry a rule.

    Attributes:
        kind: what the layer computes, one of `Pass.kinds`.
        rule: how relevance crosses it; None: by the plain derivative.
    """

    kind: str
    rule: Rule | None


def rule_layers(model: nnx.Module) -> Iterator[tuple[str, RuleLayer]]:
    """The (slash path, layer) pairs of a model that can carry a rule, in path order.

    A norm folded into its `Conv` is part of that unit and not listed.
    """
    found: dict[str, Any] = {"/".join(map(str, path)): m for path, m in nnx.iter_modules(model)}
    for path in sorted(found):
        parent = found.get(path.rpartition("/")[0])
        folded = path.rpartition("/")[2] == "norm" and hasattr(parent, "rule")
        if hasattr(found[path], "rule") and not folded:
            yield path, found[path]


def foreign_layers(model: nnx.Module) -> list[str]:
    """'path (type)' of the modules that hold a weight, an array of two axes or more, and no rule.

    A folded norm is its convolution's.
    """
    return [
        f"{'/'.join(map(str, path)) or 'the model itself'} ({type(module).__name__})"
        for path, module in nnx.iter_modules(model)
        if not hasattr(module, "rule")
        and (_is_flax(module) or any(map(_is_weight, vars(module).values())))
    ]


def _is_flax(module: nnx.Module) -> bool:
    """A layer of flax with parameters, however few."""
    holds = any(isinstance(value, nnx.Param) for value in vars(module).values())
    return holds and type(module).__module__.startswith("flax.")


def _is_weight(value: Any) -> bool:
    return isinstance(value, nnx.Param) and len(value.shape) >= 2


def _check_pattern(pattern: str) -> None:
    kind = pattern.removeprefix("kind:")
    if kind != pattern and kind not in Pass.kinds:
        raise unknown("layer kind in a composite", kind, sorted(Pass.kinds))
    if pattern.startswith("@") and pattern not in ROLES:
        raise unknown("role in a composite", pattern, ROLES)
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"composite pattern {pattern!r} is no regular expression: {error}"
        ) from None


def _hit(pattern: str | type, path: str, layer: RuleLayer, roles: dict[str, str]) -> bool:
    if isinstance(pattern, type):
        return isinstance(layer, pattern)
    if pattern == BEFORE_NORM:
        return BEFORE_NORM in roles and re.fullmatch(roles[BEFORE_NORM], path) is not None
    if pattern.startswith("@"):
        return path == roles.get(pattern)
    if pattern.startswith("kind:"):
        return layer.kind == pattern.removeprefix("kind:")
    return re.fullmatch(pattern, path) is not None


def _promised(rule: Rule, path: str, model: nnx.Module) -> Rule:
    """Rules of signed inputs cost twice those of inputs that the model says are never negative."""
    rectified = getattr(model, "rectified", None)
    if rectified is None or not hasattr(rule, "nonnegative") or not re.fullmatch(rectified, path):
        return rule
    return dataclasses.replace(cast(Any, rule), nonnegative=True)


def _check(rule: Rule, path: str, layer: RuleLayer, input_path: str | None) -> None:
    if layer.kind not in rule.kinds:
        raise ValueError(
            f"rule {type(rule).__name__} is not defined for layer {path!r} of kind "
            f"{layer.kind!r}; it exists for {sorted(rule.kinds)}"
        )
    if rule.terminal and input_path is None:
        raise ValueError(
            f"rule {type(rule).__name__} at {path!r} ends the propagation, so the model must say "
            "which layer reads the image: set its attribute input_layer to that layer's path"
        )
    if rule.terminal and path != input_path:
        raise ValueError(
            f"rule {type(rule).__name__} ends the propagation and may only stand at the input "
            f"layer {input_path!r}, not at {path!r}"
        )


# ---------------------------------------------------------------- presets


def lrp_epsilon(epsilon: float = 0.01, detach_bias: bool = False) -> Composite:
    """LRP-epsilon at every linear unit, pool and sum (the LRP Block of ISNet, all epsilon)."""
    rule = Epsilon(epsilon, detach_bias)
    kinds = ("conv", "dense", "norm", "max_pool", "avg_pool", "resize", "add")
    entries = ((BEFORE_NORM, Pass()), *((f"kind:{kind}", rule) for kind in kinds))
    return Composite(entries, name="epsilon")


def isnet_epsilon_zb(
    epsilon: float = 0.01, low: float = 0.0, high: float = 1.0, detach_bias: bool = False
) -> Composite:
    """`lrp_epsilon` with z^B at the input layer: the LRP Block of Original ISNet."""
    first = (INPUT, ZB(low, high, epsilon, detach_bias=detach_bias))
    return Composite((first, *lrp_epsilon(epsilon, detach_bias).entries), name="isnet_epsilon_zb")


def isnet_flex(epsilon: float = 0.01, statistics: str = "detach") -> Composite:
    """LRP-Flex: epsilon only at the ReLUs, everything else its plain derivative."""
    return Composite((("kind:relu", Epsilon(epsilon)), (".*", Pass())), statistics, "isnet_flex")


def isnet_flex_zb(
    epsilon: float = 0.01,
    low: float = 0.0,
    high: float = 1.0,
    statistics: str = "detach",
    detach_bias: bool = False,
) -> Composite:
    """`isnet_flex` with z^B at the input layer: the default of Faster ISNet.

    The ReLU after the input layer passes relevance on: z^B stabilises that layer itself.
    """
    first = ((INPUT, ZB(low, high, epsilon, detach_bias=detach_bias)), (INPUT_RELU, Pass()))
    return Composite((*first, *isnet_flex(epsilon).entries), statistics, "isnet_flex_zb")


def zplus(epsilon: float = 0.01) -> Composite:
    """z+ at every linear unit, pool and sum."""
    kinds = ("conv", "dense", "norm", "max_pool", "avg_pool", "resize", "add")
    return Composite(tuple((f"kind:{kind}", ZPlus(epsilon)) for kind in kinds), name="zplus")


def isnet_dual_zplus(epsilon: float = 0.01, low: float = 0.0, high: float = 1.0) -> Composite:
    """The z+ half of Dual ISNet: z+ everywhere, its own positive sums as the start, z^B first."""
    entries = [(INPUT, ZB(low, high, epsilon)), (OUTPUT, ZPlus(epsilon, own_sum=True))]
    return Composite((*entries, *zplus(epsilon).entries), name="isnet_dual_zplus")


def epsilon_plus(epsilon: float = 1e-6) -> Composite:
    """Zennit's EpsilonPlus: z+ on convolutions, epsilon on dense layers."""
    return Composite(
        (
            ("kind:conv", ZPlus(epsilon)),
            ("kind:dense", Epsilon(epsilon)),
            ("kind:norm", Epsilon(epsilon)),
            ("kind:avg_pool", Norm(epsilon)),
            ("kind:resize", Norm(epsilon)),
            ("kind:add", Norm(epsilon)),
        ),
        name="epsilon_plus",
    )


def epsilon_plus_flat(epsilon: float = 1e-6) -> Composite:
    """`epsilon_plus` with equal shares at the input layer."""
    return Composite(((INPUT, Flat()), *epsilon_plus(epsilon).entries), name="epsilon_plus_flat")


def epsilon_alpha2_beta1(epsilon: float = 1e-6) -> Composite:
    """alpha=2, beta=1 on convolutions, epsilon on dense layers."""
    first = ("kind:conv", AlphaBeta(2.0, 1.0, epsilon))
    return Composite((first, *epsilon_plus(epsilon).entries[1:]), name="epsilon_alpha2_beta1")


def epsilon_gamma_box(
    low: float | tuple[float, ...] = 0.0,
    high: float | tuple[float, ...] = 1.0,
    gamma: float = 0.25,
    epsilon: float = 1e-6,
) -> Composite:
    """Zennit's EpsilonGammaBox: z^B first, gamma on convolutions, epsilon on dense layers."""
    first = (
        (INPUT, ZB(low, high, epsilon, bias="cancel")),
        ("kind:conv", Gamma(gamma, epsilon)),
    )
    rest = epsilon_plus(epsilon).entries[1:]
    return Composite((*first, *rest), name="epsilon_gamma_box")


def attn_lrp(epsilon: float = 0.0) -> Composite:
    """AttnLRP for transformers; ``epsilon`` at the linear layers."""
    return _transformer(AttnLRP(), epsilon, "attn_lrp")


def cp_lrp(epsilon: float = 0.0) -> Composite:
    """CP-LRP for transformers; ``epsilon`` at the linear layers."""
    return _transformer(CPLRP(), epsilon, "cp_lrp")


def _transformer(rule: Rule, epsilon: float, name: str) -> Composite:
    special = tuple((f"kind:{kind}", rule) for kind in sorted(rule.kinds))
    return Composite((*special, *lrp_epsilon(epsilon).entries), name=name)


def gradient_x_input() -> Composite:
    """The plain derivative everywhere: LRP-0, gradient times input."""
    return Composite(((".*", Pass()),), name="gradient_x_input")


def table(
    rows: Sequence[tuple[str, str] | tuple[str, str, Mapping[str, Any]]],
    statistics: str = "detach",
) -> Composite:
    """A composite written out in a config: rows of (pattern, rule name, options).

    Raises:
        ValueError: unknown rule or option.
    """
    entries = []
    for pattern, name, *options in rows:
        entries.append((pattern, call("rule", name, RULES, options[0] if options else {})))
    return Composite(tuple(entries), statistics, "table")


PRESETS: dict[str, Callable[..., Composite]] = {
    "epsilon": lrp_epsilon,
    "isnet_epsilon_zb": isnet_epsilon_zb,
    "isnet_flex": isnet_flex,
    "isnet_flex_zb": isnet_flex_zb,
    "isnet_dual_zplus": isnet_dual_zplus,
    "zplus": zplus,
    "epsilon_plus": epsilon_plus,
    "epsilon_plus_flat": epsilon_plus_flat,
    "epsilon_alpha2_beta1": epsilon_alpha2_beta1,
    "epsilon_gamma_box": epsilon_gamma_box,
    "attn_lrp": attn_lrp,
    "cp_lrp": cp_lrp,
    "gradient_x_input": gradient_x_input,
    "table": table,
}


def create(name: str, **options: Any) -> Composite:
    """The preset ``name`` with its options.

    Raises:
        ValueError: unknown preset or option; names the nearest and the legal ones.
    """
    return call("composite", name, PRESETS, options)
