"""The documentation names tests that exist, and every method that can be chosen."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from fedssl.compose import load
from fedssl.config import build
from fedssl.objectives.objective import Objective

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
GROUPS = (
    *("objective", "rule", "strategy", "client", "evaluation", "partition", "labels", "augmentation", "privacy"),
    "protection",
)
OPTIONS = [f"{group}={path.stem}" for group in GROUPS for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]
HOSTED = ("objective=essl", "objective=e2mc", "objective=rho_clips")  # they promise what their hosts do
PROMISING = [option for option in OPTIONS if option.startswith("objective=") and option not in HOSTED]
REFERENCE = re.compile(r"tests/(\w+\.py)::(\w+)")


@cache
def names_of(name: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / name).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_is_named_exists(page: Path) -> None:
    named = set(REFERENCE.findall(page.read_text()))
    files = {name for name, _ in named if (ROOT / "tests" / name).is_file()}
    assert sorted(pair for pair in named if pair[0] not in files or pair[1] not in names_of(pair[0])) == []


def test_every_oracle_has_a_test() -> None:
    lines = (ROOT / "docs" / "oracles.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|") and not line.startswith(("| what |", "|---"))]
    assert len(rows) > 100
    assert [row for row in rows if not REFERENCE.search(row.rsplit(" | ", 1)[1])] == []


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_a_method_is_named(option: str) -> None:
    text = "\n".join(page.read_text() for page in (*PAGES, ROOT / "README.md"))
    assert re.search(rf"(?<![\w@.]){option}(?!\w)", text)


@pytest.mark.parametrize("option", PROMISING)
def test_what_an_objective_promises_stands_in_its_line(option: str) -> None:
    objective: Objective = build(load([option]), "objective")
    lines = (ROOT / "docs" / "methods.md").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"| `{option}` |"))
    private, batch, coupling = (cell.strip() for cell in line.split("|")[4:7])
    assert set(filter(None, private.split(", "))) == objective.contract.private_groups
    assert re.search(rf"(?<!\w){objective.min_batch}(?!\w)", batch)
    assert coupling.split(";")[0] == objective.contract.coupling


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_linked_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_is_chosen_in_a_page_is_an_option(page: Path) -> None:
    chosen = re.findall(rf"(?<![\w@.])({'|'.join(GROUPS)})=([a-z]\w*)", page.read_text())
    assert sorted({f"{group}={name}" for group, name in chosen} - set(OPTIONS)) == []
