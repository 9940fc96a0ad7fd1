"""Which software made a result."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

LIBRARIES = ("fedssl", "flwr", "torch", "torchvision", "ray", "numpy")
ROOT = Path(__file__).resolve().parents[2]


def versions() -> dict[str, str]:
    """Return the versions of python and the libraries, and the git commit when run from a checkout."""
    found = {"python": platform.python_version()}
    found.update({name: _version(name) for name in LIBRARIES})
    commit = _commit(ROOT)
    if commit is not None:
        found["git"] = commit
    return found


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit(root: Path) -> str | None:
    """Return the commit of the checkout at `root`; None for an installed copy, whose parent may be a foreign one."""
    command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return answer[1] if len(answer) == 2 and Path(answer[0]).resolve() == root else None
