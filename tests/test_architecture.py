"""The arrows between the packages, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "fedssl": {"strategies", "clients", "simulate"},
    "strategies": {"clients", "simulate"},
    "clients": {"strategies", "simulate"},
}
HOMES = {
    "hydra": ("simulate.py", "fedssl/compose.py", "fedssl/config.py"),
    "wandb": ("fedssl/report/tracker.py",),
    "ray": ("fedssl/simulation/",),
    "flwr": ("fedssl/wire.py", "fedssl/memory.py", "fedssl/simulation/", "strategies/", "clients/"),
    "opacus": ("fedssl/privacy/",),
}
SOURCES = sorted(path for package in FORBIDDEN for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_imports_only_what_it_may(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert not imported(path) & FORBIDDEN[package]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_foreign_library_is_imported_only_at_its_home(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    found = imported(path)
    strangers = {library for library, homes in HOMES.items() if library in found and not name.startswith(homes)}
    assert not strangers
