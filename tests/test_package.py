"""What is installed: the version that is cited, and every file that the packages read."""

import tomllib
from fnmatch import fnmatch

import pytest

from tests.pages import ROOT, read

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("configs", "isnet_jax", "launch", "touchstone_jax")


def test_one_version_everywhere():
    version = SETTINGS["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version} " in read(ROOT / "CHANGELOG.md")


@pytest.mark.parametrize("package", SETTINGS["tool"]["mypy"]["files"])
def test_checked_types_are_told_to_others(package):
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("package", PACKAGES)
def test_files_that_are_no_python_go_into_the_wheel(package):
    patterns = SETTINGS["tool"]["setuptools"]["package-data"]["*"]
    found = [p for p in (ROOT / package).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    left_out = [
        str(path.relative_to(ROOT))
        for path in found
        if path.suffix != ".py" and not any(fnmatch(path.name, p) for p in patterns)
    ]
    assert not left_out, "add them to [tool.setuptools.package-data] in pyproject.toml"
    assert f"{package}*" in SETTINGS["tool"]["setuptools"]["packages"]["find"]["include"]
