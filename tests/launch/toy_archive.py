"""A source distribution of one text file, whose build code needs nothing but Python."""

import io
import tarfile
from pathlib import Path

TEXT = b"hello " * 2000
# What pip asks of a project to learn its metadata (PEP 517), here without setuptools.
BUILD = b"""
import pathlib

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "some_toy-1.0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\\nName: some-toy\\nVersion: 1.0\\nRequires-Python: <3\\n"
    )
    return info.name
"""
PYPROJECT = b"""
[build-system]
requires = [REQUIRES]
build-backend = "build"
backend-path = ["."]
"""


def toy_archive(requires: bytes = b"") -> bytes:
    """The .tar.gz; `requires` is what the build code says it needs, as in "'setuptools'"."""
    files = {
        "text.txt": TEXT,
        "build.py": BUILD,
        "pyproject.toml": PYPROJECT.replace(b"REQUIRES", requires),
        "PKG-INFO": b"Metadata-Version: 2.1\nName: some-toy\nVersion: 1.0\n",
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"some_toy-1.0/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def lay_out(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        (folder / "text.txt").write_bytes(tar.extractfile("some_toy-1.0/text.txt").read())
