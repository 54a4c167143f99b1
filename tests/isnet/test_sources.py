"""Coloured digits, ties, pictures in folders and tables, markers on any data; and bad input."""

import gzip
import json
import struct

import jax
import numpy as np
import pytest
from PIL import Image

from isnet_jax import data
from isnet_jax.data import coloured, ties
from isnet_jax.data.pictures import nearest
from launch import record
from launch.__main__ import main


def digits(n=60, side=8):
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (n, side, side, 1), dtype=np.uint8), np.arange(n) % 10


# ------------------------------------------------------------------ coloured digits


def colours_of(drawn):
    at = drawn["mask"][..., 0].reshape(len(drawn["mask"]), -1).argmax(1)
    return drawn["image"].reshape(len(at), -1, 3)[np.arange(len(at)), at]


def test_colours_tell_the_class_nothing_or_another_class():
    images, labels = digits()
    drawn = {m: data.coloured_digits(images, labels, mode=m, seed=3) for m in coloured.MODES}
    palette = coloured.PALETTE / np.float32(255)
    np.testing.assert_array_equal(colours_of(drawn["iid"]), palette[labels])
    shift = drawn["shift"]
    assert (shift["bias"] != labels).all()
    np.testing.assert_array_equal(colours_of(shift), palette[shift["bias"]])
    far = np.square(colours_of(drawn["ood"])[:, None] - palette[None]).sum(-1) * 255**2
    assert far.min() > 2500 and (drawn["ood"]["bias"] == -1).all()
    assert (colours_of(drawn["grey"]) == 1).all()
    for one in drawn.values():  # the same digits, flat, on black
        np.testing.assert_array_equal(one["mask"], (images / 255 > 0.5).astype(np.float32))
        np.testing.assert_array_equal((one["image"] > 0).any(-1, keepdims=True), one["mask"] == 1)


def test_strength_is_the_share_of_class_colours():
    images, labels = digits(400)
    drawn = data.coloured_digits(images, labels, mode="iid", seed=0, strength=0.8)
    assert 0.72 < (drawn["bias"] == labels).mean() < 0.88
    others = colours_of(drawn)[drawn["bias"] == -1]
    minority, unseen = coloured.unseen_colours(2, 0)
    assert {tuple(c) for c in others} <= {tuple(c) for c in minority}
    assert not {tuple(c) for c in minority} & {tuple(c) for c in unseen}


def test_image_i_depends_on_the_seed_and_i_alone():
    images, labels = digits()
    all_of_them = data.coloured_digits(images, labels, mode="shift", seed=5)["image"]
    few = data.coloured_digits(images[:7], labels[:7], mode="shift", seed=5)["image"]
    np.testing.assert_array_equal(all_of_them[:7], few)


def test_coloured_mnist_as_splits():
    splits = data.load("coloured_mnist", limits=(40, 20, 30), shrink=2, threshold=0.4)
    assert splits.test == ("iid", "ood", "shift") and splits.num_classes == 10
    iid, shift = splits.arrays["iid"], splits.arrays["shift"]
    assert iid["image"].shape == (30, 14, 14, 3) and len(splits.arrays["train"]["label"]) == 40
    np.testing.assert_array_equal(iid["mask"], shift["mask"])
    grey = splits.arrays["train"]["privileged"]
    np.testing.assert_array_equal(grey, np.repeat(splits.arrays["train"]["mask"], 3, axis=-1))


# ------------------------------------------------------------------ clothes


def test_ties_are_of_the_class_absent_or_swapped():
    images, labels = digits(8, side=28)
    images, labels = np.maximum(images, 1), labels % 2
    drawn = {m: data.with_ties(images, labels, mode=m) for m in ties.MODES}
    bow = drawn["iid"]["mask"][..., 0] == 0
    assert bow.any() and (bow == bow[:1]).all()  # the same place, out of the foreground
    np.testing.assert_array_equal(
        drawn["iid"]["image"][labels == 0][:, bow[0]][0],
        drawn["shift"]["image"][labels == 1][:, bow[0]][0],
    )
    assert (drawn["shift"]["bias"] == 1 - labels).all()
    grey = (images / np.float32(255)).astype(np.float32)
    np.testing.assert_allclose(drawn["ood"]["image"], np.repeat(grey, 3, -1), rtol=1e-6)
    for one in drawn.values():
        np.testing.assert_array_equal(one["image"][:, ~bow[0]], drawn["ood"]["image"][:, ~bow[0]])


@pytest.fixture
def fashion(tmp_path):
    """IDX files of 40 + 20 clothes."""
    rng = np.random.default_rng(0)
    for name, n in (("train", 40), ("t10k", 20)):
        pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        for kind, head, body in (
            ("images-idx3", struct.pack(">4I", 2051, n, 28, 28), pixels),
            ("labels-idx1", struct.pack(">2I", 2049, n), np.arange(n, dtype=np.uint8) % 10),
        ):
            with gzip.open(tmp_path / f"{name}-{kind}-ubyte.gz", "wb") as file:
                file.write(head + body.tobytes())
    return str(tmp_path)


def test_fashion_with_markers_and_with_ties(fashion):
    biased = data.load("fashion_bias", folder=fashion, fractions=(0.5, 0.5, 0.0))
    assert {k: len(v["label"]) for k, v in biased.arrays.items()} == {
        "train": 20, "val": 20, "biased": 20, "standard": 20, "deceiving": 20,
    }  # fmt: skip
    pair = data.load("clothes_with_ties", folder=fashion, fractions=(0.5, 0.5, 0.0))
    assert pair.num_classes == 2 and set(pair.arrays["iid"]["label"]) == {0, 1}
    assert len(pair.arrays["iid"]["label"]) == 4  # the official test images of the two classes


def test_without_fashion_mnist_one_is_told_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"apt-get install dataset-fashion-mnist.*IDX"):
        data.load("fashion_bias", folder=str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("coloured_mnist", {"strength": 1.5}, "strength=1.5"),
        ("coloured_mnist", {"threshold": 1}, "threshold=1"),
        ("coloured_mnist", {"train_mode": "rainbow"}, "unknown mode 'rainbow'.*iid"),
        ("coloured_mnist", {"shrink": 5}, "shrink=5.*28"),
        ("coloured_mnist", {"limits": (1, 2)}, r"limits=\(1, 2\)"),
        ("mnist_bias", {"fractions": 1}, "fractions=1; must be three"),
    ],
)
def test_bad_options_of_digits_are_named(source, options, said):
    with pytest.raises(ValueError, match=said):
        data.load(source, **options)


# ------------------------------------------------------------------ pictures


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


@pytest.fixture
def pictures(tmp_path):
    """Two classes in three splits, each image one grey; masks of the left half."""
    for split in ("train", "val", "other hospital"):
        for label, name in enumerate(("healthy", "ill")):
            for i in range(2):
                value = 50 + 100 * label + 10 * i
                save(tmp_path / "x" / split / name / f"{i}.png", np.full((6, 9, 3), value))
                mask = np.zeros((6, 9)) + 255 * (np.arange(9) < 4)
                save(tmp_path / "m" / split / name / f"{i}.png", mask)
    return tmp_path


def test_a_folder_of_classes_with_masks(pictures):
    splits = data.load(
        "image_folder", folder=str(pictures / "x"), masks=str(pictures / "m"), size=(6, 9)
    )
    assert splits.test == ("other hospital",) and splits.num_classes == 2
    part = splits.arrays["other hospital"]
    assert part["image"].shape == (4, 6, 9, 3) and part["label"].tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(part["image"][3], np.full((6, 9, 3), 160 / 255), atol=1e-6)
    np.testing.assert_array_equal(part["image"][np.array([3, 0])][1], part["image"][0])
    np.testing.assert_array_equal(part["mask"][0][0, :, 0], (np.arange(9) < 4).astype(float))
    item = data.as_dataset(part)[2]
    assert item["image"].shape == (6, 9, 3) and item["label"] == 1
    grey = data.load("image_folder", folder=str(pictures / "x"), size=4, channels=1)
    assert grey.arrays["train"]["image"][:2].shape == (2, 4, 4, 1)
    assert "mask" not in grey.arrays["train"]


def test_markers_on_any_pictures(pictures):
    splits = data.load(
        "image_folder",
        folder=str(pictures / "x"),
        masks=str(pictures / "m"),
        size=(72, 40),
        bias={"kind": "position"},
    )
    names = ("other hospital_biased", "other hospital", "other hospital_deceiving")
    assert splits.test == names
    biased, plain, deceiving = (splits.arrays[name] for name in names)
    where = [np.any(x["image"][0] != plain["image"][0], axis=-1) for x in (biased, deceiving)]
    assert all(w.any() for w in where)
    assert not (where[0] & where[1]).any()  # other classes, other places
    assert (biased["image"][0][where[0]] == 1).all() and (biased["mask"][0][where[0]] == 0).all()
    np.testing.assert_array_equal(biased["bias"], plain["label"])
    train = splits.arrays["train"]
    assert (train["privileged"][0] != train["image"][0]).any()


def test_nearest_keeps_values():
    small = np.arange(4).reshape(2, 2, 1)
    np.testing.assert_array_equal(nearest(small, 4, 2)[..., 0], [[0, 1], [0, 1], [2, 3], [2, 3]])
    np.testing.assert_array_equal(nearest(nearest(small, 6, 6), 2, 2), small)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ("x/val", FileNotFoundError, r"has no folder val; found: \['other hospital', 'train'\]"),
        ("x/train/ill", ValueError, r"class folders \['healthy'\]"),
        ("m/train/ill/0.png", FileNotFoundError, "train: no mask of .*ill/0.png"),
    ],
)
def test_what_is_missing_among_pictures_is_named(pictures, change, kind, said):
    (pictures / change).rename(pictures / "aside")
    with pytest.raises(kind, match=said):
        data.load("image_folder", folder=str(pictures / "x"), masks=str(pictures / "m"))


def test_bad_pictures_and_options_are_named(pictures):
    folder = {"folder": str(pictures / "x")}
    for options, said in (
        ({"size": 0}, "size=0"),
        ({"channels": 2}, "channels=2; must be 1"),
        (
            {"classes": ("healthy", "ill", "dead")},
            "train: class 'dead' has no image in .*train/dead",
        ),
        ({"classes": ("healthy",)}, r"unknown classes \['ill'\]"),
        ({"bias": {"kind": "position"}, "size": 20}, "markers need 36"),
        ({"bias": {"knd": 1}, "size": 40}, "option of bias.*'knd'"),
    ):
        with pytest.raises(ValueError, match=said):
            data.load("image_folder", **folder, **options)
    (pictures / "x/val/ill/0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="val: .*ill/0.png is no PNG or JPEG"):
        data.load("image_folder", **folder)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_picture_that_broke_off_is_named_when_the_data_open(pictures, kind):
    noise = np.random.default_rng(0).integers(0, 255, (30, 30, 3))
    save(pictures / f"x/val/ill/noise.{kind}", noise)
    save(pictures / "m/val/ill/noise.png", noise[..., :1].repeat(3, -1))
    folder = {"folder": str(pictures / "x"), "masks": str(pictures / "m"), "size": 8}
    data.load("image_folder", **folder)
    place = pictures / f"x/val/ill/noise.{kind}"
    whole = place.read_bytes()
    place.write_bytes(whole + b"some camera's notes" * 100)  # legal: decoders stop before
    column = data.load("image_folder", **folder).arrays["val"]["image"]
    place.write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(ValueError, match=f"val: .*ill/noise.{kind} is no PNG or JPEG .*[Tt]runc"):
        data.load("image_folder", **folder)
    with pytest.raises(ValueError, match=f"val/ill: noise.{kind}: not a readable"):
        column[:]  # hurt while it is used


# ------------------------------------------------------------------ tables of findings


@pytest.fixture
def chest(tmp_path):
    for i in range(4):
        save(tmp_path / f"p{i}.jpg", np.full((5, 5, 3), 60 * i))
    table = "Path,Age,Edema,Effusion\np0.jpg,60,1.0,\np1.jpg,61,-1.0,0.0\np2.jpg,62,0.0,1.0\n"
    for name in ("train", "val"):
        (tmp_path / f"{name}.csv").write_text(table)
    return {
        "tables": {n: str(tmp_path / f"{n}.csv") for n in ("train", "val")},
        "labels": ("Edema", "Effusion"),
        "folder": str(tmp_path),
        "size": 5,
    }


def test_a_table_of_findings_is_multi_label(chest):
    splits = data.load("csv_labels", **chest)
    assert splits.multi_label and splits.num_classes == 2 and splits.test == ("val",)
    np.testing.assert_array_equal(splits.arrays["train"]["label"], [[1, 0], [1, 0], [0, 1]])
    zeros = data.load("csv_labels", **chest, uncertain="zeros")
    assert zeros.arrays["train"]["label"][1, 0] == 0
    dropped = data.load("csv_labels", **chest, uncertain="drop")
    assert len(dropped.arrays["train"]["image"]) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Path,Edema\np0.jpg,1\n", r"train.csv: no column 'Effusion'; found: \['Path', 'Edema'\]"),
        ("Path,Edema,Effusion\np0.jpg,2,0\n", "train.csv: line 2: Edema = '2'; legal: 1, 0, -1"),
        ("Path,Edema,Effusion\np0.jpg,yes,0\n", "line 2: Edema = 'yes'"),
        ("Path,Edema,Effusion\nnone.jpg,1,0\n", "train.csv: no file .*none.jpg"),
        ("Path,Edema,Effusion\n", "train.csv: no rows"),
    ],
)
def test_bad_tables_are_named(chest, text, said):
    with open(chest["tables"]["train"], "w") as file:
        file.write(text)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        data.load("csv_labels", **chest)


OUT = ("../p0.jpg", "a/../../p0.jpg", "/etc/p0.jpg", "a\\p0.jpg", "", "p0\0.jpg")


@pytest.mark.parametrize("cell", OUT)
def test_no_cell_leads_out_of_the_folder(cell, chest, faces):
    with open(chest["tables"]["val"], "a") as file:
        file.write(f'"{cell}",60,1,0\n')
    with pytest.raises(
        ValueError, match=r"val.csv: line 5: path '.*'; expected one with '/'.*below"
    ):
        data.load("csv_labels", **chest)
    if cell and " " not in cell:
        file = faces / "list_eval_partition.txt"
        file.write_text(f"{cell} 0\n" + file.read_text())
        lines = (faces / "list_attr_celeba.txt").read_text()
        (faces / "list_attr_celeba.txt").write_text(f"{lines}{cell} 1 1\n")
        with pytest.raises(
            ValueError, match=r"CelebA: list_eval_partition.txt: path '.*'; expected"
        ):
            data.load("celeba", folder=str(faces), attributes=("Young",))


def test_no_file_of_a_list_leads_out_of_the_folder(dogs, tmp_path):
    listed(tmp_path, "train", ["n01-pug/../../x.jpg", "n02-Pekinese/a.jpg"])
    with pytest.raises(ValueError, match=r"train_list.mat: path 'n01-pug/../../x.jpg'; expected"):
        data.load("stanford_dogs", **dogs)


def test_a_whole_path_below_the_folder_is_as_good(chest, tmp_path):
    text = f"Path,Edema,Effusion\n{tmp_path / 'p0.jpg'},1,0\n./p1.jpg,0,0\n"
    (tmp_path / "val.csv").write_text(text)
    assert len(data.load("csv_labels", **chest).arrays["val"]["image"]) == 2


def test_bad_options_of_tables_are_named(chest):
    with pytest.raises(ValueError, match="uncertain='maybe'; legal: ones, zeros, drop"):
        data.load("csv_labels", **chest, uncertain="maybe")
    with pytest.raises(ValueError, match="tables has no 'val'"):
        data.load("csv_labels", **{**chest, "tables": {"train": chest["tables"]["train"]}})
    with pytest.raises(ValueError, match="a marker tells one class"):
        data.load("csv_labels", **chest, bias={})


# ------------------------------------------------------------------ photos


def listed(folder, name, files):
    from scipy.io import savemat

    cells = np.empty((len(files), 1), object)
    cells[:, 0] = files
    savemat(folder / f"{name}_list.mat", {"file_list": cells})


@pytest.fixture
def dogs(tmp_path):
    breeds, lists = ("n01-pug", "n02-Pekinese"), {"train": [], "test": []}
    for breed in breeds:
        for i in range(6):
            name = f"{breed}/{breed[:3]}_{i}.jpg"
            save(tmp_path / "Images" / name, np.full((10, 20, 3), 40))
            note = tmp_path / "Annotation" / name[:-4]
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(
                "<annotation><size><width>20</width><height>10</height></size><object><bndbox>"
                "<xmin>5</xmin><ymin>0</ymin><xmax>15</xmax><ymax>5</ymax></bndbox></object>"
                "</annotation>"
            )
            lists["train" if i < 4 else "test"].append(name)
    for name, files in lists.items():
        listed(tmp_path, name, files)
    return {"folder": str(tmp_path), "breeds": ("Pekinese", "pug"), "size": (10, 20)}


def test_dogs_with_their_boxes(dogs):
    splits = data.load("stanford_dogs", **dogs, val_share=0.25)
    assert {k: len(v["label"]) for k, v in splits.arrays.items()} == {
        "train": 6, "val": 2, "test": 4,
    }  # fmt: skip
    assert splits.arrays["test"]["label"].tolist() == [1, 1, 0, 0]
    mask = splits.arrays["test"]["mask"][0]
    assert mask[:5, 5:15].all() and mask.sum() == 50
    with pytest.raises(ValueError, match=r"unknown breed 'poodle'; found: \['pug', 'Pekinese'\]"):
        data.load("stanford_dogs", **{**dogs, "breeds": ("pug", "poodle")})
    with pytest.raises(ValueError, match="val_share=0.01"):
        data.load("stanford_dogs", **dogs, val_share=0.01)


@pytest.fixture
def faces(tmp_path):
    lines, parts = ["6", "Smiling Young"], []
    for i in range(6):
        save(tmp_path / "img_align_celeba" / f"{i}.jpg", np.full((6, 4, 3), 9))
        lines.append(f"{i}.jpg {'1' if i % 2 else '-1'} 1")
        parts.append(f"{i}.jpg {i // 2}")
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    return tmp_path


def test_attributes_of_faces(faces):
    both = data.load("celeba", folder=str(faces), attributes=("Young", "Smiling"))
    np.testing.assert_array_equal(both.arrays["test"]["label"], [[1, 0], [1, 1]])
    one = data.load("celeba", folder=str(faces), attributes=("Smiling",), limits=(1, 0, 0))
    assert one.num_classes == 2 and len(one.arrays["train"]["label"]) == 1
    with pytest.raises(ValueError, match="unknown attribute 'Smilin'; legal: Smiling, Young"):
        data.load("celeba", folder=str(faces), attributes=("Smilin",))
    (faces / "list_eval_partition.txt").write_text("0.jpg 3\n")
    with pytest.raises(ValueError, match=r"list_eval_partition.txt: line 1: expected"):
        data.load("celeba", folder=str(faces), attributes=("Young",))


# ------------------------------------------------------------------ the card of all four


def in_card(name, request):
    """Keys of `configs/isnet/photos.py` for a few pictures in the layout of that data set."""
    if name == "xray":
        place = request.getfixturevalue("pictures")
        return {"folder": str(place / "x"), "masks": str(place / "m")}
    if name == "celeba":
        place = request.getfixturevalue("faces")
        return {"folder": str(place), "attributes": ("Smiling", "Young")}
    found = request.getfixturevalue({"chexpert": "chest", "dogs": "dogs"}[name])
    return {key: value for key, value in found.items() if key != "size"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "row", ["xray-isnet", "xray-distillation", "chexpert-erm", "dogs-erm", "celeba-erm"]
)
def test_the_card_of_photos_runs(row, request, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "draw", lambda source, target: None)
    model = {"name": "resnet", "block": "basic", "depths": (1,), "width": 2, "stem": "small"}
    changes = {f"task.data.{k}": v for k, v in in_card(row.partition("-")[0], request).items()}
    changes |= {"steps": 2, "log_every": 1, "eval_every": 2, "batch_size": 8, "mesh.data": 1}
    if row.endswith("distillation"):
        changes |= {
            f"runs.{row}.task.teacher.{k}": v for k, v in {"model": model, "steps": 2}.items()
        }
    changes |= {"task.data.size": 12, "task.tune_steps": 2, f"runs.{row}.task.model": model}
    keys = [f"--config.{key}={value!r}" for key, value in changes.items()]
    where = ["--config", f"configs/isnet/photos.py:{row}", "--workdir", str(tmp_path / "work")]
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        assert main(["train", *where, *keys]) == 0
    (file,) = (tmp_path / "work").rglob("metrics.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    losses = [one["loss"] for one in rows if one.get("split") == "train"]
    assert len(losses) == 2 and np.isfinite(losses).all()
