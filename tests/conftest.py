"""Settings that every test runs under: strict JAX, eight CPU devices, a compilation cache.

They are set here, before any test touches a device, because JAX fixes its devices at first use.
"""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]


def _cache_folder() -> Path | None:
    """Where compiled programs are kept between test runs; None if no such place can be written."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "isnet-touchstone-jax" / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _make_jax_strict() -> None:
    jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
    jax.config.update("jax_num_cpu_devices", 8)
    # Silent float64 or silent broadcasting is a bug in a library of derivatives.
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    folder = _cache_folder()
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


_make_jax_strict()


def _make_drawn_examples_the_same_each_time() -> None:
    """Of hypothesis; `--hypothesis-profile long` draws many, and others on every run."""
    common = {
        "deadline": None,
        "database": None,
        # A drawn file goes to the one tmp_path of its test, and files take time.
        "suppress_health_check": [
            hypothesis.HealthCheck.function_scoped_fixture,
            hypothesis.HealthCheck.too_slow,
        ],
    }
    hypothesis.settings.register_profile("suite", max_examples=30, derandomize=True, **common)
    hypothesis.settings.register_profile("long", max_examples=2000, **common)
    hypothesis.settings.load_profile("suite")


_make_drawn_examples_the_same_each_time()


def _has_gpu() -> bool:
    try:
        return bool(jax.devices("gpu"))
    except RuntimeError:
        return False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked gpu where there is none (asked only if some test is so marked)."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="JAX sees no GPU on this machine"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of arrays made by the reference implementations, kept beside the checkout."""
    folder = ROOT.parent / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip("the golden arrays are not beside this checkout (../shared/golden)")
    return folder


@pytest.fixture
def x64() -> Iterator[None]:
    """float64 for one test; the setting before it comes back afterwards."""
    with jax.enable_x64(True):
        yield
