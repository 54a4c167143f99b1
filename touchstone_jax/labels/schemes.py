"""Which number is which organ: the label schemes of the CT data sets.

A scheme lists the classes of a label map; its index 0 is the background. Names are AbdomenAtlas'
(Li et al. 2024), into which Touchstone (Bassi et al. 2024, Table 2 and its published code) maps
its training and test sets. Sub-organs merge (lung lobes into a lung); cysts and tumours are not
added to the organ that they lie in.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from touchstone_jax.labels.scheme import Scheme


def scheme(name: str | Scheme) -> Scheme:
    """The scheme of that name (a scheme is returned as it is).

    Raises:
        ValueError: there is none; the nearest and the legal names are told.
    """
    if isinstance(name, Scheme):
        return name
    if name not in SCHEMES:
        near = difflib.get_close_matches(str(name), SCHEMES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown label scheme {name!r}; {hint}legal: {', '.join(SCHEMES)}")
    return SCHEMES[name]


def from_indices(name: str, indices: Mapping[str, int]) -> Scheme:
    """A scheme of one's own, such as the "labels" of an nnU-Net dataset.json.

    Names that TotalSegmentator uses are understood too. A class "background" is left out.

    Raises:
        ValueError: no class; a label that is no integer in 1..65535; two classes with one label.
    """
    kept = {str(k): v for k, v in indices.items() if k != "background"}
    seen: dict[int, str] = {}
    for own, index in kept.items():
        if isinstance(index, bool) or not isinstance(index, int) or not 1 <= index <= 65535:
            raise ValueError(
                f"{name}: class {own!r} has the label {index!r}; expected an integer in 1..65535"
            )
        if index in seen:
            raise ValueError(f"{name}: classes {seen[index]!r} and {own!r} share the label {index}")
        seen[index] = own
    if not kept:
        raise ValueError(f"{name}: no class but the background")
    renamed = {
        own: _TOTALSEGMENTATOR_RENAMED[own] for own in kept if own in _TOTALSEGMENTATOR_RENAMED
    }
    paired = {own: _PAIRS[own] for own in kept if own in _PAIRS}
    return Scheme(name, kept, renamed, paired)


def _numbered(classes: str | Iterable[str]) -> dict[str, int]:
    names = classes.split() if isinstance(classes, str) else classes
    return {name: index for index, name in enumerate(names, start=1)}


def _at(pairs: str) -> dict[str, int]:
    words = pairs.split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


def _sides(names: str, first: str = "left") -> str:
    second = {"left": "right", "right": "left"}[first]
    return " ".join(f"{name}_{side}" for name in names.split() for side in (first, second))


_PAIRS = {
    name: (f"{name}_left", f"{name}_right") for name in ("kidney", "adrenal_gland", "lung", "femur")
}

_NINE = "aorta gall_bladder kidney_left kidney_right liver pancreas postcava spleen stomach"

_TWENTY_FIVE = f"""{_NINE}
    adrenal_gland_left adrenal_gland_right bladder celiac_trunk colon duodenum esophagus
    femur_left femur_right hepatic_vessel intestine lung_left lung_right
    portal_vein_and_splenic_vein prostate rectum"""

_VERTEBRAE = " ".join(
    f"vertebrae_{v}"
    for v in (
        "S1",
        *(f"{k}{i}" for k, n in (("L", 5), ("T", 12), ("C", 7)) for i in range(n, 0, -1)),
    )
)

_RIBS = " ".join(f"rib_{side}_{i}" for side in ("left", "right") for i in range(1, 13))

_TOTALSEGMENTATOR = f"""spleen kidney_right kidney_left gallbladder liver stomach pancreas
    adrenal_gland_right adrenal_gland_left lung_upper_lobe_left lung_lower_lobe_left
    lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right esophagus trachea
    thyroid_gland small_bowel duodenum colon urinary_bladder prostate kidney_cyst_left
    kidney_cyst_right sacrum {_VERTEBRAE} heart aorta pulmonary_vein brachiocephalic_trunk
    {_sides("subclavian_artery common_carotid_artery", "right")} {_sides("brachiocephalic_vein")}
    atrial_appendage_left superior_vena_cava inferior_vena_cava portal_vein_and_splenic_vein
    {_sides("iliac_artery iliac_vena humerus scapula clavicula femur hip")} spinal_cord
    {_sides("gluteus_maximus gluteus_medius gluteus_minimus autochthon iliopsoas")} brain skull
    {_RIBS} sternum costal_cartilages"""

_TOTALSEGMENTATOR_RENAMED = {
    "gallbladder": "gall_bladder",
    "inferior_vena_cava": "postcava",
    "urinary_bladder": "bladder",
    "small_bowel": "intestine",
    "lung_upper_lobe_left": "lung_left",
    "lung_lower_lobe_left": "lung_left",
    "lung_upper_lobe_right": "lung_right",
    "lung_middle_lobe_right": "lung_right",
    "lung_lower_lobe_right": "lung_right",
}

_DAP = _at(
    "stomach 7 gall_bladder 12 liver 13 pancreas 14 kidney_left 15 kidney_right 16 spleen 26 "
    "aorta 114 postcava 117"
)

_JHH = _at(
    "aorta 1 gall_bladder 8 postcava 9 kidney_left 10 kidney_right 11 liver 12 pancreas 13 "
    "spleen 18 stomach 19"
)

_AMOS = """spleen kidney_right kidney_left gall_bladder esophagus liver stomach aorta postcava
    pancreas adrenal_gland_right adrenal_gland_left duodenum bladder prostate_or_uterus"""

_BTCV = """spleen kidney_right kidney_left gall_bladder esophagus liver stomach aorta postcava
    portal_vein_and_splenic_vein pancreas adrenal_gland_right adrenal_gland_left"""

_FLARE = """liver kidney_right spleen pancreas aorta postcava adrenal_gland_right
    adrenal_gland_left gall_bladder esophagus stomach duodenum kidney_left"""

_TWELVE = """liver kidney spleen pancreas aorta postcava stomach gall_bladder esophagus
    adrenal_gland_right adrenal_gland_left celiac_trunk"""

_WORD = """liver spleen kidney_left kidney_right stomach gall_bladder esophagus pancreas duodenum
    colon intestine adrenal_gland rectum bladder femur_left femur_right"""


def _paired(*names: str) -> dict[str, tuple[str, str]]:
    return {name: _PAIRS[name] for name in names}


_TABLE = (
    Scheme("abdomenatlas_1.0", _numbered(_NINE)),
    Scheme("abdomenatlas_1.1", _numbered(_TWENTY_FIVE)),
    Scheme("totalsegmentator_v2", _numbered(_TOTALSEGMENTATOR), _TOTALSEGMENTATOR_RENAMED),
    # Only the nine classes that Touchstone evaluates; the other labels are background here.
    Scheme("dap_atlas", _DAP, partial=True),
    Scheme("jhh", _JHH, partial=True),
    Scheme("amos", _numbered(_AMOS), {"prostate_or_uterus": "prostate"}),
    Scheme("btcv", _numbered(_BTCV)),
    Scheme("flare22", _numbered(_FLARE)),
    Scheme("abdomenct_12organ", _numbered(_TWELVE), paired=_paired("kidney")),
    Scheme("abdomenct_1k", _numbered("liver kidney spleen pancreas"), paired=_paired("kidney")),
    Scheme("word", _numbered(_WORD), paired=_paired("adrenal_gland")),
)

SCHEMES: Mapping[str, Scheme] = {entry.name: entry for entry in _TABLE}
"""Every scheme by its name."""
