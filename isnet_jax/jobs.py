"""Jobs of the launcher: what it does to a folder, case by case.

A job is built from a card's keywords; the launcher (or any library user) calls ``cases``,
``fingerprint``, ``run`` and ``finish``. What can be wrong raises before any compute.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from isnet_jax.boxes import Shown, check_box, shown_rules
from isnet_jax.draw import save_png
from isnet_jax.images import Preprocessing, listing, read
from isnet_jax.legal import call
from isnet_jax.lrp.composite import Composite
from isnet_jax.lrp.explain import Logit, relevance
from isnet_jax.montage import Line, figure, montage
from isnet_jax.stored import RANDOM, load_model

Array = jax.Array
PREDICTED = "predicted"
RULES_SHOWN = ("gradient_x_input", "epsilon", "isnet_flex", "epsilon_plus")
_ARRAYS, _TOLD = "relevance.npz", "explanation.json"


class Found(NamedTuple):
    """One image's map, of JAX or NumPy: relevance (h, w), summed over channels; logits (k,).

    `total` and `gap` are scalars.
    """

    relevance: Any
    logits: Any
    total: Any
    gap: Any


class Program:
    """One rule of one model, compiled at its first image and shared by all of that size."""

    def __init__(self, model: nnx.Module, composite: Composite) -> None:
        """`model` is in evaluation mode; it is not changed.

        Raises:
            ValueError: the composite leaves a weighted layer without a rule.
        """
        graphdef, state = nnx.split(composite.view(model))
        self._state, terminal = nnx.to_pure_dict(state), composite.terminal(model)

        def run(state: Any, x: Array, classes: Array | None) -> Found:
            def f(x: Array) -> tuple[Array, None]:
                return nnx.merge(graphdef, state)(x), None

            maps = relevance(f, x, Logit(), terminal=terminal, classes=classes)
            one = maps.relevance[0, 0]
            return Found(one.sum(-1), maps.logits[0], one.sum(), maps.quantities[0, 0] - one.sum())

        self._run = jax.jit(run)

    def __call__(self, x: Float[Array, "1 h w c"], target: int | None) -> Found:
        """The map of class `target`, or of the likeliest."""
        classes = None if target is None else jnp.asarray([target], jnp.int32)
        return jax.device_get(self._run(self._state, x, classes))


def _read_names(place: str | None, count: int) -> list[str]:
    """A name a class, from a text file or the only .txt of a folder; without one the numbers.

    Raises:
        ValueError: another number of names than of classes.
        FileNotFoundError: there is no such file.
    """
    if place is None:
        return [f"class {i}" for i in range(count)]
    path = Path(place)
    found = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if len(found) != 1 or not found[0].is_file():
        raise FileNotFoundError(f"names = {place!r} is no text file, nor a folder with one")
    names = found[0].read_text(encoding="utf-8").splitlines()
    if len(names) != count:
        raise ValueError(f"names = {place!r} has {len(names)} lines for {count} classes")
    return names


class ExplainImages:
    """Heatmaps of images under several LRP rules, a picture each and a sheet of all.

    Args:
        images: a PNG or JPEG file, a folder of them, or "skimage" (a few photos).
        model: arguments of `isnet_jax.stored.load_model`.
        rules: names of composites or {"name", options, "label"}, see `shown_rules`.
        target: what is explained: "predicted", a class's number, or its name.
        preprocessing: fields of `isnet_jax.images.Preprocessing`.
        names: text file with a class name a line, or a folder with one; None: numbers.
        top: classes told per image.
        sheet: images on montage.png at most, the first ones; 0 draws none.
        title: over the sheet.

    Raises:
        ValueError: any argument outside its legal values; weights that do not fit; a composite
            that leaves a layer without a rule.
        FileNotFoundError: images, weights or names that are not there.
    """

    places = ("images",)

    def __init__(
        self,
        *,
        images: str = "skimage",
        model: Mapping[str, Any],
        rules: Sequence[str | Mapping[str, Any]] = RULES_SHOWN,
        target: str | int = PREDICTED,
        preprocessing: Mapping[str, Any] = {},
        names: str | None = None,
        top: int = 5,
        sheet: int = 12,
        title: str = "",
    ) -> None:
        for key, value, least in (("top", top, 1), ("sheet", sheet, 0)):
            if type(value) is not int or value < least:
                raise ValueError(f"{key}={value!r}; must be a whole number, {least} or more")
        self._files = listing(images)
        self._top, self._sheet, self._title = top, sheet, title
        self._input = call("preprocessing", "image", {"image": Preprocessing}, preprocessing)
        self._rules = shown_rules(rules, *self._input.box())
        if "weights" not in model:
            raise ValueError("model weights are missing: a file, a folder or a data:NAME")
        self._model = load_model(**model)
        self._stamp = _stamp(model["weights"])
        self._count = self._classes()
        self._names = _read_names(names, self._count)
        self._target = self._class_of(target)
        for rule in self._rules:
            check_box(rule, *self._input.box())
        self._programs = {r.label: Program(self._model, r.composite) for r in self._rules}

    def _classes(self) -> int:
        """Number of logits; the model is traced, so that a wrong input size is told now."""
        shape = (1, *self._input.sides, len(self._input.mean))
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        try:
            logits = nnx.eval_shape(lambda m, x: m(x), self._model, x)
        except (ValueError, TypeError, ZeroDivisionError) as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"the model does not take an input {shape}: {said}") from error
        return logits.shape[-1]

    def _class_of(self, target: str | int) -> int | None:
        if target == PREDICTED:
            return None
        if isinstance(target, str) and target.isdecimal():  # the command line's numbers are text
            target = int(target)
        if isinstance(target, str):
            if target not in self._names:
                raise ValueError(f"target={target!r}; must be 'predicted', a class or its name")
            return self._names.index(target)
        if type(target) is not int or not 0 <= target < self._count:
            raise ValueError(f"target={target!r}; must be a class from 0 to {self._count - 1}")
        return target

    # ------------------------------------------------------------ the launcher's protocol

    def cases(self) -> Sequence[str]:
        """The images' ids, in order of their names."""
        return list(self._files)

    def fingerprint(self, case: str) -> str:
        """A hash of the image's bytes and of the weights' size and time."""
        digest = hashlib.sha256(self._files[case].read_bytes())
        digest.update(self._stamp.encode())
        return digest.hexdigest()[:32]

    def run(self, case: str, folder: Path) -> dict[str, Any]:
        """Explain one image; a row of its first class and each rule's conservation gap.

        Raises:
            ValueError: the file is no readable image.
            FloatingPointError: logits or relevance that are not finite.
        """
        seen = self._input.cut(read(self._files[case]))
        x = jnp.asarray(self._input.normalised(seen)[None])
        told: dict[str, Any] = {"image": self._files[case].name}
        maps: dict[str, np.ndarray] = {}
        rules: dict[str, Any] = {}
        for rule in self._rules:
            found = self._programs[rule.label](x, self._target)
            if not (np.isfinite(found.relevance).all() and np.isfinite(found.logits).all()):
                raise FloatingPointError(f"rule {rule.label!r}: logits or relevance not finite")
            maps[rule.file] = found.relevance
            if not rules:
                told |= self._classified(found.logits.astype(np.float64))
            rules[rule.label] = _summed(found, rule)
        told["rules"] = rules
        for rule in self._rules:
            picture = figure(
                seen, maps[rule.file], title=rule.label, subtitle=_subtitle(told, rule)
            )
            save_png(picture, folder / f"{rule.file}.png")
        np.savez_compressed(folder / _ARRAYS, allow_pickle=False, image=np.float32(seen), **maps)
        text = json.dumps(told, indent=2, ensure_ascii=False)
        (folder / _TOLD).write_text(text + "\n", encoding="utf-8")
        first = told["classes"][0]
        gaps = {f"gap {label}": rule["conservation_gap"] for label, rule in told["rules"].items()}
        return {"class": first["name"], "probability": first["probability"], **gaps}

    def finish(self, rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
        """Write montage.png of the first images, and rows.csv of all."""
        import csv

        with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        lines = [self._line(folder / str(row["case"])) for row in rows[: self._sheet]]
        if lines:
            labels = [rule.label for rule in self._rules]
            save_png(montage(lines, labels, title=self._title), folder / "montage.png")

    # ------------------------------------------------------------ parts of a case

    def _classified(self, logits: Float[np.ndarray, " k"]) -> dict[str, Any]:
        """The likeliest classes and the explained one, with softmax probabilities."""
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        order = np.argsort(-logits, kind="stable")
        chosen = int(order[0]) if self._target is None else self._target

        def one(index: int) -> dict[str, Any]:
            return {
                "class": index,
                "name": self._names[index],
                "probability": round(float(shares[index]), 6),
                "logit": round(float(logits[index]), 6),
            }

        return {"classes": [one(int(i)) for i in order[: self._top]], "target": one(chosen)}

    def _line(self, folder: Path) -> Line:
        """A row of the sheet, from the files of a case."""
        told = json.loads((folder / _TOLD).read_text(encoding="utf-8"))
        with np.load(folder / _ARRAYS, allow_pickle=False) as arrays:
            image, maps = arrays["image"], tuple(arrays[rule.file] for rule in self._rules)
        first, target = told["classes"][0], told["target"]
        second = told["classes"][1] if len(told["classes"]) > 1 else None
        captions = [f"{first['name']}  {first['probability']:.0%}"]
        if target["class"] != first["class"]:
            captions.append(f"explained: {target['name']}  {target['probability']:.0%}")
        elif second:
            captions.append(f"then {second['name']}  {second['probability']:.0%}")
        notes = []
        for rule in self._rules:
            found = told["rules"][rule.label]
            notes.append(f"sum {found['sum']:.3g} of logit {target['logit']:.3g}")
        return Line(image, tuple(captions), maps, tuple(notes))


def _stamp(weights: str) -> str:
    """Names, sizes and times of the files that the weights are in."""
    place = Path(weights)
    if weights == RANDOM:
        return weights
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    found = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files if p.is_file()]
    return repr(found)


def _summed(found: Found, rule: Shown) -> dict[str, Any]:
    return {
        "composite": rule.composite.name,
        "picture": f"{rule.file}.png",
        "sum": float(found.total),
        "conservation_gap": float(found.gap),
        "largest": float(np.abs(found.relevance).max()),
    }


def _subtitle(told: Mapping[str, Any], rule: Shown) -> str:
    target, found = told["target"], told["rules"][rule.label]
    return (
        f"{target['name']}, probability {target['probability']:.1%}; logit {target['logit']:.3g}, "
        f"sum of relevance {found['sum']:.3g}"
    )
