"""Each folder layout is recognised, listed in order, and its mistakes are one line."""

import json
from pathlib import Path

import pytest

from touchstone_jax.layouts import LAYOUTS, discover
from touchstone_jax.layouts.case_files import is_id


def _touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def _nnunet(root: Path, labels: dict) -> Path:
    _touch(root, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "labelsTr/b.nii.gz")
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    return root


def test_abdomenatlas_with_odd_names_and_missing_files(tmp_path: Path) -> None:
    _touch(
        tmp_path,
        "BDMAP 2 é/ct.nii.gz",
        "BDMAP 2 é/segmentations/liver.nii.gz",
        "BDMAP 2 é/segmentations/aorta.nii.gz",
        "BDMAP 2 é/segmentations/._liver.nii.gz",
        "BDMAP_1/segmentations/liver.nii",
        "BDMAP_3/ct.nii",
        "notes/readme.txt",
        ".hidden/ct.nii.gz",
        "dataset.csv",
    )
    cases = discover(tmp_path)
    assert [case.id for case in cases] == ["BDMAP 2 é", "BDMAP_1", "BDMAP_3"]
    assert [name for name, _ in cases[0].masks] == ["aorta", "liver"]
    assert cases[1].ct == tmp_path / "BDMAP_1" / "ct.nii.gz" and not cases[1].ct.exists()
    assert cases[2].ct.name == "ct.nii" and cases[2].masks == ()
    assert {case.scheme.name for case in cases} == {"abdomenatlas_1.1"}
    assert discover(tmp_path, labels="amos")[0].scheme.name == "amos"


def test_totalsegmentator_is_told_by_its_names(tmp_path: Path) -> None:
    _touch(
        tmp_path,
        "s0001/ct.nii.gz",
        "s0001/segmentations/gallbladder.nii.gz",
        "s0000/ct.nii.gz",
        "meta.csv",
    )
    cases = discover(tmp_path)
    assert [case.id for case in cases] == ["s0000", "s0001"]
    assert cases[0].scheme.name == "totalsegmentator_v2"


def test_predictions_are_found_beside_segmentations(tmp_path: Path) -> None:
    _touch(tmp_path, "c/ct.nii.gz", "c/segmentations/liver.nii.gz", "c/predictions/spleen.nii.gz")
    assert [n for n, _ in discover(tmp_path, segmentations="predictions")[0].masks] == ["spleen"]


def test_single_label_maps(tmp_path: Path) -> None:
    _touch(tmp_path, "a/ct.nii.gz", "a/combined_labels.nii.gz", "b/ct.nii.gz", "b/labels.nii")
    cases = discover(tmp_path)
    assert [case.label_map.name for case in cases] == ["combined_labels.nii.gz", "labels.nii"]
    assert cases[0].files == (tmp_path / "a/ct.nii.gz", tmp_path / "a/combined_labels.nii.gz")


@pytest.mark.parametrize(
    "labels",
    [{"background": 0, "liver": 1, "gallbladder": 2}, {"0": "background", "1": "liver"}],
)
def test_nnunet_of_both_versions(tmp_path: Path, labels: dict) -> None:
    cases = discover(_nnunet(tmp_path, labels))
    assert [case.id for case in cases] == ["a", "b"]
    assert cases[0].scheme.indices["liver"] == 1
    # A label without an image is a case whose CT is missing, not a case less.
    assert cases[1].ct.name == "b_0000.nii.gz" and not cases[1].ct.exists()


@pytest.mark.parametrize(("folder", "layout"), [("CT", "dap"), ("img", "jhh")])
def test_images_and_labels_side_by_side(tmp_path: Path, folder: str, layout: str) -> None:
    _touch(tmp_path, f"{folder}/AutoPET_1_00001.nii.gz", "label/AutoPET_1_00001.nii.gz")
    (case,) = discover(tmp_path)
    assert case.id == "AutoPET_1_00001" and case.label_map.parent.name == "label"
    assert case.scheme.name == {"dap": "dap_atlas", "jhh": "jhh"}[layout]
    assert discover(tmp_path, layout) == [case] and layout in LAYOUTS


def test_a_folder_of_cts_alone(tmp_path: Path) -> None:
    _touch(tmp_path, "b_0000.nii.gz", "a.nii", "notes.txt", "._a.nii")
    cases = discover(tmp_path)
    assert [(case.id, case.files, case.scheme) for case in cases] == [
        ("a", (tmp_path / "a.nii",), None),
        ("b", (tmp_path / "b_0000.nii.gz",), None),
    ]
    with pytest.raises(ValueError, match="ids 'b' and 'b' differ at most in case"):
        discover(_touch(tmp_path, "b.nii.gz"))


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        discover(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no known layout; expected <case>/ct.nii.gz"):
        discover(tmp_path)
    case = _touch(tmp_path / "one", "ct.nii.gz")
    assert [found.id for found in discover(case)] == ["ct"]
    with pytest.raises(ValueError, match="one: this is one case; give the folder that holds it"):
        discover(_touch(case, "segmentations/liver.nii.gz"))
    with pytest.raises(FileNotFoundError, match="no case in the layout 'jhh'"):
        discover(tmp_path, "jhh")
    with pytest.raises(ValueError, match="layout='bids'; legal values: auto, abdomenatlas"):
        discover(tmp_path, "bids")
    with pytest.raises(ValueError, match="unknown label scheme 'amoss'; did you mean 'amos'"):
        discover(_touch(tmp_path, "a/ct.nii.gz"), labels="amoss")
    with pytest.raises(ValueError, match="ids 'A' and 'a' differ at most in case"):
        discover(_touch(tmp_path, "A/ct.nii.gz"))


def test_mistakes_in_nnunet_folders_are_told(tmp_path: Path) -> None:
    _nnunet(tmp_path, {"background": 0, "liver": 1, "aorta": 1})
    with pytest.raises(ValueError, match=r"dataset.json: no usable .*share the label 1"):
        discover(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="dataset.json: no usable"):
        discover(tmp_path)
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(FileNotFoundError, match="dataset.json is missing"):
        discover(tmp_path)
    _touch(_nnunet(tmp_path, {"liver": 1}), "imagesTr/a_0001.nii.gz")
    with pytest.raises(ValueError, match="several channels"):
        discover(tmp_path)
    (tmp_path / "imagesTr/a_0001.nii.gz").unlink()
    with pytest.raises(ValueError, match="a_0000.nii and a_0000.nii.gz are one name twice"):
        discover(_touch(tmp_path, "imagesTr/a_0000.nii"))


@pytest.mark.parametrize(
    ("text", "legal"),
    [
        *[(name, True) for name in ("BDMAP_00000001", "a b", "Müller 7 左", "..a", "a..", "-")],
        *[(name, False) for name in ("", " ", ".", "..", ". .", "/", "../a", "a/b", "/a")],
        *[(name, False) for name in ("a\\b", "..\\a", "a\0b")],
    ],
)
def test_an_id_is_the_name_of_a_folder(text: str, legal: bool) -> None:
    assert is_id(text) is legal
