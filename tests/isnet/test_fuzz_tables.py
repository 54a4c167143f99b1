"""Tables of labels whose content was drawn: sound labels of files below the folder, or one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from PIL import Image
from scipy.io import savemat

from isnet_jax import data
from tests.drawn import refused, spoilt_bytes, spoilt_tables

ROWS = [
    ["Path", "Edema", "Fluid"],
    ["a.png", "1.0", "0"],
    ["b/c.png", "", "-1"],
    ["a.png", "0", "1"],
]
ATTRIBUTES = b"3\nSmiling Young\na.png 1 -1\nb.png -1 1\nc.png 1 1\n"
PARTITION = b"a.png 0\nb.png 1\nc.png 2\n"
BOX = """<annotation><size><width>8</width><height>4</height></size>
<object><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>6</xmax><ymax>3</ymax></bndbox></object>
</annotation>"""


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 4), 200).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images, and outside of their folder one that no table may reach; two breeds of dogs."""
    kennel(tmp_path, DOGS)
    for name in ("a.png", "b.png", "c.png", "b/c.png"):
        picture(tmp_path / "images" / name)
    picture(tmp_path / "secret.png")
    return tmp_path


def chexpert(folder: Path, raw: bytes) -> data.Splits:
    (folder / "t.csv").write_bytes(raw)
    tables = dict.fromkeys(("train", "val"), str(folder / "t.csv"))
    options = {"labels": ("Edema", "Fluid"), "folder": str(folder / "images"), "size": (4, 4)}
    return data.load("csv_labels", tables=tables, **options)


def celeba(folder: Path, attributes: bytes, partition: bytes) -> data.Splits:
    (folder / "list_attr_celeba.txt").write_bytes(attributes)
    (folder / "list_eval_partition.txt").write_bytes(partition)
    options = {"attributes": ("Young",), "images": "images", "size": (4, 4)}
    return data.load("celeba", folder=str(folder), **options)


def kennel(folder: Path, files: list[str]) -> None:
    for breed in ("n1-pug", "n2-boxer"):
        for name in ("x", "y", "z"):
            picture(folder / "Images" / breed / f"{name}.jpg")
            (folder / "Annotation" / breed).mkdir(parents=True, exist_ok=True)
            (folder / "Annotation" / breed / name).write_text(BOX)
    cells = np.empty((len(files), 1), object)
    cells[:, 0] = files
    for name in ("train", "test"):
        savemat(folder / f"{name}_list.mat", {"file_list": cells})


def dogs(folder: Path, box: str | bytes = BOX) -> data.Splits:
    raw = box if isinstance(box, bytes) else box.encode()
    (folder / "Annotation" / "n1-pug" / "x").write_bytes(raw)
    return data.load("stanford_dogs", folder=str(folder), breeds=("pug", "boxer"), val_share=0.4)


DOGS = ["n1-pug/x.jpg", "n1-pug/y.jpg", "n2-boxer/x.jpg", "n2-boxer/y.jpg"]


@given(spoilt_tables(ROWS))
def test_findings_of_x_rays(folder: Path, raw: bytes) -> None:
    if not refused(chexpert, folder, raw, names="t.csv"):
        labels = np.asarray(chexpert(folder, raw).arrays["train"]["label"])
        assert labels.shape[1] == 2 and set(np.unique(labels)) <= {0.0, 1.0}


@given(spoilt_bytes(ATTRIBUTES), spoilt_bytes(PARTITION))
def test_attributes_and_partition(folder: Path, attributes: bytes, partition: bytes) -> None:
    assert set(celeba(folder, ATTRIBUTES, PARTITION).arrays) == {"train", "val", "test"}
    refused(celeba, folder, attributes, PARTITION, names="CelebA")
    refused(celeba, folder, ATTRIBUTES, partition, names="CelebA")


@given(spoilt_bytes(BOX.encode()))
def test_boxes(folder: Path, raw: bytes) -> None:
    refused(dogs, folder, raw, names="Stanford Dogs: ")


HEAD = b"Path,Edema,Fluid\n"
BAD: dict[str, tuple[Callable, tuple, str]] = {
    "out of the folder": (chexpert, (HEAD + b"../secret.png,1,0\n",), "t.csv: line 2: path"),
    "absolute": (chexpert, (HEAD + b"a.png,1,0\n/etc/passwd,1,0\n",), "t.csv: line 3: path"),
    "short": (chexpert, (HEAD + b"a.png,1\n",), "t.csv: .*line 2: expected 3 cells"),
    "two columns": (chexpert, (HEAD[:-1] + b",Edema\na.png,1,1,0\n",), "several columns 'Edema'"),
    "latin": (chexpert, (HEAD + b"\xe9.png,1,1\n",), "t.csv: no CSV file in UTF-8"),
    "a quote": (chexpert, (HEAD + b'"a.png,1,1\n',), "t.csv: no CSV file"),
    "an attribute twice": (
        celeba, (ATTRIBUTES + b"a.png 1 1\n", PARTITION), "line 6: a.png twice"
    ),
    "a file twice": (celeba, (ATTRIBUTES, PARTITION + b"a.png 2\n"), "line 4: a.png twice"),
    "no file": (celeba, (ATTRIBUTES, PARTITION[8:]), "partition.txt has no file of train"),
    "celeba, latin": (celeba, (ATTRIBUTES, b"\xe9.png 0\n"), "partition.txt: no text in UTF-8"),
    "a box inside out": (dogs, (BOX.replace("<xmin>1", "<xmin>7"),), "x: boxes .* inside"),
}  # fmt: skip


@pytest.mark.parametrize("how", BAD)
def test_a_spoilt_table_is_told(how: str, folder: Path) -> None:
    read, arguments, said = BAD[how]
    with pytest.raises(ValueError, match=said):
        read(folder, *arguments)


def test_a_mark_at_the_beginning_is_no_part_of_a_name(folder: Path) -> None:
    found = chexpert(folder, b"\xef\xbb\xbfPath,Edema,Fluid\r\n\r\nb/c.png,1,0\r\n")
    np.testing.assert_array_equal(found.arrays["val"]["label"], [[1, 0]])


def test_a_list_that_leads_out_of_the_folder(folder: Path) -> None:
    kennel(folder, [*DOGS, "n1-pug/../../secret.png"])
    with pytest.raises(ValueError, match="train_list.mat: path 'n1-pug/../../secret.png'"):
        dogs(folder)


@given(raw=spoilt_bytes(b"MATLAB 5.0 MAT-file" + bytes(125)))
def test_a_list_that_is_no_matlab_file(folder: Path, raw: bytes) -> None:
    (folder / "train_list.mat").write_bytes(raw)
    with pytest.raises(ValueError, match="Stanford Dogs: train_list.mat: no readable file_list"):
        dogs(folder)
