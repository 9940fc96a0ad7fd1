"""A copy of what a user checks out, to be packed or deployed."""

import shutil
from pathlib import Path

from fedssl.compose import CONF

ROOT = CONF.parent


def copy_checkout(parent: Path) -> Path:
    """Copy the project into `parent`; Flower wants the folder to be named as the app."""
    folder = parent / "fedssl"
    for part in ("fedssl", "strategies", "clients", "conf"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("simulate.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", ".gitignore"):
        shutil.copy(ROOT / file, folder)
    return folder


def sources(folder: Path) -> set[str]:
    """Return the modules of the three packages and every yaml, as paths inside `folder`."""
    modules = [path for part in ("fedssl", "strategies", "clients") for path in (folder / part).rglob("*.py")]
    return {path.relative_to(folder).as_posix() for path in [*modules, *(folder / "conf").rglob("*.yaml")]}
