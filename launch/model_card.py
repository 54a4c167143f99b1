"""The model card: what a network is, from what it came, how good it is, how it is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# After Mitchell et al. 2019, "Model Cards for Model Reporting"; the header is what model hubs read.
_CARD = """\
---
library_name: jax
license: {tag}
tags: [{tags}]
---

# {name}

{what} {parameters:,} numbers in {weights}; run {run}, checkpoint of step {checkpoint}.

| | |
| --- | --- |
| network | {network} |
| input | {input} |
| shape | {shape} {type} |
| output | {output} |

{classes}
## Use

Needs `jax`, `numpy` and `safetensors`; runs on {platforms}. {batches}

```python
import numpy as np

import model  # model.py of this folder

network = model.load(".")
x = np.zeros({example}, "{type}")
logits = np.asarray(network(x))
print(logits.shape)
```

{use}{details}## Intended use

{intended}

## Data

{data}

## Metrics

{metrics}

## Training

{training}

## Licence

{licence}
"""


def model_card(about: Mapping[str, Any], weights: str) -> str:
    """The card as Markdown, from what `export.json` holds; `weights` is the name of their file."""
    told, given = about["about"], about["input"]
    batch, *shape = given["shape"]
    fixed = not isinstance(batch, str)
    return _CARD.format(
        name=about["name"],
        tag=_tag(about["licence"]),
        tags=", ".join(told.get("tags", ())),
        what=told["what"],
        parameters=about["parameters"],
        run=about["run"],
        checkpoint=about["checkpoint"],
        network=_network(about["config"]["task"]),
        input=told["input"],
        output=told["output"],
        shape=f"({', '.join(map(str, given['shape']))})",
        type=given["type"],
        classes=_classes(told.get("classes")),
        platforms=", ".join(about["platforms"]),
        batches=f"Batches are of {batch}." if fixed else "A batch may have any size.",
        weights=weights,
        example=(batch if fixed else 1, *shape),
        use=f"{told['use']}\n\n" if "use" in told else "",
        details=_details(told.get("details")),
        intended=told["intended_use"],
        data=_data(about),
        metrics=_metrics(about["metrics"]),
        training=_training(about),
        licence=_licence(about["licence"]),
    )


def _tag(licence: str | None) -> str:
    """One word for the header: model hubs know licences by their lower-case SPDX identifiers."""
    return licence.lower() if licence and " " not in licence else "other"


def _licence(licence: str | None) -> str:
    said = licence or "not stated; it depends on the data and on what training started from"
    return f"Weights: {said}. The program that trained them: Apache-2.0."


def _network(task: Mapping[str, Any]) -> str:
    model = task.get("model")
    name = model.get("name") if isinstance(model, Mapping) else None
    return f"{name}, trained by {task['name']}" if name else f"that of {task['name']}"


def _classes(names: list[str] | None) -> str:
    if not names:
        return ""
    return (
        "Classes, by their place in the output: "
        + ", ".join(f"{i} {name}" for i, name in enumerate(names))
        + "\n"
    )


def _details(details: Mapping[str, Any] | None) -> str:
    """Sections of JSON: how inputs are prepared, say."""
    sections = (
        f"## {title}\n\n```json\n{json.dumps(value, indent=1)}\n```\n\n"
        for title, value in (details or {}).items()
    )
    return "".join(sections)


def _data(about: Mapping[str, Any]) -> str:
    items = ", ".join(f"{split} {n:,}" for split, n in about["items"].items())
    described = json.dumps(about["config"]["task"].get("data"), indent=1)
    return f"Items: {items}.\n\n```json\n{described}\n```"


def _metrics(metrics: Mapping[str, float | None]) -> str:
    if not metrics:
        return "Not evaluated."
    rows = "".join(
        f"| {name} | {'not a finite number' if value is None else f'{value:.4g}'} |\n"
        for name, value in metrics.items()
    )
    return f"| split/metric | value |\n| --- | --- |\n{rows}".rstrip()


def _training(about: Mapping[str, Any]) -> str:
    config = about["config"]
    kept = {k: v for k, v in config["task"].items() if k != "data"}
    how = {key: config[key] for key in ("steps", "batch_size", "seed", "optimizer")}
    described = json.dumps({"task": kept, **how}, indent=1)
    return f"jax {about['jax']}.\n\n```json\n{described}\n```"
