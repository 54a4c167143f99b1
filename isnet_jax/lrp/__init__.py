"""Layer-wise relevance propagation whose maps can be trained through."""

from isnet_jax.lrp.composite import INPUT, INPUT_RELU, PRESETS, Composite, create, rule_layers
from isnet_jax.lrp.explain import (
    AllLogits,
    EachLogit,
    Explanation,
    Logit,
    Maps,
    Selective,
    explain,
    relevance,
)
from isnet_jax.lrp.rules import RULES, ZB, Epsilon, Pass, Rule, ZPlus

__all__ = [
    "INPUT",
    "INPUT_RELU",
    "PRESETS",
    "RULES",
    "ZB",
    "AllLogits",
    "Composite",
    "EachLogit",
    "Epsilon",
    "Explanation",
    "Logit",
    "Maps",
    "Pass",
    "Rule",
    "Selective",
    "ZPlus",
    "create",
    "explain",
    "relevance",
    "rule_layers",
]
