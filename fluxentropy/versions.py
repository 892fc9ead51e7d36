"""The versions that a manifest records: of this package and of the libraries that decide its numbers."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence

from fluxentropy import __version__

RECORDED = ("torch", "transformers", "tokenizers", "pyarrow")


def versions(names: Sequence[str] = RECORDED) -> dict[str, str]:
    """Installed versions of the distributions `names`, with this package's and Python's."""
    found = {"fluxentropy": __version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found
