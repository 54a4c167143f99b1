"""LRP-Flex for any JAX function: every ReLU of its jaxpr gets the factor ``a / (a + epsilon)``.

LRP-epsilon through a ReLU network is ordinary backprop in which each ReLU multiplies the incoming
multiplier by ``a / (a + epsilon)`` (Bassi et al. 2024, IEEE Access 12:155151). So a model that was
not written for us needs no other layers: its jaxpr is traced, an `isnet_jax.lrp.ops.stabilize` is
put behind each equation that is a ReLU, and everything else stays the equation that it was. Loops,
branches, nested jit and remat keep their own parameters; only their bodies are rewritten.
"""

from __future__ import annotations

import math
import numbers
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.extend import source_info_util
from jax.extend.core import Jaxpr

from isnet_jax.lrp.relus import Fact, Finding, Reader, has_derivative, open_jaxpr, uniform

# Reports point at the lines of the caller's model, never at this file.
source_info_util.register_exclusion(__file__)


@dataclass(frozen=True)
class _Traced:
    """A function's jaxpr with what is needed to call it on leaves."""

    jaxpr: Jaxpr  # open
    consts: tuple[Any, ...]
    leaves: tuple[Any, ...]  # the arrays among the arguments
    places: tuple[Any, ...]  # of each leaf: the index of its positional argument, or its keyword
    rebuild: Callable[[Sequence[Any]], Any]


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


class Flexed:
    """``fn`` with LRP-Flex as its inner derivative; made by `flex`."""

    def __init__(
        self, fn: Callable[..., Any], epsilon: float, argnums: tuple[int, ...] | None
    ) -> None:
        self.fn = fn
        self.epsilon = epsilon
        self.argnums = argnums
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)
        self.__doc__ = getattr(fn, "__doc__", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The value of ``fn(*args, **kwargs)``, same structure, shapes and bits."""
        traced = self._trace(args, kwargs)
        values = (*traced.consts, *traced.leaves)
        return traced.rebuild(_with_rule(traced.jaxpr, len(traced.consts), self.epsilon)(*values))

    def findings(self, *args: Any, **kwargs: Any) -> tuple[Finding, ...]:
        """Everything in ``fn`` that is not linear in the explained arguments, in program order.

        Takes arrays or `jax.ShapeDtypeStruct`; nothing is computed. A ReLU that the explained
        arguments do not reach is listed as untreated: it plays no part in their relevance.
        """
        return self._read(args, kwargs)[0]

    def report(self, *args: Any, **kwargs: Any) -> str:
        """`findings` as a table: how many ReLUs were treated, and what was not."""
        findings, explained = self._read(args, kwargs)
        relus = sum(f.treated for f in findings)
        lines = [
            f"flex({self.__name__}, epsilon={self.epsilon:g}): {relus} "
            f"{'ReLU' if relus == 1 else 'ReLUs'} treated, {len(findings) - relus} untreated "
            f"(plain derivative); explained: argument {', '.join(map(str, explained))}"
        ]
        rows = Counter((f.treated, f.kind, f.name, f.where, f.scope) for f in findings)
        for (treated, kind, name, where, scope), count in sorted(
            rows.items(), key=lambda row: not row[0][0]
        ):
            place = " in ".join(filter(None, (where or "an unknown line", scope)))
            state = "treated  " if treated else "untreated"
            lines.append(f"  {state}  {kind:<9}  {name} x{count}  {place}")
        return "\n".join(lines)

    def _read(self, args: Any, kwargs: Any) -> tuple[tuple[Finding, ...], list[Any]]:
        traced = self._trace(args, kwargs)
        floats = [p for p, v in zip(traced.places, traced.leaves, strict=True) if has_derivative(v)]
        positional = [p for p in floats if isinstance(p, int)]
        explained: list[Any] = list(self.argnums or positional[-1:] or dict.fromkeys(floats))
        if not floats:
            raise ValueError(f"flex({self.__name__}): no argument holds a floating-point array")
        if self.argnums is not None:
            explained = [a + len(args) if a < 0 else a for a in self.argnums]
            if any(a not in positional for a in explained):
                raise ValueError(
                    f"argnums {self.argnums}: no floating-point array in that argument; those "
                    f"with one are {sorted(set(positional))}"
                )
        reader = Reader(self.epsilon)
        reader.body(
            traced.jaxpr,
            [Fact(object(), value=uniform(c)) for c in traced.consts],
            [
                Fact(object(), live=p in explained and has_derivative(v))
                for p, v in zip(traced.places, traced.leaves, strict=True)
            ],
            "",
        )
        return tuple(reader.findings), explained

    def _trace(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Traced:
        with_paths, tree = jax.tree.flatten_with_path((args, kwargs))
        flat = [leaf for _, leaf in with_paths]
        chosen = [i for i, leaf in enumerate(flat) if _is_array(leaf)]
        places = [getattr(p[1], "idx", getattr(p[1], "key", None)) for p, _ in with_paths]
        shape: list[Any] = []

        def on_leaves(*leaves: Any) -> list[Any]:
            full = list(flat)
            for i, leaf in zip(chosen, leaves, strict=True):
                full[i] = leaf
            inner_args, inner_kwargs = jax.tree.unflatten(tree, full)
            out, out_tree = jax.tree.flatten(self.fn(*inner_args, **inner_kwargs))
            # What is no array goes out as it came; the arrays themselves must not leave the trace.
            shape[:] = out_tree, [None if _is_array(leaf) else leaf for leaf in out]
            shape.append([i for i, leaf in enumerate(out) if _is_array(leaf)])
            return [out[i] for i in shape[2]]

        leaves = tuple(flat[i] for i in chosen)
        closed = jax.make_jaxpr(on_leaves)(*leaves)
        out_tree, template, holes = shape

        def rebuild(values: Sequence[Any]) -> Any:
            full = list(template)
            for i, value in zip(holes, values, strict=True):
                full[i] = value
            return jax.tree.unflatten(out_tree, full)

        return _Traced(
            open_jaxpr(closed),
            tuple(closed.consts),
            leaves,
            tuple(places[i] for i in chosen),
            rebuild,
        )


def _with_rule(jaxpr: Jaxpr, num_consts: int, epsilon: float) -> Callable[..., Sequence[Any]]:
    """``jaxpr`` as a function of (*consts, *args) whose first derivative follows the rules.

    The rules are consumed here and not by the caller's derivative: a ReLU that the explained
    input does not reach (say, of a weight) would otherwise show its rule to the outer derivative.
    """

    def run(body: Jaxpr, values: Sequence[Any]) -> list[Any]:
        return jax.core.eval_jaxpr(body, values[:num_consts], *values[num_consts:])

    @jax.custom_vjp
    def call(*values: Any) -> list[Any]:
        return run(jaxpr, values)

    def forward(*primals: CustomVJPPrimal) -> tuple[list[Any], Any]:
        values = [p.value for p in primals]
        live = [bool(p.perturbed) and has_derivative(p.value) for p in primals]
        facts = [
            Fact(object(), live=each, value=None if each else uniform(value))
            for each, value in zip(live, values, strict=True)
        ]
        body, outs = Reader(epsilon).body(jaxpr, facts[:num_consts], facts[num_consts:], "")
        moving = [f.live for f in outs]

        def of_live(*some: Any) -> tuple[list[Any], list[Any]]:
            given = iter(some)
            results = run(
                body, [next(given) if e else v for e, v in zip(live, values, strict=True)]
            )
            kept = [r for r, m in zip(results, moving, strict=True) if m]
            return kept, [r for r, m in zip(results, moving, strict=True) if not m]

        some = [v for v, each in zip(values, live, strict=True) if each]
        kept, pull, others = jax.vjp(of_live, *some, has_aux=True)
        kept_, others_ = iter(kept), iter(others)
        results = [next(kept_) if m else next(others_) for m in moving]
        return results, _Pull(pull, tuple(live), tuple(moving))

    def backward(pull: _Pull, cotangents: Sequence[Any]) -> tuple[Any, ...]:
        given = iter(
            pull.pull(
                [
                    jnp.zeros(ct.shape, ct.dtype) if isinstance(ct, SymbolicZero) else ct
                    for ct, moves in zip(cotangents, pull.moving, strict=True)
                    if moves
                ]
            )
        )
        return tuple(next(given) if each else None for each in pull.live)

    call.defvjp(forward, backward, symbolic_zeros=True)
    return call


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Pull:
    """A pull-back from the moving results to the live operands, as residual of `_with_rule`."""

    pull: Callable[..., Any]
    live: tuple[bool, ...] = field(metadata={"static": True})
    moving: tuple[bool, ...] = field(metadata={"static": True})


def flex(
    fn: Callable[..., Any],
    epsilon: float = 0.01,
    *,
    argnums: int | Sequence[int] | None = None,
) -> Flexed:
    """LRP-Flex for any JAX function: ``R = x * jax.vjp(flex(fn), x)[1](start)``.

    The result has the signature and, bit for bit, the value of ``fn``. Its *inner* derivative (one
    ``jax.vjp``) multiplies at every ReLU by ``a / (a + epsilon)``; a ``jax.grad`` around that vjp
    sees the true derivative of the value and of the relevance. A bare ``jax.grad`` of it is
    relevance too, not a gradient to train with: take logits from `isnet_jax.lrp.relevance`.

    Args:
        fn: any JAX function; parameters may be closed over or passed, in any pytree.
        epsilon: stabiliser, >= 0; 0 is the plain derivative.
        argnums: positional arguments that `Flexed.report` reads as the explained ones; default:
            the last with a floating-point array. The derivative does not look at it.

    Raises:
        TypeError: ``fn`` is not callable, or epsilon not a number.
        ValueError: epsilon negative or not finite.
    """
    if not callable(fn):
        raise TypeError(f"flex needs a function of arrays, got {type(fn).__name__}: {fn!r}")
    if isinstance(epsilon, bool) or not isinstance(epsilon, numbers.Real):
        raise TypeError(f"epsilon must be a number, got {type(epsilon).__name__}: {epsilon!r}")
    if not math.isfinite(epsilon) or epsilon < 0:
        raise ValueError(f"epsilon must be finite and >= 0, got {epsilon}")
    numbers_ = (argnums,) if isinstance(argnums, int) else argnums
    return Flexed(fn, float(epsilon), None if numbers_ is None else tuple(numbers_))
