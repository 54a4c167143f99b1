"""A small task with all that makes exactness hard: noise and dropout, running means, AdamW."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

FEATURES, CLASSES = 8, 3


class Items:
    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(count, FEATURES)).astype(np.float32)
        self.y = (self.x @ np.random.default_rng(7).normal(size=(FEATURES, CLASSES))).argmax(1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.x[index], "y": np.int32(self.y[index]), "index": np.int32(index)}


class Toy:
    """One hidden layer, 64 × 64 in the middle so that the fsdp axis has something to split."""

    test_splits = ("test", "other")
    val_split = "val"
    infers_from = ("place",)

    def __init__(
        self,
        *,
        optimizer: optax.GradientTransformation,
        width: int = 64,
        noise: float = 0.1,
        count: int = 40,
        # A file with a line "step", "step@process" or "step@process=SIGTERM" for each signal (by
        # default SIGKILL) that a process sends itself when it evaluates there, once each.
        kills: str = "",
        nan_at: int = -1,  # the item that makes the loss NaN
        fail: str = "",
        shift: float | None = None,
        place: str | Mapping[str, Any] = "",  # a file that stands for the data
    ) -> None:
        if fail == "constructor":
            raise ValueError("fail = 'constructor': legal are '', 'evaluate'")
        if fail == "key":
            raise KeyError(fail)
        self.optimizer, self.width, self.noise = optimizer, width, noise
        self.count, self.kills, self.nan_at = count, kills, nan_at
        self.fail, self.shift, self.alone = fail, shift, isinstance(place, Mapping)
        self.identity = (
            {"place": {"text": Path(place).read_text()}} if place and not self.alone else {}
        )

    def dataset(self, split: str) -> grain.MapDataset:
        assert not self.alone, "there are no data"
        if self.fail == "data":
            raise FileNotFoundError("no folder 'nowhere' with the digits")
        sizes = {"train": self.count, "val": 10, "test": 13, "other": 5}
        data = grain.MapDataset.source(Items(sizes[split], seed=len(split)))
        return data.map(self._spoil) if split == "train" else data

    def _spoil(self, item: dict[str, Any]) -> dict[str, Any]:
        if item["index"] == self.nan_at:
            return {**item, "x": np.full_like(item["x"], np.nan)}
        return item

    def init(self, rng: jax.Array) -> dict[str, Any]:
        a, b, c = jax.random.split(rng, 3)
        w = self.width
        params = {
            "first": jax.random.normal(a, (FEATURES, w)) / 3,
            "middle": jax.random.normal(b, (w, w)) / w**0.5,
            "last": {
                "kernel": jax.random.normal(c, (w, CLASSES)) / w**0.5,
                "bias": jnp.zeros(CLASSES),
            },
        }
        return {
            "params": params,
            "ema": jax.tree.map(jnp.copy, params),
            "rest": {"mean": jnp.zeros(w), "tuned": jnp.zeros(()), "steps": jnp.int32(0)},
            "opt_state": self.optimizer.init(params),
        }

    def prepare(self, state: dict[str, Any], batches: Callable[[int], Any]) -> dict[str, Any]:
        tuned = jnp.float32(float(batches(0)["x"].max()))
        return {**state, "rest": {**state["rest"], "tuned": tuned}}

    def _logits(
        self, params: Any, mean: jax.Array, x: jax.Array, dropout: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        hidden = jax.nn.relu(x @ params["first"])
        batch_mean = hidden.mean(0)
        hidden = jax.nn.relu((hidden - mean[None]) @ params["middle"])
        if dropout is not None:
            hidden *= jax.random.bernoulli(dropout, 0.9, hidden.shape) / 0.9
        return hidden @ params["last"]["kernel"] + params["last"]["bias"][None], batch_mean

    def step(self, state: Any, batch: Any, rng: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        if self.fail == "step":
            raise ValueError("fail = 'step'")
        rest = state["rest"]
        noise, dropout = jax.random.split(rng)
        x = batch["x"] + self.noise * jax.random.normal(noise, batch["x"].shape)
        if self.shift is not None:
            x = x + self.shift

        def loss_of(params: Any) -> tuple[jax.Array, jax.Array]:
            logits, mean = self._logits(params, rest["mean"], x, dropout)
            ce = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
            return ce.mean() + 0.001 * rest["tuned"], mean

        (loss, mean), grads = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
        updates, opt_state = self.optimizer.update(grads, state["opt_state"], state["params"])
        new = {**rest, "mean": 0.9 * rest["mean"] + 0.1 * mean, "steps": rest["steps"] + 1}
        params = optax.apply_updates(state["params"], updates)
        ema = jax.tree.map(lambda m, p: 0.9 * m + 0.1 * p, state["ema"], params)
        state = {"params": params, "ema": ema, "rest": new, "opt_state": opt_state}
        # Tells which items in which rows the batch was made of.
        rows = jnp.arange(1, len(batch["index"]) + 1, dtype=jnp.int32)
        items = jnp.sum(rows * batch["index"]).astype(jnp.float32)
        return state, {"loss": loss, "mean": mean.mean(), "items": items}

    def evaluate(self, state: Any, split: str, feed: Any) -> Iterator[tuple[str, float]]:
        self._perhaps_die(int(state["rest"]["steps"]))
        if self.fail == f"host {jax.process_index()}":
            raise OSError("stale file handle")
        if self.fail == "evaluate" and split == "test":
            raise RuntimeError("evaluation broke")
        score = jax.jit(self._score)
        right, rows = 0, 0
        for batch in feed(self.dataset(split)):
            got = score(state["params"], state["rest"]["mean"], batch)
            right, rows = right + int(got[0]), rows + int(got[1])
        assert rows == len(self.dataset(split))
        yield "accuracy", right / rows
        params = [np.asarray(array) for array in jax.tree.leaves(state["params"])]
        yield "sum", float(sum(np.abs(array).sum() for array in params))

    def _score(self, params: Any, mean: jax.Array, batch: Any) -> tuple[jax.Array, jax.Array]:
        logits, _ = self._logits(params, mean, batch["x"])
        right = (logits.argmax(1) == batch["y"]) & batch["valid"]
        return right.sum(), batch["valid"].sum()

    def _perhaps_die(self, step: int) -> None:
        for line in Path(self.kills).read_text().split() if self.kills else ():
            at, _, name = line.partition("=")
            number, _, process = at.partition("@")
            if int(number) == step and process in ("", str(jax.process_index())):
                todo = [one for one in Path(self.kills).read_text().split() if one != line]
                Path(self.kills).write_text("\n".join(todo))
                os.kill(os.getpid(), signal.Signals[name or "SIGKILL"])
                # Steps take milliseconds here: the notice shall come round before the next ones.
                time.sleep(2)

    def explain(self, state: Any, split: str, count: int) -> dict[str, np.ndarray]:
        image = np.zeros((count, 2, 2, 3), np.uint8)
        value = int(np.asarray(state["rest"]["mean"]).sum() * 10) % 256
        return {"image": image, "map": image + np.uint8(value)}

    def draw(self, panels: dict[str, np.ndarray], path: Path) -> None:
        Path(path).write_text("|".join(panels))
