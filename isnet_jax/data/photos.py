"""Stanford Dogs and CelebA as their authors lay them out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from isnet_jax.data.folders import below, columns, divided, existing, mask_of
from isnet_jax.data.pictures import check_channels, sides
from isnet_jax.data.splits import TRAIN, VAL, Splits

_PARTITION = {"0": TRAIN, "1": VAL, "2": "test"}


def stanford_dogs(
    *,
    folder: str,
    breeds: Sequence[str],
    masks: str = "boxes",
    val_share: float = 0.1,
    size: int | Sequence[int] = 224,
    seed: int = 0,
) -> Splits:
    """Stanford Dogs (Khosla et al. 2011): some of its 120 breeds, the official split.

    Args:
      folder: holds Images/, Annotation/, train_list.mat and test_list.mat.
      breeds: names as in the folders, with or without the number (Pekinese, pug …), in label order.
      masks: "boxes" for the annotated boxes, a folder of masks at the same places as below Images,
        or "" for none.
      val_share: of the official training images.
      size: (height, width) in pixels, or one number.
      seed: of the validation images.

    Raises:
      FileNotFoundError: a folder, list, annotation, image or mask is missing.
      ValueError: an unknown breed, a damaged list or annotation, or an illegal option.
    """
    root, pair = existing(folder, "data folder"), sides(size)
    images = existing(root / "Images", "Stanford Dogs: folder")
    if len(breeds) < 2:
        raise ValueError(f"breeds={tuple(breeds)}; expected at least two")
    known = {p.name: p for p in sorted(images.iterdir()) if p.is_dir()}
    label_of = {_breed(breed, known): label for label, breed in enumerate(breeds)}
    listed = {name: _listed(root / f"{name}_list.mat", label_of) for name in (TRAIN, "test")}
    train, val = divided(len(listed[TRAIN]), val_share, seed)
    parts = {
        TRAIN: [listed[TRAIN][i] for i in train],
        VAL: [listed[TRAIN][i] for i in val],
        "test": listed["test"],
    }
    arrays = {}
    for name, files in parts.items():
        paths = [below(images, file, f"Stanford Dogs: {name}_list.mat") for file in files]
        labels = np.asarray([label_of[file.split("/")[0]] for file in files], np.int32)
        own: Sequence[Path] | Sequence[Sequence[tuple]] | None
        if masks == "boxes":
            own = [_boxes(root / "Annotation" / Path(file).with_suffix("")) for file in files]
        elif masks:
            place = existing(masks, "mask folder")
            own = [mask_of(path, images, place, name) for path in paths]
        else:
            own = None
        arrays[name] = columns(paths, labels, own, pair, 3, f"Stanford Dogs {name}")
    return Splits(arrays, len(breeds), ("test",))


def _breed(name: str, known: dict[str, Path]) -> str:
    found = [k for k in known if name in (k, k.partition("-")[2])]
    if not found:
        names = [k.partition("-")[2] for k in known]
        raise ValueError(f"Stanford Dogs: unknown breed {name!r}; found: {names}")
    return found[0]


def _listed(path: Path, label_of: dict[str, int]) -> list[str]:
    """The files (BREED/NAME.jpg) of a list that show one of the breeds."""
    from scipy.io import loadmat

    if not path.is_file():
        raise FileNotFoundError(f"Stanford Dogs: no file {path}")
    try:
        files = [str(row[0][0]) for row in loadmat(path)["file_list"]]
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"Stanford Dogs: {path.name}: no readable file_list ({error})") from None
    found = [file for file in files if file.split("/")[0] in label_of]
    if not found:
        raise ValueError(f"Stanford Dogs: {path.name} lists none of {list(label_of)}")
    for file in found:
        below(path.parent / "Images", file, f"Stanford Dogs: {path.name}")
    return found


def _boxes(path: Path) -> list[tuple[float, float, float, float]]:
    """The dogs' boxes of an annotation (XML), as shares of the image's sides."""
    from xml.etree import ElementTree

    if not path.is_file():
        raise FileNotFoundError(f"Stanford Dogs: no annotation {path}")
    try:
        tree = ElementTree.parse(path).getroot()
        width, height = (float(tree.findtext(f"size/{side}", "")) for side in ("width", "height"))
        ends = ("xmin", "ymin", "xmax", "ymax")
        found = [[float(box.findtext(end, "")) for end in ends] for box in tree.iter("bndbox")]
        boxes = [(x0 / width, y0 / height, x1 / width, y1 / height) for x0, y0, x1, y1 in found]
    except (ElementTree.ParseError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"Stanford Dogs: {path}: no readable boxes ({error})") from None
    if not boxes or not all(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 for x0, y0, x1, y1 in boxes):
        raise ValueError(f"Stanford Dogs: {path}: boxes {boxes}, expected one inside the image")
    return boxes


def celeba(
    *,
    folder: str,
    attributes: Sequence[str],
    masks: str = "",
    images: str = "img_align_celeba",
    size: int | Sequence[int] = (218, 178),
    channels: int = 3,
    limits: Sequence[int] = (0, 0, 0),
) -> Splits:
    """CelebA (Liu et al. 2015): some of its 40 attributes, the official partition.

    Several attributes are multi-label, (n, k) of 0 and 1; one gives two classes (0: absent).

    Args:
      folder: holds the images' folder, list_attr_celeba.txt and list_eval_partition.txt.
      attributes: names as in the list's header (Rosy_Cheeks, High_Cheekbones, Smiling …).
      masks: folder of masks with the images' names, white = foreground; "": none.
      images: the images' folder below `folder`.
      size: (height, width) in pixels, or one number.
      channels: 1 or 3.
      limits: at most so many images of train, val and test; 0: all.

    Raises:
      FileNotFoundError: a folder, list, image or mask is missing.
      ValueError: an unknown attribute, a damaged list, or an illegal option.
    """
    root, pair = existing(folder, "data folder"), sides(size)
    check_channels(channels)
    place = existing(root / images, "CelebA: folder")
    mask_root = existing(masks, "mask folder") if masks else None
    values = _attributes(root / "list_attr_celeba.txt", attributes)
    parts = _partition(root / "list_eval_partition.txt")
    arrays = {}
    for (name, files), limit in zip(parts.items(), limits, strict=True):
        files = files[: limit or None]
        for file in files:
            if file not in values:
                raise ValueError(f"CelebA: list_attr_celeba.txt has no line for {file}")
        labels = np.asarray([values[file] for file in files], np.float32)
        if not files:
            raise ValueError(f"CelebA: list_eval_partition.txt has no file of {name}")
        if len(attributes) == 1:
            labels = labels[:, 0].astype(np.int32)
        paths = [below(place, file, "CelebA: list_eval_partition.txt") for file in files]
        own = None if mask_root is None else [mask_of(p, place, mask_root, name) for p in paths]
        arrays[name] = columns(paths, labels, own, pair, channels, f"CelebA {name}")
    return Splits(arrays, 2 if len(attributes) == 1 else len(attributes), ("test",))


def _lines(path: Path) -> list[list[str]]:
    if not path.is_file():
        raise FileNotFoundError(f"CelebA: no file {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"CelebA: {path.name}: no text in UTF-8 ({error})") from error
    return [line.split() for line in text.split("\n") if line.strip()]


def _attributes(path: Path, wanted: Sequence[str]) -> dict[str, list[int]]:
    """File -> 0 or 1 an attribute wanted."""
    lines = _lines(path)
    if len(lines) < 3:
        raise ValueError(f"CelebA: {path.name}: expected a count, a header and a line an image")
    header = lines[1]
    if not wanted:
        raise ValueError(f"attributes=(): name at least one of {', '.join(header)}")
    for name in wanted:
        if name not in header:
            raise ValueError(f"CelebA: unknown attribute {name!r}; legal: {', '.join(header)}")
    at, found = [header.index(name) + 1 for name in wanted], {}
    for number, line in enumerate(lines[2:], start=3):
        if len(line) != len(header) + 1 or not set(line[1:]) <= {"1", "-1"}:
            raise ValueError(
                f"CelebA: {path.name}: line {number}: expected a file and 1 or -1 each"
            )
        if line[0] in found:
            raise ValueError(f"CelebA: {path.name}: line {number}: {line[0]} twice")
        found[line[0]] = [int(line[i] == "1") for i in at]
    return found


def _partition(path: Path) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {name: [] for name in _PARTITION.values()}
    seen: set[str] = set()
    for number, line in enumerate(_lines(path), start=1):
        if len(line) != 2 or line[1] not in _PARTITION:
            raise ValueError(f"CelebA: {path.name}: line {number}: expected a file and 0, 1 or 2")
        if line[0] in seen:
            raise ValueError(f"CelebA: {path.name}: line {number}: {line[0]} twice")
        seen.add(line[0])
        parts[_PARTITION[line[1]]].append(line[0])
    return parts
