"""Imports go one way, from the command line down to the references, and stand at the top of each file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rmcla_fast"
LAYERS = ("reference", "ops", "adversarial_example", "attacks", "training", "evaluation", "paper", "cli")
LEAVES = {"rmcla_fast.ops.tensors", "rmcla_fast.ops.philox"}  # they import nothing of the package
FILES = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def own_imports(node: ast.AST) -> list[str]:
    """Return the modules of the package that an import statement names."""
    if isinstance(node, ast.ImportFrom) and node.module == "rmcla_fast":
        return [f"rmcla_fast.{alias.name}" for alias in node.names]
    if isinstance(node, ast.ImportFrom) and str(node.module).startswith("rmcla_fast."):
        return [str(node.module)]
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name.startswith("rmcla_fast.")]
    return []


def layer(module: str) -> int:
    """Return the place of a module in LAYERS; -1 for the modules that any layer may import."""
    part = module.split(".")[1]
    return LAYERS.index(part) if part in LAYERS and module not in LEAVES else -1


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_its_own_layer_and_lower_ones(path: Path) -> None:
    tree = ast.parse(path.read_text())
    module = ".".join(("rmcla_fast", *path.relative_to(PACKAGE).with_suffix("").parts))
    for node in ast.walk(tree):
        for imported in own_imports(node):
            assert node in tree.body, f"{imported} is imported inside a function"
            if layer(module) >= 0:
                assert layer(imported) <= layer(module), imported


@pytest.mark.parametrize("module", sorted(LEAVES))
def test_what_any_layer_may_import_imports_nothing_of_the_package(module: str) -> None:
    tree = ast.parse((PACKAGE.parent / module.replace(".", "/")).with_suffix(".py").read_text())
    assert not [imported for node in ast.walk(tree) for imported in own_imports(node)]
