"""Finding the ReLUs of a jaxpr and putting a rule behind each.

A jaxpr is read once, equation by equation, with a `Fact` for every array: is it a known constant,
is it the mask ``x > 0``, does it depend on the explained input. Bodies of loops, branches, nested
jit and remat are rewritten and put back into their equation, whose other parameters stay as they
are; so nothing is evaluated here and no control flow is written again.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, DropVar, Jaxpr, JaxprEqn, Literal, jaxprs_in_params

from isnet_jax.lrp.ops import stabilize

# ---------------------------------------------------------------- what is what in a jaxpr

CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
"""Primitives that run one body on their operands, and the parameter that holds it."""

REMATS = {"remat": "jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr"}

CUSTOM = ("custom_jvp_call", "custom_vjp_call")

COPIES = ("copy", "copy_p")

KEEP_VALUE = (
    *COPIES,
    "broadcast_in_dim",
    "convert_element_type",
    "device_put",
    "expand_dims",
    "pcast",
    "pvary",
    "reshape",
    "reshard",
    "sharding_constraint",
    "squeeze",
    "stop_gradient",
)

FLAT = ("stop_gradient", "sign", "floor", "ceil", "round", "is_finite")
"""Primitives without derivative: nothing behind them depends on the input, for a derivative."""

_NONLINEAR = (
    "abs acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt cos cosh cumprod "
    "cumlogsumexp digamma erf erf_inv erfc exp exp2 expm1 integer_pow lgamma log log1p log2 "
    "logistic one_minus_square polynomial pow reduce_prod rem rsqrt sin sinh sqrt square tan "
    "tanh"
)
NONLINEAR = frozenset(_NONLINEAR.split())

_ACTIVATIONS = (
    "celu elu gelu glu hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu log_sigmoid "
    "log_softmax mish selu silu soft_sign softmax softplus sparse_plus sparse_sigmoid squareplus "
    "standardize swish"
)
ACTIVATIONS = frozenset(_ACTIVATIONS.split())
"""Names of jitted functions that are told as one nonlinearity, whatever they are made of."""

BILINEAR = ("mul", "dot_general", "conv_general_dilated", "ragged_dot_general")


@dataclass(frozen=True)
class Finding:
    """One place of a function that is not linear.

    Attributes:
        kind: "relu"; "nonlinear" (plain derivative); "product" of two signals (plain derivative);
            "opaque" (a body that cannot be rewritten: while loops, custom_vjp, kernels).
        name: of the primitive or function.
        treated: whether LRP-Flex's factor was put there.
        where: "file.py:12 (function)", as far as JAX remembers it.
        scope: the loops and named scopes around it, with slashes.
    """

    kind: str
    name: str
    treated: bool
    where: str
    scope: str


@dataclass(frozen=True)
class Fact:
    """What is known of one array while its function is read.

    Attributes:
        source: which array it is; equal for an operand and the body's variable bound to it.
        live: it depends on the chosen inputs, for a derivative.
        value: all its entries are this number.
        mask: (source of x, sign): it is ``x > 0`` (+1) or ``x < 0`` (-1), as bool or number.
        switch: it depends on them by comparisons and indices only, so without a derivative.
        rectified: the source of the x that it is the ReLU of.
        square: it is y * y.
        variance: it is ``mean(y * y) - mean(y) * mean(y)``, whose clip at zero is no activation.
    """

    source: object
    live: bool = False
    value: float | None = None
    mask: tuple[object, int] | None = None
    switch: bool = False
    rectified: object | None = None
    square: bool = False
    variance: bool = False


def has_derivative(array: Any) -> bool:
    """Whether an array or aval, of any shape, is of a dtype that derivatives exist for."""
    return jnp.issubdtype(getattr(array, "dtype", np.dtype(bool)), jnp.inexact)


def _is_real(aval: Any) -> bool:
    return jnp.issubdtype(getattr(aval, "dtype", np.dtype(bool)), jnp.floating)


def uniform(value: Any) -> float | None:
    """The number that all entries of a concrete constant are, or None."""
    if isinstance(value, jax.core.Tracer) or not isinstance(
        value, jax.Array | np.ndarray | numbers.Number
    ):
        return None
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return None
    entries = np.asarray(value)
    if entries.size == 0 or not np.isrealobj(entries):
        return None
    first = entries.flat[0]
    return float(first) if bool((entries == first).all()) else None


# ---------------------------------------------------------------- reading and rewriting


class Reader:
    """Walks a jaxpr, notes what it finds and, with an epsilon, puts the rule behind each ReLU."""

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon
        self.findings: list[Finding] = []

    def body(
        self, jaxpr: Any, consts: Sequence[Fact], args: Sequence[Fact], scope: str
    ) -> tuple[Any, list[Fact]]:
        """The jaxpr (open or closed, as given) with rules, and the facts of its outputs."""
        facts: dict[Any, Fact] = {}
        facts.update(zip(jaxpr.constvars, consts, strict=True))
        facts.update(zip(open_jaxpr(jaxpr).invars, args, strict=True))

        def read(atom: Any) -> Fact:
            if isinstance(atom, Literal):
                return Fact(object(), value=uniform(atom.val))
            return facts[atom]

        eqns: list[JaxprEqn] = []
        for eqn in jaxpr.eqns:
            new, outs = self.equation(eqn, [read(v) for v in eqn.invars], scope)
            eqns.extend(new)
            facts.update(zip(eqn.outvars, outs, strict=True))
        outs = [read(v) for v in open_jaxpr(jaxpr).outvars]
        same = len(eqns) == len(jaxpr.eqns) and all(map(_is, eqns, jaxpr.eqns))
        return (jaxpr if same else _with_equations(jaxpr, eqns)), outs

    def closed(self, jaxpr: Any, args: Sequence[Fact], scope: str = "") -> tuple[Any, list[Fact]]:
        """`body` for the parameter of an equation: constants, if it has any, are its own."""
        values = getattr(jaxpr, "consts", None) or (None,) * len(jaxpr.constvars)
        consts = [Fact(object(), value=uniform(value)) for value in values]
        return self.body(jaxpr, consts, args, scope)

    def equation(
        self, eqn: JaxprEqn, ins: list[Fact], scope: str
    ) -> tuple[list[JaxprEqn], list[Fact]]:
        """The equations that take this one's place, and the facts of its outputs."""
        name, params = eqn.primitive.name, eqn.params
        if name in CALLS and params.get("name") not in ACTIVATIONS:
            return self._call(eqn, CALLS[name], ins, scope)
        if name in REMATS:
            return self._call(eqn, REMATS[name], ins, _join(scope, "remat"))
        if name == "scan":
            return self._scan(eqn, ins, _join(scope, "scan"))
        if name == "cond":
            return self._cond(eqn, ins, scope)
        if name in CUSTOM:
            return self._custom(eqn, ins, scope)
        outs = self._plain_outs(eqn, ins)
        if name in CALLS:
            self._note("nonlinear", params["name"], eqn, scope, outs[0].live)
        elif name == "while" or _bends(eqn):
            self._note("opaque", name, eqn, scope, any(f.live for f in ins))
        elif len(eqn.outvars) == 1 and _is_real(eqn.outvars[0].aval):
            fact = _judge(eqn, ins, outs[0])
            if fact.rectified is not None and not _keeps_rectified(name, ins):
                return self._relu(eqn, fact, name, scope)
            kind = _nonlinearity(name, params, ins)
            if kind:
                self._note(kind, "variance >= 0" if _clips(ins) else name, eqn, scope, fact.live)
            outs = [fact]
        elif len(eqn.outvars) == 1:
            outs = [replace(outs[0], value=_passed_value(name, ins), mask=_mask(name, ins))]
        return [eqn], outs

    # -- ReLUs

    def _relu(
        self, eqn: JaxprEqn, fact: Fact, name: str, scope: str
    ) -> tuple[list[JaxprEqn], list[Fact]]:
        # One that no chosen input reaches would show its rule to the outer derivative.
        self._note("relu", name, eqn, scope, True, treated=fact.live)
        if not fact.live or self.epsilon == 0 or isinstance(eqn.outvars[0], DropVar):
            return [eqn], [fact]
        # A new lambda each time: tracing it gives variables that no other place uses. The abstract
        # value itself, and not a shape and dtype, keeps the manual axes of a shard_map around.
        rule = jax.make_jaxpr(lambda a: stabilize(a, None, self.epsilon))(eqn.outvars[0].aval)
        (attached,) = rule.eqns
        (raw,) = open_jaxpr(rule).invars
        return [eqn.replace(outvars=[raw]), attached.replace(outvars=eqn.outvars)], [fact]

    def _custom(
        self, eqn: JaxprEqn, ins: list[Fact], scope: str
    ) -> tuple[list[JaxprEqn], list[Fact]]:
        """A custom_jvp or custom_vjp function: a ReLU by what it computes, or kept as it is."""
        jaxpr = eqn.params["call_jaxpr"]
        silent = Reader(0.0)
        _, results = silent.closed(jaxpr, ins)
        outs = self._plain_outs(eqn, ins)
        name = getattr(getattr(jaxpr, "debug_info", None), "func_name", "") or eqn.primitive.name
        if len(results) == 1 and any(results[0].rectified is f.source for f in ins):
            rectified = replace(outs[0], rectified=results[0].rectified)
            return self._relu(eqn, rectified, name, scope)
        live = any(f.live for f in outs)
        if eqn.primitive.name == "custom_jvp_call":
            # One whose body is linear for what is known of its operands tells nothing.
            telling = [f for f in silent.findings if f.kind != "product"]
            if telling:
                self._note("nonlinear", name, eqn, scope, live)
        else:
            self._note("opaque", name, eqn, scope, live)
        return [eqn], outs

    # -- bodies

    def _call(
        self, eqn: JaxprEqn, key: str, ins: list[Fact], scope: str
    ) -> tuple[list[JaxprEqn], list[Fact]]:
        jaxpr = eqn.params[key]
        new, outs = self.closed(jaxpr, ins, scope)
        return [_with_params(eqn, key, jaxpr, new)], outs

    def _cond(
        self, eqn: JaxprEqn, ins: list[Fact], scope: str
    ) -> tuple[list[JaxprEqn], list[Fact]]:
        old = eqn.params["branches"]
        pairs = [
            self.closed(branch, ins[1:], _join(scope, f"branch {i}"))
            for i, branch in enumerate(old)
        ]
        new = tuple(branch for branch, _ in pairs)
        live = [any(fs) for fs in zip(*([f.live for f in fs] for _, fs in pairs), strict=True)]
        outs = [Fact(object(), live=each) for each in live]
        if ins[0].switch:
            self._note("nonlinear", "cond", eqn, scope, any(live))
        changed = not all(map(_is, old, new))
        return [_with_params(eqn, "branches", old, new) if changed else eqn], outs

    def _scan(
        self, eqn: JaxprEqn, ins: list[Fact], scope: str
    ) -> tuple[list[JaxprEqn], list[Fact]]:
        jaxpr = eqn.params["jaxpr"]
        # Operands are constants, carry, slices; results carry, slices; only slices lose an axis.
        inner = open_jaxpr(jaxpr)
        carry = sum(map(_same_rank, eqn.outvars, inner.outvars))
        consts = sum(map(_same_rank, eqn.invars, inner.invars)) - carry
        carried = range(consts, consts + carry)
        live = [f.live for f in ins]
        while True:
            known = [
                Fact(object(), live=live[i]) if i in carried else replace(f, mask=None)
                for i, f in enumerate(ins)
            ]
            before = len(self.findings)
            new, results = self.closed(jaxpr, known, scope)
            grown = [i for i in carried if results[i - consts].live and not live[i]]
            if not grown:
                break
            for i in grown:
                live[i] = True
            del self.findings[before:]
        outs = [Fact(object(), live=f.live) for f in results]
        return [_with_params(eqn, "jaxpr", jaxpr, new)], outs

    # -- notes

    def _plain_outs(self, eqn: JaxprEqn, ins: list[Fact]) -> list[Fact]:
        name = eqn.primitive.name
        reached = any(f.live for f in ins) and name not in FLAT
        # A guard against infinities is no bend.
        steered = any(f.live or f.switch for f in ins) and name != "is_finite"
        lives = [reached and has_derivative(v.aval) for v in eqn.outvars]
        return [Fact(object(), live=each, switch=steered and not each) for each in lives]

    def _note(
        self, kind: str, name: str, eqn: JaxprEqn, scope: str, told: bool, treated: bool = False
    ) -> None:
        if not told:
            return
        seen = re.sub(r"^.*[/\\]", "", source_info_util.summarize(eqn.source_info))
        where = re.sub(r":(\d+):\d+", r":\1", seen)
        stack = str(eqn.source_info.name_stack)
        self.findings.append(Finding(kind, name, treated, where, _join(scope, stack)))


def _judge(eqn: JaxprEqn, ins: list[Fact], out: Fact) -> Fact:
    """What a plain equation with one floating-point result says about it."""
    name = eqn.primitive.name
    value = _passed_value(name, ins)
    if value is not None:
        return replace(out, value=value)
    if name == "convert_element_type":
        if _is_real(eqn.invars[0].aval):  # the same array in another precision
            return replace(ins[0], live=out.live)
        return replace(out, mask=ins[0].mask)
    if name in ("square", "integer_pow"):
        return replace(out, square=name == "square" or eqn.params["y"] == 2)
    if name == "mul" and ins[0].source is ins[1].source:
        return replace(out, square=True)
    if name == "sub":
        return replace(out, variance=ins[1].square and out.live)
    return replace(out, rectified=_rectified(name, ins))


def _passed_value(name: str, ins: list[Fact]) -> float | None:
    if name in KEEP_VALUE:
        return ins[0].value
    if name == "neg" and ins[0].value is not None:
        return -ins[0].value
    return None


def _mask(name: str, ins: list[Fact]) -> tuple[object, int] | None:
    """Whether a boolean result is a comparison of an array with zero."""
    if name == "not" and ins[0].mask:
        return ins[0].mask[0], -ins[0].mask[1]
    if name in COPIES:
        return ins[0].mask
    side = {"gt": 1, "ge": 1, "lt": -1, "le": -1}.get(name)
    if side is None:
        return None
    a, b = ins
    if b.value == 0:
        return a.source, side
    return (b.source, -side) if a.value == 0 else None


def _rectified(name: str, ins: list[Fact]) -> object | None:
    """The source of x if this equation is ``max(x, 0)`` in some spelling, else None."""
    if name in ("max", "mul", "min"):
        for a, b in (ins, ins[::-1]):
            if name == "max" and b.value == 0 and a.value is None and not a.variance:
                return a.source
            if name == "mul" and b.mask == (a.source, 1):
                return a.source
            if name == "min" and b.value is not None and b.value > 0:
                return a.rectified
    if name == "clamp" and ins[0].value == 0 and (ins[2].value or 0) > 0:
        return ins[1].source
    if name == "select_n" and len(ins) == 3 and ins[0].mask:
        source, side = ins[0].mask
        off, on = (ins[1], ins[2]) if side > 0 else (ins[2], ins[1])
        return source if on.source is source and off.value == 0 else None
    return None


def _keeps_rectified(name: str, ins: list[Fact]) -> bool:
    """The cap of a relu6: its ReLU already has the rule."""
    return name == "min" and any(f.rectified is not None for f in ins)


def _clips(ins: list[Fact]) -> bool:
    return len(ins) == 2 and any(f.variance for f in ins) and any(f.value == 0 for f in ins)


def _nonlinearity(name: str, params: dict[str, Any], ins: list[Fact]) -> str | None:
    """The kind of finding that a plain equation is, if it is none of the ReLUs; else None."""
    if name in NONLINEAR:
        return None if name == "integer_pow" and params["y"] == 1 else "nonlinear"
    if name in BILINEAR and all(f.live for f in ins[:2]):
        return "product"
    if name == "div" and ins[1].live:
        return "nonlinear"
    if name == "clamp":
        return "nonlinear"
    if name in ("max", "min"):
        bent = any(f.value is not None and math.isfinite(f.value) for f in ins)
        return "nonlinear" if bent and not _keeps_rectified(name, ins) else None
    if name == "select_n" and ins[0].switch and any(f.live for f in ins[1:]):
        return "nonlinear"
    return None


# ---------------------------------------------------------------- jaxpr carpentry


def _is(a: Any, b: Any) -> bool:
    return a is b


def open_jaxpr(jaxpr: Any) -> Jaxpr:
    """The open jaxpr (newer JAX has only one class for both)."""
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _with_equations(jaxpr: Any, eqns: list[JaxprEqn]) -> Any:
    if isinstance(jaxpr, Jaxpr):
        return jaxpr.replace(eqns=eqns)
    return ClosedJaxpr(jaxpr.jaxpr.replace(eqns=eqns), jaxpr.consts)


def _with_params(eqn: JaxprEqn, key: str, old: Any, new: Any) -> JaxprEqn:
    return eqn if new is old else eqn.replace(params={**eqn.params, key: new})


def _bends(eqn: JaxprEqn) -> bool:
    """Whether an equation has a body, other than those that are rewritten, that is not linear."""
    for jaxpr in jaxprs_in_params(eqn.params):
        silent = Reader(0.0)
        silent.closed(jaxpr, [Fact(object(), live=has_derivative(v.aval)) for v in jaxpr.invars])
        if any(f.kind != "product" for f in silent.findings):
            return True
    return False


def _same_rank(outside: Any, inside: Any) -> bool:
    return len(outside.aval.shape) == len(inside.aval.shape)


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)
