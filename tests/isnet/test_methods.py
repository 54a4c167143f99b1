"""Every method as a task trains it: what it prepares, what it keeps, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isnet_jax.tasks import METHODS, MaskedClassifier
from tests.isnet.baseline_cases import fast_jit

CNN = {"name": "simple_cnn", "widths": (2, 3), "pooled": 1}
MARKED = {"source": "mnist_bias", "shrink": 4, "limits": (40, 20, 20)}
COLOURED = {"source": "coloured_mnist", "shrink": 4, "threshold": 0.3, "limits": (40, 20, 20)}
UNET = {"widths": (2, 3)}
CASES = {
    **{name: {"method": name} for name in ("erm", "selective", "original", "dual", "rrr")},
    **{name: {"method": name} for name in ("gain", "extended_gain", "gals", "stochastic")},
    **{name: {"method": name} for name in ("grad_x_input", "softmax_grad_x_input")},
    "ham": {
        "method": "ham",
        "model": {"depths": (1,), "block": "basic", "width": 4, "stem": "small", "head": 4},
        "options": {"normal": None},
    },
    "multitask_unet": {
        "method": "multitask_unet",
        "model": {**UNET, "pooled": 1, "hidden": 4},
    },
    "ag_sononet": {
        "method": "ag_sononet",
        "model": {"feature_scale": 64},
        "data": {**MARKED, "shrink": 2},
    },
    "pipeline": {"method": "pipeline", "options": {"segmenter": UNET, "segmenter_steps": 2}},
    **{
        name: {
            "method": name,
            "options": {"epoch": 2, "inference": {"steps": 1}},
            "data": COLOURED,
        }
        for name in ("irm", "group_dro", "pgi")
    },
    "distillation": {
        "method": "distillation",
        "options": {"target": "lrp"},
        "teacher": {"steps": 2, "gains": True, "model": {**CNN, "widths": (2, 4)}},
        "data": COLOURED,
    },
}


def make(optimizer=None, **changes):
    return MaskedClassifier(
        optimizer=optimizer or optax.sgd(0.1), **({"data": MARKED, "model": CNN} | changes)
    )


def batches_of(task, size=16):
    shuffled = task.dataset("train").shuffle(0).repeat().batch(size)
    return lambda i: {k: jnp.asarray(v) for k, v in shuffled[i].items()}


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def started(task):
    return fast_jit(task.init)(jax.random.key(0))


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam and schedules mix dtypes
        yield


def test_the_table_names_every_method():
    assert set(CASES) == set(METHODS) - {"plain"}


@pytest.mark.parametrize("name", CASES)
def test_a_step_keeps_the_state_s_form_and_has_a_gradient_in_every_method(name):
    """Traced, not compiled: what a step computes is tested where the objectives are."""
    task = make(**CASES[name])
    state = jax.eval_shape(task.init, jax.random.key(0))
    batch = batches_of(task)(0)
    after, values = jax.eval_shape(task.step, state, batch, jax.random.key(1))
    assert shapes(after) == shapes(state)
    assert all(v.shape == () for v in values.values())
    assert {"loss", "gradient_norm", "accuracy"} <= set(values)


@pytest.mark.parametrize("name", ["selective", "pgi", "distillation"])
def test_rows_that_only_fill_a_batch_up_leave_the_loss_alone(name):
    task = make(**CASES[name])
    state, batch = started(task), batches_of(task, 4)(0)
    batch["valid"] = jnp.asarray([True, True, True, False])
    score = fast_jit(lambda batch: task._score.__wrapped__(task, state, batch))
    loss, count = score(batch)
    other = batch["image"].at[3].set(0.5)
    assert int(count) == 3 and float(loss) > 0
    assert float(score({**batch, "image": other})[0]) == pytest.approx(float(loss), rel=1e-6)
    every = {**batch, "image": other, "valid": jnp.ones(4, bool)}
    assert float(score(every)[0]) != pytest.approx(float(loss), rel=1e-3)


# ------------------------------------------------------------------ what is prepared


def test_a_student_gets_the_teacher_s_head_and_keeps_it():
    task = make(optax.adamw(0.1, weight_decay=0.5), **CASES["distillation"])
    state, batches = started(task), batches_of(task)
    assert "privileged" in batches(0)
    ready = task.prepare(state, batches)
    assert shapes(ready) == shapes(state)
    head = ready["teacher"]["params"]["classifier"]
    before = state["teacher"]["params"]["classifier"]
    assert (np.asarray(head["kernel"]) != np.asarray(before["kernel"])).any()  # it has learnt
    after, _ = fast_jit(task.step)(ready, batches(3), jax.random.key(0))
    for one, other in (
        (ready["params"]["classifier"], head),
        (after["params"]["classifier"], head),
        (after["teacher"], ready["teacher"]),
    ):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    moved = [
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(
            jax.tree.leaves(after["params"]["blocks"]),
            jax.tree.leaves(ready["params"]["blocks"]),
            strict=True,
        )
    ]
    assert all(moved)


def test_groups_are_inferred_and_the_penalty_grows_by_steps():
    task = make(**CASES["pgi"])
    state, batches = started(task), batches_of(task)
    ready = task.prepare(state, batches)
    groups = np.asarray(ready["groups"])
    assert groups.shape == (40,) and set(groups) <= {0, 1} and int(ready["step"]) == 0
    batch = batches(0)
    np.testing.assert_array_equal(  # "index" says which row of the split an item is
        np.asarray(task._data.arrays["train"]["label"])[np.asarray(batch["index"])], batch["label"]
    )
    after, values = fast_jit(task.step)(ready, batch, jax.random.key(0))
    assert int(after["step"]) == 1
    # Step 0 is the start of the second epoch: a fifth of lambda = 50.
    expected = float(values["cross_entropy"]) + 10 * float(values["penalty"])
    assert float(values["loss"]) == pytest.approx(expected, rel=1e-5)


def test_a_pipeline_is_blind_to_what_its_segmenter_calls_background():
    task = make(**CASES["pipeline"])
    state = task.prepare(started(task), batches_of(task))
    method, x = task._method, batches_of(task)(0)["image"]
    mask = np.asarray(method._segmenter.mask(state["segmenter"], x))
    seen = np.asarray(method._seen(state, x))
    np.testing.assert_array_equal(seen, np.asarray(x) * mask)
    assert set(np.unique(mask)) <= {0, 1}


def test_attention_comes_from_the_mask_or_a_teacher():
    batch = batches_of(make(method="gals"))(0)
    np.testing.assert_array_equal(
        make(method="gals")._method._batch({}, batch)["attention"], batch["mask"]
    )
    task = make(
        method="gals", options={"attention": "teacher"}, teacher={"kind": "masked", "steps": 1}
    )
    attention = np.asarray(task._method._batch(started(task), batch)["attention"])
    assert attention.shape == batch["mask"].shape and 0 <= attention.min() <= attention.max() <= 1


@pytest.mark.parametrize("kind", ["masked", "pipeline", "privileged"])
def test_what_teachers_see(kind):
    task = make(
        method="distillation",
        teacher={"kind": kind, "segmenter": UNET},
        options={"target": "output"},
    )
    batch, teacher = batches_of(task)(0), task._method.teacher
    state = jax.tree.map(jnp.zeros_like, started(task)["teacher"])
    seen = np.asarray(teacher.sees(state, batch))
    image, mask = np.asarray(batch["image"]), np.asarray(batch["mask"])
    # A U-Net of zeros finds no foreground.
    expected = {"masked": image * mask, "pipeline": 0 * image, "privileged": image}
    np.testing.assert_array_equal(seen, expected[kind])
    lesson = np.asarray(teacher._lesson(state, batch, jax.random.key(0)))
    learnt = np.asarray(batch["privileged"]) if kind == "privileged" else expected[kind]
    np.testing.assert_array_equal(lesson, learnt)


def test_a_stored_teacher_is_loaded_not_trained():
    stored = {"kind": "stored", "weights": "random"}
    task = make(method="distillation", teacher=stored, options={"target": "features"})
    state = jax.eval_shape(task.init, jax.random.key(0))
    after, _ = jax.eval_shape(task.step, state, batches_of(task)(0), jax.random.key(1))
    assert shapes(after) == shapes(state)
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    ready = task.prepare(blank, None)
    kernel = np.asarray(ready["teacher"]["params"]["classifier"]["kernel"])
    assert kernel.any()
    np.testing.assert_array_equal(ready["params"]["classifier"]["kernel"], kernel)


def test_a_teacher_s_targets_are_kept_beside_the_data(tmp_path):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 3)).astype(np.float32)
    arrays = {
        "image": rng.random((6, 8, 8, 1), np.float32),
        "mask": np.ones((6, 8, 8)),
        "label": np.arange(6) % 3,
        "teacher_value": logits,
        "teacher_class": logits.argmax(1).astype(np.int32),
        "teacher_epsilon": np.full(6, 0.03, np.float32),
    }
    for name in ("train", "val"):
        np.savez(tmp_path / f"{name}.npz", **arrays)
    data = {"source": "npz_folder", "folder": str(tmp_path), "num_classes": 3}
    task = make(data=data, method="distillation", options={"target": "output"})
    state, batch = started(task), task.dataset("train").batch(6)[0]
    assert task.prepare(state, None) is state  # nothing to be trained
    found, _ = task._method.loss(state["params"], state, batch, jax.random.key(0), training=False)
    student = np.asarray(task._method.network.predict(state, batch["image"]), np.float64)

    def log_softmax(y):
        return y - np.log(np.exp(y).sum(1, keepdims=True))

    t, s = log_softmax(logits / 3), log_softmax(student / 3)
    assert float(found) == pytest.approx(9 * (np.exp(t) * (t - s)).sum(1).mean(), rel=1e-4)
    with pytest.raises(ValueError, match="kind='stored', for its output layer"):
        make(data=data, method="distillation", options={"target": "lrp"})


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "rrr", "options": {"wait": 1}}, "option of method 'rrr' 'wait'.*weight"),
        ({"method": "rrr", "options": {"weight": -1}}, "RRR weight=-1"),
        ({"method": "selective", "options": {"weight": 1}}, "'selective' takes no options"),
        ({"method": "erm", "teacher": {"steps": 1}}, "'erm' has no teacher"),
        ({"method": "distillation", "options": {"target": "lpr"}}, "'lpr'; did you mean 'lrp'"),
        ({"method": "distillation", "teacher": {"kind": "kind"}}, "teacher kind.*privileged"),
        ({"method": "distillation", "teacher": {"kind": "stored"}}, "weights=''"),
        ({"method": "distillation", "teacher": {"gains": "no"}}, "gains='no'; must be True"),
        ({"method": "pgi", "options": {"epoch": 0}}, "pgi: epoch=0"),
        ({"method": "pgi", "options": {"inference": {"width": 1}}}, "'width'"),
        ({"method": "pipeline", "options": {"fill": "grey_noise"}}, "zero or white"),
        ({"method": "ham", "model": {"deep": 1}}, "option of model 'ham' 'deep'"),
        ({"method": "gals", "options": {"attention": "clip"}}, "GALS attention 'clip'"),
        ({"method": "erm", "model": {"widths": (2,)}}, "has no name"),
        ({"method": "rrr", "options": {"weight": "big"}}, "RRR weight='big'; expected"),
        ({"method": "pgi", "options": {"ramp": "x"}}, "pgi: epoch=100, ramp='x'"),
        ({"method": "irm", "options": {"inference": 7}}, "irm: inference=7"),
        ({"method": "irm", "options": {"inference": {"widths": 7}}}, "widths >= 1, got 100.* 7"),
        ({"method": "group_dro", "options": {"groups": 1}}, "groups=1; two are inferred"),
        ({"method": "pipeline", "options": {"segmenter_steps": "x"}}, "fit: steps='x'"),
        ({"method": "multitask_unet", "options": {"weight": "x"}}, "multi-task weight='x'"),
        ({"method": "ham", "options": {"normal": 10}}, r"HAM normal=10; legal: 0..9"),
        ({"method": "ham", "options": {"normal": "No Finding"}}, "HAM normal='No Finding'"),
    ],
)
def test_bad_settings_are_named_before_any_compute(changes, said):
    with pytest.raises(ValueError, match=said):
        make(**changes)


@pytest.fixture
def findings(tmp_path):
    """Images of two findings, without masks."""
    from PIL import Image

    rng = np.random.default_rng(0)
    lines = ["Path,A,B"]
    for i in range(8):
        pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{i % 2},{i // 4}")
    table = tmp_path / "t.csv"
    table.write_text("\n".join(lines) + "\n")
    return {
        "source": "csv_labels",
        "tables": {"train": str(table), "val": str(table)},
        "labels": ("A", "B"),
        "folder": str(tmp_path),
        "size": 8,
    }


def test_several_findings_in_an_image(findings):
    task = make(data=findings, method="erm")
    state, batches = started(task), batches_of(task, 8)
    before = task._method.loss(
        state["params"], state, batches(0), jax.random.key(0), training=False
    )[0]
    logits = task._method.network.predict(state, batches(0)["image"])
    y, p = np.asarray(batches(0)["label"]), 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    assert float(before) == pytest.approx(expected, rel=1e-5)

    def feed(dataset):
        yield {**dataset.batch(8)[0], "valid": np.ones(8, bool)}

    scores = dict(task.evaluate(state, "val", feed))
    assert set(scores) == {"loss", "accuracy", "macro_f1", "auc"}
    with pytest.raises(ValueError, match=r"'pgi' needs one label an image"):
        make(data=findings, method="pgi")
    with pytest.raises(ValueError, match="of several findings none is normal; give None"):
        make(data=findings, method="ham")
    with pytest.raises(ValueError, match=r"'original' needs 'mask', which 'csv_labels'"):
        make(data=findings, method="original")
