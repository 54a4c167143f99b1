"""The rules of the house, read off the source: who imports whom, sizes, docstrings, weight.

Each checker takes the root of a tree and returns its complaints as strings, so that the same
checker runs over this repository (must be silent) and over a small bad tree (must speak).
"""

import ast
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("isnet_jax", "touchstone_jax", "launch")
FOLDERS = (*PACKAGES, "configs", "tests", "benchmarks")
FORBIDDEN_NAMES = ("utils.py", "helpers.py", "common.py")
HEAVY = ("matplotlib", "pandas", "nibabel", "torch", "tensorflow", "PIL", "sklearn")


@dataclass(frozen=True)
class Arrow:
    """`source` must not import anything under `forbidden`, save what lies under `allowed`."""

    source: str
    forbidden: tuple[str, ...]
    allowed: tuple[str, ...] = ()


def _inside(package: str, source: str, *forbidden: str) -> Arrow:
    return Arrow(f"{package}.{source}", tuple(f"{package}.{name}" for name in forbidden))


# DESIGN §1. An arrow not listed is free.
ARROWS = (
    Arrow(
        "launch",
        ("isnet_jax", "touchstone_jax", "configs", "tests", "benchmarks"),
        allowed=("isnet_jax.tasks", "touchstone_jax.tasks"),
    ),
    Arrow(
        "isnet_jax",
        ("touchstone_jax", "launch", "configs", "tests", "benchmarks"),
        allowed=("touchstone_jax.metrics", "touchstone_jax.stats", "touchstone_jax.models"),
    ),
    Arrow("touchstone_jax", ("isnet_jax", "launch", "configs", "tests", "benchmarks")),
    _inside("isnet_jax", "lrp", "models", "isnet", "distill", "baselines"),
    _inside("isnet_jax", "models", "isnet", "distill", "baselines"),
    _inside("touchstone_jax", "labels", "verify", "prepare", "patches"),
    _inside("touchstone_jax", "io", "verify", "prepare", "patches"),
    _inside("touchstone_jax", "layers", "models"),
    _inside("touchstone_jax", "metrics", "benchmark"),
    _inside("touchstone_jax", "stats", "benchmark"),
)


# ------------------------------------------------------------------------------ reading


def python_files(root: Path, folders: tuple[str, ...] = FOLDERS) -> list[Path]:
    """Every .py file under those of `folders` that exist."""
    found = [p for folder in folders for p in sorted((root / folder).rglob("*.py"))]
    return [p for p in found if "__pycache__" not in p.parts]


def module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _lies_under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == p or name.startswith(p + ".") for p in prefixes)


def _literal_dynamic_import(node: ast.AST) -> str | None:
    """The name in import_module("name"): a static import in disguise."""
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        called = node.func.id if isinstance(node.func, ast.Name) else called
        if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            return node.args[0].value
    return None


def imports(root: Path, path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of all imports in a file, those inside functions included."""
    package = module_name(root, path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, base if alias.name == "*" else f"{base}.{alias.name}"
        elif (name := _literal_dynamic_import(node)) is not None:
            yield node.lineno, name


# ------------------------------------------------------------------------------ checkers


def _of_the_root(root: Path, package: str, name: str) -> bool:
    """Whether `name` is the package itself or something that only its __init__ re-exports."""
    if name == package:
        return True
    head, _, rest = name.partition(".")
    place = root / head / rest.partition(".")[0]
    return head == package and not (place.is_dir() or place.with_suffix(".py").is_file())


def _tells_on(root: Path, source: str, name: str) -> str | None:
    """What is wrong with module `source` importing `name`; None if nothing is."""
    for arrow in ARROWS:
        concerns = _lies_under(source, (arrow.source,)) and _lies_under(name, arrow.forbidden)
        if concerns and not _lies_under(name, arrow.allowed):
            return f"{arrow.source} must not import {name}"
    package = source.partition(".")[0]
    if package not in ("isnet_jax", "touchstone_jax") or _lies_under(source, (package + ".tasks",)):
        return None
    if _lies_under(name, (package + ".tasks",)):
        return f"only tests and launch import {package}.tasks"
    # Through the public list every arrow inside the package could be walked around.
    if _of_the_root(root, package, name):
        return f"inside {package} import from the module that defines it, not {name}"
    return None


def broken_arrows(root: Path) -> list[str]:
    complaints = []
    for path in python_files(root, (*PACKAGES, "configs")):
        source = module_name(root, path)
        for line, name in imports(root, path):
            if source.partition(".")[0] == "configs":
                legal = _lies_under(name, ("ml_collections", "__future__"))
                told = None if legal else f"configs import only ml_collections, not {name}"
            else:
                told = _tells_on(root, source, name)
            if told:
                complaints.append(f"{path.relative_to(root)}:{line}: {told}")
    return complaints


def _p90(values: list[int]) -> int:
    return sorted(values)[min(len(values) - 1, int(0.9 * len(values)))]


def oversized(root: Path) -> list[str]:
    """Files: none above 600 lines, p90 ≤ 400, median ≤ 150. Functions: p90 ≤ 45."""
    lines, functions, complaints = {}, [], []
    for path in python_files(root):
        text = path.read_text(encoding="utf-8")
        lines[path] = len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.append(node.end_lineno - node.lineno + 1)
        if path.name in FORBIDDEN_NAMES:
            complaints.append(f"{path.relative_to(root)}: name a file for what it holds")
    complaints += [f"{p.relative_to(root)}: {n} lines > 600" for p, n in lines.items() if n > 600]
    sizes = list(lines.values())
    if len(sizes) < 20:  # percentiles of a handful of files say nothing
        return complaints
    for what, value, limit in (
        ("files: 90th percentile", _p90(sizes), 400),
        ("files: median", statistics.median(sizes), 150),
        ("functions: 90th percentile", _p90(functions or [0]), 45),
    ):
        if value > limit:
            complaints.append(f"{what} is {value} lines > {limit}")
    return complaints


def _decorators(node: ast.FunctionDef) -> set[str]:
    names = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
    return {n.attr if isinstance(n, ast.Attribute) else getattr(n, "id", "") for n in names}


def _unannotated(node: ast.FunctionDef, is_method: bool) -> Iterator[str]:
    args = node.args
    named = [*args.posonlyargs, *args.args]
    if is_method and "staticmethod" not in _decorators(node):
        named = named[1:]
    named += [*args.kwonlyargs, *(a for a in (args.vararg, args.kwarg) if a)]
    yield from (a.arg for a in named if a.annotation is None)
    if node.returns is None and node.name != "__init__":
        yield "return"


def _judge(node: ast.AST, where: str, is_method: bool = False) -> Iterator[str]:
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        if ast.get_docstring(node) is None:
            yield f"{where}:{node.lineno}: class {node.name} has no docstring"
        for inner in node.body:
            yield from _judge(inner, where, is_method=True)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        public = not node.name.startswith("_")
        if not public and not (is_method and node.name in ("__init__", "__call__")):
            return
        for name in _unannotated(node, is_method):
            yield f"{where}:{node.lineno}: {node.name}: {name} is not annotated"
        spoken_for = _decorators(node) & {"overload", "override", "setter"}
        if public and not spoken_for and ast.get_docstring(node) is None:
            yield f"{where}:{node.lineno}: {node.name} has no docstring"


def undocumented(root: Path) -> list[str]:
    """Public functions, classes and methods without docstring or full annotations."""
    complaints = []
    for path in python_files(root, PACKAGES):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            complaints += _judge(node, str(path.relative_to(root)))
    return complaints


_ARRAY = re.compile(r"(jax\.)?Array|np\.ndarray")
_SHAPE = re.compile(r"\([^()]*,[^()]*\)|\b(shapes?|scalar|elementwise)\b|(See|as) `", re.IGNORECASE)
_NO_SHAPE = ("key", "rng")  # random keys


def _arrays_of_any_shape(node: ast.FunctionDef) -> Iterator[str]:
    """Arguments, and "return", that are arrays of which the annotation does not say the shape."""
    named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    told = [(a.arg, a.annotation) for a in named if a.arg not in _NO_SHAPE]
    for name, annotation in (*told, ("return", node.returns)):
        kinds = set(ast.unparse(annotation).split(" | ")) - {"None"} if annotation else set()
        if any(_ARRAY.fullmatch(kind) for kind in kinds):
            yield name


def shapeless(root: Path) -> list[str]:
    """Public functions of arrays that say no shape, by annotation or docstring."""
    complaints = []
    for path in python_files(root, PACKAGES):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        classes = (n for n in body if isinstance(n, ast.ClassDef) and not n.name.startswith("_"))
        every = [*body, *(inner for node in classes for inner in node.body)]
        for node in every:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            if _SHAPE.search(ast.get_docstring(node) or ""):
                continue
            for name in _arrays_of_any_shape(node):
                where = f"{path.relative_to(root)}:{node.lineno}"
                complaints.append(f"{where}: {node.name}: {name} is an array of unknown shape")
    return complaints


def heavy_modules(root: Path, package: str) -> list[str]:
    """Those of HEAVY that `import package` loads, in a new interpreter started in `root`."""
    code = f"import json, sys, {package}; print(json.dumps(sorted(sys.modules)))"
    env = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [name for name in HEAVY if name in json.loads(done.stdout.splitlines()[-1])]


# ------------------------------------------------------------------------------ this repository


def test_the_scan_sees_the_source() -> None:
    files = [str(p.relative_to(ROOT)) for p in python_files(ROOT)]
    assert "tests/test_house.py" in files and "isnet_jax/data/sources.py" in files
    assert any(name == "numpy" for _, name in imports(ROOT, ROOT / "isnet_jax/metrics.py"))


def test_arrows_point_the_right_way() -> None:
    assert broken_arrows(ROOT) == []


def test_files_and_functions_are_small() -> None:
    assert oversized(ROOT) == []


def test_public_things_are_documented_and_annotated() -> None:
    assert undocumented(ROOT) == []


def test_shapes_are_told() -> None:
    assert shapeless(ROOT) == []


@pytest.mark.parametrize("package", ["isnet_jax", "touchstone_jax"])
def test_importing_loads_nothing_heavy(package: str) -> None:
    # Without its __init__ a folder is a namespace package, whose import proves nothing.
    assert (ROOT / package / "__init__.py").is_file()
    assert heavy_modules(ROOT, package) == []


# ------------------------------------------------------------------------------ the checkers


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


GOOD = {
    "isnet_jax/__init__.py": "from isnet_jax.lrp.rules import Epsilon\n",
    "isnet_jax/lrp/__init__.py": "",
    "isnet_jax/lrp/rules.py": "import jax\nfrom . import ops\n",
    "isnet_jax/lrp/ops.py": "from isnet_jax.lrp import rules\n",
    "isnet_jax/models/__init__.py": "from ..lrp import rules\n",
    "isnet_jax/isnet.py": "from isnet_jax import models\nimport touchstone_jax.metrics\n",
    "isnet_jax/tasks.py": "import isnet_jax\nfrom isnet_jax import isnet\n",
    "touchstone_jax/metrics/__init__.py": "import numpy\n",
    "launch/train.py": "from launch import mesh\nfrom isnet_jax import tasks\n",
    "launch/mesh.py": "import importlib\nimportlib.import_module(__name__)\n",
    "configs/a.py": "from ml_collections import ConfigDict\n",
}


def test_arrow_checker_is_silent_on_a_good_tree(tmp_path: Path) -> None:
    assert broken_arrows(_write(tmp_path, GOOD)) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("configs/a.py", "import jax"),
        ("configs/a.py", "from isnet_jax import tasks"),
        ("launch/train.py", "import isnet_jax"),
        ("launch/train.py", "from isnet_jax.lrp import rules"),
        ("launch/train.py", "def f():\n    import touchstone_jax.models"),
        ("launch/train.py", "import importlib\nimportlib.import_module('isnet_jax.isnet')"),
        ("isnet_jax/isnet.py", "from touchstone_jax import io"),
        ("isnet_jax/isnet.py", "from launch.mesh import x"),
        ("isnet_jax/isnet.py", "from .tasks import Classifier"),
        ("isnet_jax/__init__.py", "from isnet_jax.tasks import Classifier"),
        ("isnet_jax/lrp/rules.py", "from ..models import resnet"),
        ("isnet_jax/lrp/rules.py", "from .. import models"),
        ("isnet_jax/lrp/rules.py", "from isnet_jax import *"),
        ("isnet_jax/lrp/rules.py", "from isnet_jax import resnet18"),
        ("isnet_jax/models/__init__.py", "from isnet_jax import isnet"),
        ("isnet_jax/models/__init__.py", "import isnet_jax.baselines.rrr"),
        ("touchstone_jax/io.py", "import isnet_jax.metrics"),
        ("touchstone_jax/io.py", "from touchstone_jax.verify import check"),
        ("touchstone_jax/metrics/__init__.py", "from ..benchmark import table"),
        ("touchstone_jax/metrics/__init__.py", "import touchstone_jax.tasks"),
    ],
)
def test_arrow_checker_sees(path: str, line: str, tmp_path: Path) -> None:
    root = _write(tmp_path, {**GOOD, path: line + "\n"})
    complaints = broken_arrows(root)
    assert len(complaints) == 1 and complaints[0].startswith(path + ":")


def test_size_checker_sees_each_excess(tmp_path: Path) -> None:
    small = {f"isnet_jax/m{i}.py": "x = 1\n" * 10 for i in range(19)}
    assert oversized(_write(tmp_path, small)) == []
    _write(tmp_path, {"isnet_jax/big.py": "x = 1\n" * 601, "isnet_jax/utils.py": ""})
    told = [c.split(":")[0] for c in oversized(tmp_path)]
    assert told == ["isnet_jax/utils.py", "isnet_jax/big.py"]
    _write(tmp_path, {f"tests/m{i}.py": "x = 1\n" * 401 for i in range(30)})
    _write(tmp_path, {"launch/f.py": "def f():\n" + "    x = 1\n" * 45})
    told = "\n".join(oversized(tmp_path))
    assert "90th percentile is 401" in told and "median is 401" in told
    assert "functions: 90th percentile is 46" in told


def test_docstring_checker_sees(tmp_path: Path) -> None:
    good = 'def f(a: int, *, b: int = 1) -> int:\n    """Adds."""\n\n\ndef _g(a): pass\n'
    assert undocumented(_write(tmp_path, {"launch/a.py": good})) == []
    bad = (
        "class A:\n    def __call__(self, x): pass\n    def _h(self, x): pass\n"
        "    @property\n    def y(self) -> int: pass\n"
        "def f(a, *b: int, **c) -> None: 'doc'\n"
    )
    told = undocumented(_write(tmp_path, {"launch/a.py": bad}))
    assert [t.split(": ", 1)[1] for t in told] == [
        "class A has no docstring",
        "__call__: x is not annotated",
        "__call__: return is not annotated",
        "y has no docstring",
        "f: a is not annotated",
        "f: c is not annotated",
    ]


def test_shape_checker_sees(tmp_path: Path) -> None:
    good = (
        "def f(x: Float[Array, 'n k']) -> Float[Array, ' n']:\n    'Adds.'\n"
        "def g(x: Array, rng: Array, n: int) -> None:\n    'Of logits (n, k).'\n"
        "def _h(x: Array) -> Array:\n    'Adds.'\n"
    )
    assert shapeless(_write(tmp_path, {"launch/a.py": good})) == []
    bad = (
        "def f(x: jax.Array, *, y: np.ndarray | None = None) -> int:\n    'Adds.'\n"
        "class A:\n    'Of arrays.'\n    def g(self, key: Array) -> Array:\n        'Draws.'\n"
    )
    told = shapeless(_write(tmp_path, {"launch/a.py": bad}))
    assert [t.split(": ")[1:] for t in told] == [
        ["f", "x is an array of unknown shape"],
        ["f", "y is an array of unknown shape"],
        ["g", "return is an array of unknown shape"],
    ]


def test_weight_checker_sees_a_heavy_import(tmp_path: Path) -> None:
    root = _write(tmp_path, {"fat/__init__.py": "import PIL\n", "thin/__init__.py": "import ast\n"})
    assert heavy_modules(root, "fat") == ["PIL"]
    assert heavy_modules(root, "thin") == []
