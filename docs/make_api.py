"""Write docs/api.md from signatures and the first lines of docstrings: `python docs/make_api.py`.

The source is read, not imported: nothing needs to be installed, and nothing is computed.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
COMMAND = "python docs/make_api.py"
# Modules whose public names a user of the libraries meets, in the order of the page. The names are
# those of `__all__`, or else all that a module defines without an underscore.
MODULES = (
    "isnet_jax",
    "isnet_jax.isnet",
    "isnet_jax.losses",
    "isnet_jax.lrp",
    "isnet_jax.models",
    "isnet_jax.attribution",
    "isnet_jax.scores",
    "isnet_jax.distill",
    "isnet_jax.baselines.erm",
    "isnet_jax.baselines.rrr",
    "isnet_jax.baselines.gain",
    "isnet_jax.baselines.gals",
    "isnet_jax.baselines.ham",
    "isnet_jax.baselines.ham_network",
    "isnet_jax.baselines.ag_sononet",
    "isnet_jax.baselines.multitask_unet",
    "isnet_jax.baselines.unet2d",
    "isnet_jax.baselines.pipeline",
    "isnet_jax.baselines.irm",
    "isnet_jax.baselines.group_dro",
    "isnet_jax.baselines.pgi",
    "isnet_jax.baselines.groups",
    "isnet_jax.baselines.group_inference",
    "isnet_jax.data",
    "isnet_jax.metrics",
    "isnet_jax.tables",
    "touchstone_jax.io",
    "touchstone_jax.layouts",
    "touchstone_jax.verify",
    "touchstone_jax.prepare",
    "touchstone_jax.prepare.planning",
    "touchstone_jax.prepare.plan",
    "touchstone_jax.models",
    "touchstone_jax.models.convert",
    "touchstone_jax.losses",
    "touchstone_jax.infer",
    "touchstone_jax.exported",
    "touchstone_jax.metrics",
    "touchstone_jax.stats",
    "touchstone_jax.evaluate",
    "touchstone_jax.jobs",
    "touchstone_jax.benchmark.reading",
    "touchstone_jax.benchmark.results",
    "touchstone_jax.benchmark.analysis",
    "touchstone_jax.benchmark.run",
    "touchstone_jax.benchmark.submit",
    "touchstone_jax.report",
    "touchstone_jax.report.case",
    "touchstone_jax.report.job",
    "touchstone_jax.report.extract",
    "touchstone_jax.report.evaluate",
)
HEAD = f"""\
# API reference

Made by `{COMMAND}` from the source; a test says when it is out of date. The docstrings
hold the rest: shapes, units, what raises, and where each formula is from
(`help(isnet_jax.explain)`).
"""
Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign | ast.Module


# ------------------------------------------------------------------------- reading the source


def path_of(module: str) -> Path | None:
    """The file of a module of this repository, or None."""
    stem = ROOT.joinpath(*module.split("."))
    found = (stem / "__init__.py", stem.with_suffix(".py"))
    return next((path for path in found if path.is_file()), None)


@functools.cache
def parsed(module: str) -> ast.Module:
    """Its syntax tree."""
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


def public(module: str) -> list[str]:
    """Names of `__all__`, in alphabetical order; else what is defined without an underscore."""
    tree = parsed(module)
    for node in tree.body:
        if isinstance(node, ast.Assign) and _names(node) == ["__all__"]:
            return sorted(ast.literal_eval(node.value), key=str.lower)
    defined = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    return [node.name for node in defined if not node.name.startswith("_")]


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [t.id for t in targets if isinstance(t, ast.Name)]


def find(module: str, name: str) -> tuple[str, Definition, str]:
    """(module that defines it, its node, its docstring), imports of this repository followed."""
    found = _look(module, name)
    if found is None:
        raise SystemExit(f"{module}: {name} is public, but neither defined nor imported there")
    return found


def _look(module: str, name: str) -> tuple[str, Definition, str] | None:
    tree = parsed(module)
    for place, node in enumerate(tree.body):
        if name in _names(node):
            return module, node, _docstring(tree, place)
    for node in tree.body:
        imported = isinstance(node, ast.ImportFrom) and any(a.name == name for a in node.names)
        if imported and node.module != module:
            return _look(node.module, name)
    # A package's attribute that nobody defines is its module of that name.
    inner = f"{module}.{name}"
    if path_of(inner) is None:
        return None
    return inner, parsed(inner), ast.get_docstring(parsed(inner)) or ""


def _docstring(tree: ast.Module, place: int) -> str:
    node = tree.body[place]
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return ast.get_docstring(node) or ""
    after = tree.body[place + 1] if place + 1 < len(tree.body) else None
    told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    return str(after.value.value) if told else ""


# ------------------------------------------------------------------------- writing


def signature(node: Definition, name: str) -> str:
    """`name(arguments) -> result`; of a class its constructor's or its fields."""
    if isinstance(node, ast.FunctionDef):
        returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return f"{name}({_arguments(node.args)}){returned}"
    if not isinstance(node, ast.ClassDef):
        return name
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return f"{name}({_arguments(item.args).removeprefix('self').removeprefix(', ')})"
    return f"{name}({', '.join(_fields(node))})"


def _arguments(arguments: ast.arguments) -> str:
    """Names and defaults; annotations are in the source."""
    plain = ast.parse(ast.unparse(ast.FunctionDef("f", arguments, [ast.Pass()], [], lineno=0)))
    for argument in ast.walk(plain):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return ast.unparse(plain.body[0].args).replace("\n", " ")


def _fields(node: ast.ClassDef) -> Iterator[str]:
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or "ClassVar" in ast.unparse(item.annotation):
            continue
        value = "" if item.value is None else f"={ast.unparse(item.value)}"
        yield f"{item.target.id}{'=…' if value.startswith('=field(') else value}"


def first_line(docstring: str) -> str:
    """The first paragraph as one line, fit for a table."""
    paragraph = docstring.strip().partition("\n\n")[0]
    return " ".join(paragraph.split()).replace("|", "\\|")


def value_of(node: Definition) -> str:
    """A constant as it is written, if that is short; of a dict its keys."""
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    if isinstance(value, ast.Dict):
        keys = [f"`{key.value}`" if isinstance(key, ast.Constant) else "…" for key in value.keys]
        return ", ".join(dict.fromkeys(keys))
    written = "" if value is None else ast.unparse(value)
    return f"`{written}`" if 0 < len(written) <= 90 else ""


def table(module: str) -> Iterator[str]:
    """The rows of one module."""
    yield "| name | what |"
    yield "| --- | --- |"
    for name in public(module):
        where, node, docstring = find(module, name)
        told = [first_line(docstring), value_of(node)]
        if isinstance(node, ast.Module):
            told[:0] = ["Module."]
        elif where != module and not where.startswith(f"{module}."):
            told.append(f"From `{where}`.")
        shown = signature(node, name).replace("|", "\\|")
        yield f"| `{shown}` | {' '.join(part for part in told if part)} |"


def page() -> str:
    """All of docs/api.md."""
    parts = [HEAD]
    for module in MODULES:
        rows = "\n".join(table(module))
        parts.append(f"## {module}\n\n{first_line(ast.get_docstring(parsed(module)))}\n\n{rows}\n")
    return "\n".join(parts)


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
