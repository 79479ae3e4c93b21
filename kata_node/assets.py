"""Find the data files that are part of this program."""

from __future__ import annotations

from pathlib import Path


def asset(name: str) -> Path:
    """Return the path of the data file ``name`` (for example ``shims.toml``).

    The directory ``assets`` is inside an installed package, and beside the package in a checkout. The
    file may be missing if the package is broken; this function does not check that.
    """
    return _data("assets") / name


def page(name: str) -> Path:
    """Return the path of the page ``name`` of the documentation (for example ``troubleshooting.md``).

    Only the pages that the program prints are part of an installed package.
    """
    return _data("docs") / name


def _data(directory: str) -> Path:
    package = Path(__file__).parent
    packed = package / directory
    return packed if packed.is_dir() else package.parent / directory
