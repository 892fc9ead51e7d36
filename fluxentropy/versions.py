"""The versions that a manifest records: of this package and of the libraries that decide its numbers."""

from __future__ import annotations

import importlib.metadata
import platform

from fluxentropy import __version__

RECORDED = ("torch", "transformers", "tokenizers", "pyarrow")


def versions() -> dict[str, str]:
    """Installed versions by distribution name, with Python's."""
    found = {"fluxentropy": __version__, "python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found
