"""Where the data files are that come with this program."""

from __future__ import annotations

from pathlib import Path


def asset(name: str) -> Path:
    """The path of the data file ``name`` (``shims.toml``).

    An installed package carries ``assets`` inside; in a checkout it lies beside the package. The
    file is not looked at: opening it raises what is wrong with a broken installation.
    """
    package = Path(__file__).parent
    packed = package / "assets"
    return (packed if packed.is_dir() else package.parent / "assets") / name
