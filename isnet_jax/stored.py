"""A classifier from a file or a checkpoint: torchvision-named arrays, or our own training."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from isnet_jax.isnet import variables
from isnet_jax.models.backbone import Backbone
from isnet_jax.models.convert import from_torch
from isnet_jax.models.create import create

RANDOM = "random"
_FILES = (".npz", ".safetensors")


def load_model(name: str | None = None, *, weights: str, **config: Any) -> nnx.Module:
    """The model of a card: in evaluation mode, its dropout off and its norms' averages fixed.

    Args:
        name: a key of `isnet_jax.models.MODELS`; a checkpoint tells it, too.
        weights: an .npz or .safetensors file with torchvision's names, or a folder with one such
            file; a folder of our own training (RUN/seedK, or one of its checkpoints); or "random".
        **config: arguments of `isnet_jax.models.create`. Of a checkpoint, what its own card says
            of the model need not be repeated, but `num_classes` and `in_channels` come from the
            data there.

    Raises:
        ValueError: the weights do not fit the model, a damaged file, or a wrong argument.
        FileNotFoundError: there is no such place or nothing to load in it.
        ImportError: a .safetensors file without the package.
    """
    if weights == RANDOM:
        if "num_classes" not in config:
            raise ValueError("model num_classes must be given where the weights are 'random'")
        model = create(_named(name), **config, rngs=nnx.Rngs(0))
    else:
        place = Path(weights)
        if not place.exists():
            raise FileNotFoundError(f"model weights = {weights!r} do not exist")
        step = _checkpoint(place) if place.is_dir() else None
        if step is not None:
            model = _from_checkpoint(step, name, config)
        else:
            model = from_torch(_named(name), _arrays(weights_file(place)), **config)
    model.eval()
    return model


def _named(name: str | None) -> str:
    if name is None:
        raise ValueError("model has no name; it is needed unless the weights are a checkpoint")
    return name


def weights_file(place: Path) -> Path:
    """The file itself, or the only weights file in a folder.

    Raises:
        FileNotFoundError: the folder has none or several.
        ValueError: a file of another kind.
    """
    if place.is_dir():
        found = sorted(p for p in place.iterdir() if p.suffix in _FILES)
        if len(found) != 1:
            told = ", ".join(p.name for p in found) or "none"
            raise FileNotFoundError(
                f"model weights = {str(place)!r} must hold one of *{', *'.join(_FILES)} or be a "
                f"folder of a training; found: {told}"
            )
        return found[0]
    if place.suffix not in _FILES:
        raise ValueError(f"model weights = {str(place)!r} is not one of *{', *'.join(_FILES)}")
    return place


def _arrays(path: Path) -> Mapping[str, np.ndarray]:
    if path.suffix == ".safetensors":
        try:
            from safetensors import SafetensorError
            from safetensors.numpy import load_file
        except ImportError as error:
            raise ImportError(
                f"{path.name} needs the extra `weights` ({error}): "
                "pip install 'isnet-touchstone-jax[weights]'"
            ) from error
        # AttributeError: a type of eight bits, which NumPy lacks.
        damage: tuple[type[Exception], ...] = (SafetensorError, ValueError, AttributeError)
        load: Callable[[Path], Mapping[str, np.ndarray]] = load_file
    else:
        # RuntimeError: encrypted. MemoryError: a header promises more than the machine has.
        damage = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, RuntimeError)
        damage += (MemoryError,)
        load = _npz
    try:
        return load(path)
    except damage as error:
        raise ValueError(f"{path}: damaged or not {path.suffix}: {error}") from error


def _npz(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:  # np.load would leave a damaged one open
        try:
            found = np.load(file, allow_pickle=False)
        except ValueError:  # numpy's own words recommend to load it unsafely
            raise ValueError("it holds no plain arrays; pickles are refused") from None
        if not hasattr(found, "files"):
            raise ValueError("it is a single array")
        with found:
            return dict(found)


# ---------------------------------------------------------------- our own training


def _checkpoint(folder: Path) -> Path | None:
    """The folder of one step: this one, or the newest of a training; None if it is neither."""
    if (folder / "state").is_dir():
        return folder
    place = folder / "checkpoints"
    steps = [p for p in place.iterdir() if p.name.isdecimal()] if place.is_dir() else []
    return max(steps, key=lambda p: int(p.name), default=None)


def _from_checkpoint(step: Path, name: str | None, config: Mapping[str, Any]) -> Backbone:
    import orbax.checkpoint as ocp

    try:
        meta = json.loads((step / "meta" / "metadata").read_text(encoding="utf-8"))
        told = dict(meta["config"]["task"].get("model", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint {step}: its metadata cannot be read: {error}") from error
    if name is not None and name != told.get("name"):
        told = {"name": name}  # another model: what the card says of its own is no concern
    told |= config
    if "num_classes" not in told:
        raise ValueError(f"checkpoint {step}: model num_classes must be given (it is in the data)")
    _named(told.get("name"))
    abstract = nnx.eval_shape(lambda: create(**told, rngs=nnx.Rngs(0)))
    graphdef, _ = nnx.split(abstract)
    params, rest = variables(abstract)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        {"params": params, "rest": rest},
    )
    place, what = (step / "state").absolute(), f"checkpoint {step}"
    with ocp.PyTreeCheckpointer() as reader:
        # Compared first: orbax would tell of one wrong shape with pages about all the others.
        _compare(reader.metadata(place).item_metadata, wanted, f"{what} and model {told['name']!r}")
        arguments = ocp.args.PyTreeRestore(
            item=wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=True,
        )
        try:
            found = reader.restore(place, args=arguments)
        except Exception as error:  # a damaged file can raise anything
            raise ValueError(f"{what}: {' '.join(str(error).split())[:200]}") from error
    return nnx.merge(graphdef, found["params"], found["rest"])


def _compare(stored: Any, wanted: Mapping[str, Any], what: str) -> None:
    """Raises ValueError unless all that is wanted is stored, in the same shapes, and no more."""

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in leaves
        }

    here = {key: stored[key] for key in wanted if key in stored}
    ours, theirs = shapes(wanted), shapes(here)
    differ = [
        f"{key}: {theirs.get(key, 'absent')} in the checkpoint, {ours.get(key, 'absent')} wanted"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    if differ:
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise ValueError(f"{what} do not fit: {'; '.join(differ[:3])}{more}")
