"""What the user sees: one-line errors, the table, the record, the pictures."""

import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from launch import mesh, record
from launch.__main__ import main
from launch.checkpoint import Store, load
from launch.experiment import Checkpoint, Mesh, Optimizer
from launch.optimize import optimizer, schedule
from launch.record import rows
from tests.launch.conftest import CARD

HEAVY = ("jax", "flax", "optax", "orbax", "grain", "matplotlib")


def only_line(capsys: pytest.CaptureFixture) -> str:
    """The last error, after checking that it is one line and nothing like a traceback."""
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert told.splitlines()[-1].startswith("error: ") and told.count("error: ") == 1
    return told.splitlines()[-1]


# ------------------------------------------------------------------------- set-up errors


def test_a_near_miss_is_told_before_anything_heavy_is_imported(
    spawn: Callable, tmp_path: Path
) -> None:
    code = (
        "import sys; from launch.__main__ import main; code = main(sys.argv[1:]);"
        f"print(code, [m for m in {HEAVY} if m in sys.modules])"
    )
    where = ("train", "--config", CARD, "--workdir", str(tmp_path))
    done = spawn(*where, "--config.task.nose=1", code=code)
    assert done.stdout.strip() == "2 []", done.stderr
    assert "'config.task.nose': did you mean 'config.task.noise'" in done.stderr
    assert done.stderr.rstrip().endswith("a key that the card lacks is added in the card")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        (["stepz=1"], "'config.stepz': did you mean 'config.steps'"),
        (["learning_rate=1"], "did you mean 'config.optimizer.learning_rate'"),
        (["steps=1.5"], "config.steps = 1.5 must be int, not float"),
        (["steps=0"], "must be at least 1"),
        ([f"seed={2**32}"], "config.seed = 4294967296 must be less than"),
        ([f"seed={2**32 - 1}", "seeds=2"], "config.seeds = 2"),
        (["optimizer.learning_rate=0"], "config.optimizer.learning_rate = 0.0 must be greater"),
        (["optimizer.learning_rate=nan"], "config.optimizer.learning_rate = nan must be finite"),
        (["optimizer.momentum=1"], "config.optimizer.momentum = 1.0 must be less than 1"),
        (["optimizer.beta2=-0.1"], "config.optimizer.beta2 = -0.1 must be at least 0"),
        (["optimizer.step_at=('a',)"], "config.optimizer.step_at holds 'a'"),
        (["task.fail=key"], "Toy: KeyError: 'key'"),
        (["optimizer.name=adamm"], "legal are sgd, adam, adamw"),
        (["tensorboard=perhaps"], "must be bool"),
        (["task.name=tests.launch.toy:Tou"], "tasks there: Toy"),
        (["task.name=tests.launch.nothing:Toy"], "No module named"),
        (["task.fail=constructor"], "Toy: fail = 'constructor': legal are"),
        (["task.fail=data"], "Toy: no folder 'nowhere'"),
        (["batch_size=9"], "must be a multiple of the 8 devices"),
        (["mesh.fsdp=3"], "8 devices"),
        (["task.width=-1"], "Toy.init"),
        (["task.shift=word"], "config.task.shift = 'word' must be float or None, not str"),
        (["task.fail=step"], "Toy.step: fail = 'step'"),
        (["checkpoint.best=val/nothing"], "legal are val/accuracy, val/sum"),
    ],
)
def test_a_mistake_is_one_line(
    keys: list[str], part: str, launch: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert launch(tmp_path, *keys) == 2
    assert part in only_line(capsys)


def test_keys_of_the_card_itself_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def train(text: str) -> str:
        card = tmp_path / "card.py"
        card.write_text(f"def get_config():\n    return {text}\n")
        assert main(["train", "--config", str(card), "--workdir", str(tmp_path / "w")]) == 2
        return only_line(capsys)

    def card_with(text: str, task: str = "") -> str:
        name = "'name': 'tests.launch.toy:Toy'"
        return f"{{'task': {{{name}, {task}}}, 'batch_size': 8, {text}}}"

    told = train(card_with("'steps': 1, 'log_evry': 2"))
    assert "'config.log_evry': did you mean 'config.log_every'" in told
    told = train(card_with("'steps': 1, 'optimizer': {'learnin_rate': 1.0}"))
    assert "did you mean 'config.optimizer.learning_rate'" in told
    assert "config.steps is missing" in train(card_with(""))
    told = train(card_with("'steps': 1, 'runs': {'a': {'task.nam': 1}}"))
    assert "'config.runs.a.task.nam': did you mean 'config.runs.a.task.name'" in told
    # What the card says about the task is checked against the constructor.
    told = train(card_with("'steps': 1", task="'widht': 3"))
    assert "'config.task.widht': did you mean 'config.task.width'" in told


def test_places_that_cannot_be(launch: Callable, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert launch(tmp_path / "file" / "below") == 2
    assert str(tmp_path / "file" / "below") in only_line(capsys)
    assert launch(tmp_path, card="nowhere.py") == 2
    assert "no config file 'nowhere.py'" in only_line(capsys)
    assert launch(tmp_path, card=CARD + ":strange") == 2
    assert "argument 'strange': legal are" in only_line(capsys)
    assert launch(tmp_path / "empty", verb="evaluate") == 2
    assert "train it first" in only_line(capsys)


def test_verbs(capsys: pytest.CaptureFixture) -> None:
    card = ["--config", CARD]
    where = [*card, "--workdir", "w"]
    for argv in (
        *([], ["trian"], ["train"], [*("train", *card), "--workdir", ""]),
        *(["list", *card], ["list", "--workdir", "w"], ["list", "--config.steps=1"]),
        *(["train", "folder", *where], ["evaluate", "--force", *where], ["list", "--force"]),
        *(["train", "--count=3", *where], ["explain", "--count=0", *where], ["list", "nowhere"]),
    ):
        assert main(argv) == 2
        assert only_line(capsys)
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--config.KEY=VALUE" in capsys.readouterr().out
    assert main(["list", "tests/launch"]) == 0
    assert f"{CARD}: Toy: 12 steps of a small network" in capsys.readouterr().out


def test_missing_extras_are_named(
    launch: Callable, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "find_spec", lambda name: None)
    assert launch(tmp_path, "tensorboard=true") == 2
    assert "needs the extra `tensorboard`: pip install" in only_line(capsys)
    assert launch(tmp_path, "steps=1") == 0
    assert capsys.readouterr().err.count("needs the extra `plot`") == 1


# ------------------------------------------------------------------------- running


def test_runs_and_seeds_make_one_table(launch: Callable, tmp_path: Path, capsys) -> None:
    card = CARD + ":runs"
    keys = ("steps=2", "tensorboard=true")
    assert launch(tmp_path, *keys, card=card) == 0
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "table.md").read_text()
    table = json.loads((tmp_path / "table.json").read_text())
    columns = ["test/accuracy", "test/sum", "other/accuracy", "other/sum"]
    assert table["columns"] == columns
    assert [(row["run"], row["seeds"]) for row in table["rows"]] == [
        ("plain", [0, 1]),
        ("noisy", [0, 1]),
    ]
    for row in table["rows"]:
        results = [
            json.loads((tmp_path / row["run"] / f"seed{k}/results.json").read_text())["metrics"]
            for k in (0, 1)
        ]
        values = [one["test/sum"] for one in results]
        assert values[0] != values[1]
        assert row["mean"]["test/sum"] == pytest.approx(statistics.mean(values))
        assert row["sd"]["test/sum"] == pytest.approx(statistics.stdev(values))
        assert f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}" in shown
    leaf = tmp_path / "plain/seed0"
    assert list((leaf / "tensorboard").iterdir())
    assert (tmp_path / "heatmaps.png").read_text() == "image|plain map|noisy map"

    assert launch(tmp_path, *keys, card=card) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("finished: ")
    assert launch(tmp_path, *keys, card=card, verb="evaluate") == 0
    assert capsys.readouterr().out == shown
    (tmp_path / "heatmaps.png").unlink()
    assert launch(tmp_path, *keys, card=card, verb="explain", flags=("--count=2",)) == 0
    assert (tmp_path / "heatmaps.png").exists()


def test_a_failed_run_does_not_end_the_others(launch: Callable, tmp_path: Path, capsys) -> None:
    assert launch(tmp_path, "steps=2", card=CARD + ":failing") == 1
    told = capsys.readouterr()
    assert "evaluation broke" in (tmp_path / "broken/seed0/error.txt").read_text()
    assert "Traceback" in told.err and "| sound" in told.out and "| broken" not in told.out
    assert (tmp_path / "broken/seed0/checkpoints/2").is_dir()
    assert not (tmp_path / "sound/seed0/error.txt").exists()


def test_nan_stops_at_its_step_and_keeps_the_finite_past(
    launch: Callable, last_state: Callable, tmp_path: Path, capsys
) -> None:
    keys = ("task.nan_at=11", "log_every=100", "eval_every=0", "checkpoint.every=1000")
    assert launch(tmp_path, *keys) == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    folder = tmp_path / "seed0/nan"
    found = json.loads((folder / "step.json").read_text())
    assert f"loss is nan at step {found['step']}" in told and found["batch"] == found["step"] - 1
    with np.load(folder / "batch.npz") as batch:
        assert np.isnan(batch["x"][batch["index"].tolist().index(11)]).all()
    assert np.load(folder / "rng.npy").dtype == np.uint32
    # With checkpoints on the way, the last before the NaN is there and finite.
    assert found["step"] > 1
    assert launch(tmp_path / "b", "task.nan_at=11", "checkpoint.every=1", "eval_every=0") == 1
    state, step = last_state(tmp_path / "b/seed0")
    assert step == found["step"] - 1
    assert all(np.isfinite(array).all() for array in state.values())


def test_a_state_that_is_not_finite_is_never_saved(
    launch: Callable, tmp_path: Path, capsys
) -> None:
    assert (
        launch(tmp_path, "steps=1", "optimizer.learning_rate=1e30", "optimizer.weight_decay=1e30")
        == 1
    )
    assert "state is not finite at step 1" in capsys.readouterr().err
    assert not [p for p in (tmp_path / "seed0/checkpoints").iterdir() if p.name.isdigit()]


def test_rows_hold_the_mean_of_their_window(launch: Callable, tmp_path: Path) -> None:
    fine, coarse = tmp_path / "fine", tmp_path / "coarse"
    assert launch(fine, "steps=6", "eval_every=0") == 0
    assert launch(coarse, "steps=6", "eval_every=0", "log_every=3", "checkpoint.every=0") == 0
    each = [row["loss"] for row in rows(fine / "seed0/metrics.jsonl")]
    means = [row["loss"] for row in rows(coarse / "seed0/metrics.jsonl")]
    assert means == pytest.approx([np.mean(each[:3]), np.mean(each[3:])], rel=1e-6)


# ------------------------------------------------------------------------- parts


def test_the_newest_and_the_best_are_kept_over_a_restart(tmp_path: Path) -> None:
    one = mesh.replicated(mesh.make(Mesh()))
    placed = {"a": jax.ShapeDtypeStruct((3,), np.float32, sharding=one)}
    settings = Checkpoint(keep=2, best="val/loss", keep_best=1)
    losses = {1: 0.5, 2: 0.1, 3: float("nan"), 4: 0.6, 5: 0.7, 6: 0.4}
    for part in ((1, 2, 3), (4, 5, 6)):
        store = Store(tmp_path, settings, {"checkpoint": {"best_mode": "min"}})
        for step in part:
            state = {"a": jax.device_put(np.full(3, step, np.float32), one)}
            store.save(step, state, {"val/loss": losses[step]})
        store.close()
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert kept == [2, 5, 6]
    for which, step in (("best", 2), ("last", 6)):
        state, found = load(tmp_path, placed, which)
        assert found == step and np.asarray(state["a"]).tolist() == [step] * 3


def test_schedules() -> None:
    cosine = schedule(Optimizer(schedule="cosine", warmup_steps=4, learning_rate=1.0), 20)
    assert [float(cosine(np.int32(k))) for k in (0, 2, 4, 12, 20)] == pytest.approx(
        [0, 0.5, 1, 0.5, 0]
    )
    steps = schedule(Optimizer(schedule="step", step_at=(3, 6), learning_rate=1.0), 9)
    assert [float(steps(np.int32(k))) for k in (2, 4, 7)] == pytest.approx([1, 0.1, 0.01])


def test_poly_schedule_is_nnunets() -> None:
    settings = Optimizer(schedule="poly", warmup_steps=10, learning_rate=0.01)
    poly = schedule(settings, 110)
    expected = [0.005, *(0.01 * (1 - k / 100) ** 0.9 for k in (0, 37, 99)), 0]
    got = [float(poly(np.int32(k))) for k in (5, 10, 47, 109, 110)]
    assert got == pytest.approx(expected, rel=1e-5)
    ends_higher = schedule(dataclasses.replace(settings, end_factor=0.1, power=2.0), 110)
    assert float(ends_higher(np.int32(60))) == pytest.approx(0.001 + 0.009 * 0.25, rel=1e-5)


def test_biases_do_not_decay_and_gradients_are_clipped() -> None:
    params = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
    zero = jax.tree.map(np.zeros_like, params)
    for name in ("adamw", "sgd"):
        tx = optimizer(Optimizer(name=name, weight_decay=0.1, learning_rate=1.0), 10)
        updates, _ = tx.update(zero, tx.init(params), params)
        assert float(np.abs(updates["bias"]).max()) == 0 < float(np.abs(updates["kernel"]).max())
    tx = optimizer(Optimizer(name="sgd", clip_norm=1.0, learning_rate=1.0), 10)
    updates, _ = tx.update(jax.tree.map(lambda a: 9 * a, params), tx.init(params), params)
    assert float(optax.tree.norm(updates)) == pytest.approx(1.0, rel=1e-6)
