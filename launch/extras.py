"""Which extra of ours brings a module that is not installed."""

from __future__ import annotations

import re
from importlib import metadata

DISTRIBUTION = "isnet-touchstone-jax"
# Where the module to import has another name than what is installed.
_INSTALLED_AS = {"cc3d": "connected-components-3d", "skimage": "scikit-image"}


def advice(module: str | None) -> str:
    """The install command for a missing module, "" where no extra has it.

    Args:
        module: as imported, e.g. "nibabel" or "skimage.measure".
    """
    top = (module or "").split(".")[0]
    wanted = _INSTALLED_AS.get(top, top).replace("_", "-").lower()
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return ""
    for line in lines:
        found = re.match(r"([\w.-]+).*;.*\bextra\s*==\s*['\"]([\w-]+)['\"]", line)
        if found and found[1].lower() == wanted and found[2] != "test":
            return f"pip install '{DISTRIBUTION}[{found[2]}]'"
    return ""
