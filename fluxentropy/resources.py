"""Where the files that come with the package lie: the configurations of the root folder `configs/`."""

from __future__ import annotations

from pathlib import Path

from fluxentropy.errors import FluxentropyError


def config_path(kind: str) -> Path:
    """The folder of the configurations of one kind: `config_path("zoo") / "offline.yaml"`.

    The wheel carries `configs/` inside the package; a checkout, or an editable install of one, has it beside the
    package.

    Errors: `FluxentropyError` when the installation carries no such kind.

    >>> (config_path("zoo") / "offline.yaml").is_file()
    True
    """
    package = Path(__file__).resolve().parent
    root = next((parent / "configs" for parent in (package, package.parent) if (parent / "configs").is_dir()), None)
    if root is None or not (root / kind).is_dir():
        kinds = sorted(path.name for path in root.iterdir() if path.is_dir()) if root else []
        raise FluxentropyError(f"no configurations of kind {kind!r} in {root or package}: there are {kinds}")
    return root / kind
