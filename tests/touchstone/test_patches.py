"""Patches of prepared cases: which voxels, which draws, and the same again from any step."""

import json
import shutil

import numpy as np
import pytest

from tests.touchstone.toy_prepared import SHAPE, plan, volume, write_case, write_set
from touchstone_jax import patches
from touchstone_jax.labels.schemes import scheme
from touchstone_jax.losses import IGNORE
from touchstone_jax.prepare.prepared import open_prepared

BLOCK = (8, 8, 8)
LABELS = scheme("abdomenatlas_1.0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def prepared(folder):
    return patches.read_set(folder)


def stream(prepared, seed=3, **options):
    """As launch makes it: shuffled, endless, in batches."""
    random = patches.random_patches(prepared, prepared.cases, BLOCK, **options)
    return random.shuffle(seed=seed).repeat().batch(2)


def test_an_item_is_the_volumes_own_voxels(folder):
    image, labels = volume(1)
    opened = open_prepared(folder / "case_1")
    for start in ((0, 0, 0), (12, 9, 32), (5, 3, 17)):
        made = patches.item(opened, start, BLOCK, LABELS)
        box = tuple(slice(s, s + 8) for s in start)
        np.testing.assert_array_equal(made["image"][..., 0], image[box])
        np.testing.assert_array_equal(made["labels"], labels[box])
        assert made["image"].dtype == np.float16 and made["labels"].dtype == np.uint8
        assert made["annotated"].tolist() == [True] * 10


def test_what_lies_outside_is_zero_and_ignored(folder):
    image, labels = volume(0)
    opened = open_prepared(folder / "case_0")
    made = patches.item(opened, (-3, 12, 36), BLOCK, LABELS)
    np.testing.assert_array_equal(made["image"][3:, :5, :4, 0], image[:5, 12:, 36:])
    np.testing.assert_array_equal(made["labels"][3:, :5, :4], labels[:5, 12:, 36:])
    rest = np.ones(BLOCK, bool)
    rest[3:, :5, :4] = False
    assert not made["image"][rest].any() and (made["labels"][rest] == IGNORE).all()
    nowhere = patches.item(opened, (30, 0, 0), BLOCK, LABELS)
    assert (nowhere["labels"] == IGNORE).all()


def test_blocks_stay_inside_and_reach_every_corner(folder):
    opened = open_prepared(folder / "case_0")
    rng = np.random.default_rng(0)
    starts = np.array([patches.draw_start(rng, opened, BLOCK, 0.0) for _ in range(500)])
    assert starts.min(0).tolist() == [0, 0, 0]
    assert starts.max(0).tolist() == [n - 8 for n in SHAPE]
    small = patches.draw_start(rng, opened, (24, 17, 8), 0.0)
    assert small[:2] == (-2, 0) and 0 <= small[2] <= 32


def test_each_organ_is_as_likely_to_be_the_centre(folder):
    opened = open_prepared(folder / "case_0")
    labels = volume(0)[1]
    rng, seen = np.random.default_rng(1), []
    for _ in range(400):
        start = patches.draw_start(rng, opened, (3, 3, 3), 1.0)
        seen.append(labels[tuple(s + 1 for s in start)])
    counts = np.bincount(seen, minlength=6)
    assert counts[1] + counts[5] == 400 and abs(counts[1] - 200) < 60


def test_a_third_of_the_draws_is_centred_on_an_organ(prepared):
    # The organs fill 5 % of the volumes; centres are on them in 33 % + 67 % · 5 % of the draws.
    random = patches.random_patches(prepared, prepared.cases, (1, 1, 1), per_case=300)
    share = np.mean([random[i]["labels"][0, 0, 0] > 0 for i in range(len(random))])
    inside = np.mean([(volume(i)[1] > 0).mean() for i in range(3)])
    assert share == pytest.approx(0.33 + 0.67 * inside, abs=0.05)


def test_a_batch_is_a_pure_function_of_seed_and_step(prepared, folder):
    first, again = stream(prepared), stream(patches.read_set(folder))
    steps = [5, 0, 17, 3]  # in any order, as after a resume
    for step in steps:
        for name, value in first[step].items():
            np.testing.assert_array_equal(value, again[step][name])
    assert (first[0]["image"] != stream(prepared, seed=4)[0]["image"]).any()
    other = stream(prepared, seed=3)
    np.testing.assert_array_equal(other[2]["image"], first[2]["image"])
    # Read ahead in threads: the same.
    for step, batch in zip(range(4), iter(first.to_iter_dataset()), strict=False):
        np.testing.assert_array_equal(batch["image"], first[step]["image"])


def test_epochs_show_other_blocks_of_every_case(prepared):
    random = patches.random_patches(prepared, prepared.cases, BLOCK).shuffle(seed=0).repeat()
    epochs = [[random[e * 3 + i]["image"].tobytes() for i in range(3)] for e in range(3)]
    assert len({image for epoch in epochs for image in epoch}) == 9


def test_whole_cases_are_drawn_as_small_as_a_block(prepared, folder):
    image, labels = volume(1)
    sizes = zip(BLOCK, SHAPE, strict=True)
    at = np.ix_(*[((np.arange(b) + 0.5) * n / b).astype(int) for b, n in sizes])
    made = patches.whole(open_prepared(folder / "case_1"), BLOCK, LABELS)
    np.testing.assert_array_equal(made["image"][..., 0], image[at])
    np.testing.assert_array_equal(made["labels"], labels[at])
    wholes = {labels.tobytes() for labels in (volume(i)[1][at] for i in range(3))}
    for zoom_out, least, most in ((0.0, 0, 0), (0.5, 18, 42), (1.0, 60, 60)):
        drawn = stream(prepared, zoom_out=zoom_out)
        found = [drawn[i] for i in range(30)]
        share = sum(one.tobytes() in wholes for batch in found for one in batch["labels"])
        assert least <= share <= most
        if zoom_out:
            np.testing.assert_array_equal(drawn[7]["image"], found[7]["image"])


def test_tiles_cover_every_voxel_once(prepared):
    covered = patches.tiles(prepared, prepared.cases[1:], (8, 16, 16))
    counts = {}
    for i in range(len(covered)):
        made = covered[i]
        valid = made["labels"] != IGNORE
        counts.setdefault(int(made["case"]), []).append(np.sort(made["image"][valid].ravel()))
    for number, parts in counts.items():
        image = np.sort(volume(number + 1)[0].ravel())
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), image)
    assert set(counts) == {0, 1}


def test_classes_that_nobody_looked_for_are_told(tmp_path):
    write_case(tmp_path, "part", *volume(0), plan(), missing=("liver", "aorta"))
    known = patches.annotated(open_prepared(tmp_path / "part"), LABELS)
    assert np.flatnonzero(~known).tolist() == [LABELS.indices["aorta"], LABELS.indices["liver"]]


def test_a_case_without_organs_gives_random_blocks(tmp_path):
    image, labels = volume(0)
    write_case(tmp_path, "empty", image, np.zeros_like(labels), plan())
    opened = open_prepared(tmp_path / "empty")
    starts = {patches.draw_start(np.random.default_rng(i), opened, BLOCK, 1.0) for i in range(9)}
    assert len(starts) > 5


def test_only_the_chunks_that_a_block_touches_are_read(folder, tmp_path):
    # Behind the first 32 voxels along z lies another chunk; damage shows who reads it.
    shutil.copytree(folder / "case_0", tmp_path / "case_0")
    (file,) = (p for p in (tmp_path / "case_0" / "image" / "c").rglob("*") if p.is_file())
    raw = bytearray(file.read_bytes())
    index = np.frombuffer(raw[-36:-4], "<u8").reshape(2, 2)  # offset and size of both chunks
    offset, size = (int(v) for v in index[1])
    raw[offset + size // 2] ^= 0xFF
    file.write_bytes(raw)
    opened = open_prepared(tmp_path / "case_0")
    patches.item(opened, (0, 0, 24), BLOCK, LABELS)
    with pytest.raises(ValueError, match="^case_0: "):
        patches.item(opened, (0, 0, 25), BLOCK, LABELS)


CASES = [f"c{i}" for i in range(40)]


def test_validation_is_a_stable_share_of_the_cases():
    train, val = patches.split_cases(CASES, 0.2)
    assert len(val) == 8 and sorted(train + val) == sorted(CASES) and set(train).isdisjoint(val)
    more = patches.split_cases([*CASES, *(f"d{i}" for i in range(5))], 0.2)[1]
    assert len(set(val) & set(more)) >= 6
    assert patches.split_cases(CASES, 0.2, seed=1)[1] != val
    assert patches.split_cases(CASES, 0.001)[1] and not patches.split_cases(CASES, 0)[1]
    assert patches.split_cases(CASES, ["c3"])[1] == ("c3",)
    assert patches.split_cases(["a"], ["a"]) == (("a",), ("a",))


@pytest.mark.parametrize(
    ("cases", "validation", "said"),
    [
        (CASES, 1.0, r"validation=1.0; expected a share in \[0, 1\)"),
        (CASES, ["c3", "x"], "validation='x' is none of the 40 cases"),
        (["a"], 0.5, "validation=0.5 leaves none of 1 cases to train on"),
    ],
)
def test_bad_splits_are_told(cases, validation, said):
    with pytest.raises(ValueError, match=said):
        patches.split_cases(cases, validation)


def test_bad_folders_are_told(folder, tmp_path, prepared):
    with pytest.raises(FileNotFoundError, match="holds no dataset.json: run `prepare` first"):
        patches.read_set(tmp_path)
    shutil.copytree(folder, tmp_path / "a")
    file = tmp_path / "a" / "dataset.json"
    stored = json.loads(file.read_text())
    for text, said in (
        ("{", "cannot be read"),
        (json.dumps({**stored, "cases": []}), "lists no case"),
        (json.dumps({**stored, "plan": {}}), "expected the keys"),
        (json.dumps({**stored, "cases": ["../a/case_0"]}), "case '../a/case_0' cannot name a fol"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=said):
            patches.read_set(tmp_path / "a")
    file.write_text(json.dumps({**stored, "cases": ["case_0", "gone"]}))
    with pytest.raises(FileNotFoundError, match="^gone: no prepared case"):
        patches.read_set(tmp_path / "a")
    write_case(tmp_path / "a", "other", *volume(0), plan(std_hu=400.0))
    file.write_text(json.dumps({**stored, "cases": ["other"]}))
    other = patches.random_patches(patches.read_set(tmp_path / "a"), ["other"], BLOCK)
    with pytest.raises(ValueError, match="other: prepared by another plan"):
        other[0]
    with pytest.raises(ValueError, match="foreground=1.5, zoom_out=0.0, per_case=1"):
        patches.random_patches(prepared, prepared.cases, BLOCK, foreground=1.5)
