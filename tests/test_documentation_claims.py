"""What the documentation claims about the program: its sentences, recipes, operators and public names."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from documentation import PAGES, name_of, python_blocks
from evaluation_cases import examples, small_net
from run_cases import ROOT, python, rmcla

import rmcla_fast
from rmcla_fast import attacks, cli, recipes
from rmcla_fast.recipes import CHOICES

GAP = "…"  # what differs from case to case in a quoted sentence


@cache
def sentences() -> list[str]:
    """Return every text in the source, with gaps for the values in it."""
    found = []
    for path in (ROOT / "rmcla_fast").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def quoted() -> list[Any]:
    """Return the quotations of all pages."""
    found = [(name_of(path), line[2:]) for path in PAGES for line in path.read_text().splitlines() if line[:2] == "> "]
    return [pytest.param(line, id=f"{page}: {line[:40]}") for page, line in found]


@pytest.mark.parametrize("sentence", quoted())
def test_a_quoted_sentence_is_in_the_source(sentence: str) -> None:
    words = [re.escape(part) for part in sentence.split(GAP) if part.strip()]
    assert sum(map(len, words)) > 10
    pattern = re.compile(".*".join(words), re.DOTALL)
    assert any(pattern.search(text) for text in sentences())


def test_the_quotations_are_found() -> None:
    assert len(quoted()) > 30


def test_other_libraries_say_what_the_page_about_trouble_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    page = " ".join((ROOT / "docs/troubleshooting.md").read_text().split())
    assert '"No such option"' in page
    assert rmcla("train", "--epochz", "3") == 2
    assert "No such option" in capsys.readouterr().err
    (note,) = re.findall(r'"(AutoAttack: [^"]*)"', page)
    pytest.importorskip("pyautoattack")
    images, labels = examples(8)
    probabilities = torch.nn.Sequential(small_net(), torch.nn.Softmax(1))
    results = attacks.evaluate(probabilities, images, labels, attacks="autoattack", epsilon=0.5)
    assert any(one.startswith(note) for one in results["autoattack"].notes)


def test_the_page_of_recipes_lists_every_recipe_with_its_cost() -> None:
    rows = re.findall(r"^\| `([\w+-]+)` \| (\d+)F \| [`\w]", (ROOT / "docs/recipes.md").read_text(), re.MULTILINE)
    assert rows == [(name, str(recipes.get(name).cost)) for name in recipes.names()]


def first_column(page: str, heading: str) -> list[str]:
    """Return the names in the first column of the first table below a heading, several of one cell in their order."""
    section = (ROOT / page).read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_the_page_of_recipes_lists_every_field_with_its_default() -> None:
    fields = dataclasses.fields(recipes.Recipe)
    assert first_column("docs/recipes.md", "The fields of a recipe") == [field.name for field in fields]
    page = (ROOT / "docs/recipes.md").read_text()
    for field in fields:
        (default,) = re.findall(rf"^\| `{field.name}` \| `([^`]+)` \|", page, re.MULTILINE)
        assert eval(default) == field.default, field.name
    for field_name, choices in CHOICES.items():
        (row,) = re.findall(rf"^\| `{field_name}` \|.*", page, re.MULTILINE)
        assert set(re.findall(r'`"(\w+)"`', row)) == set(choices), field_name


def test_the_page_of_recipes_explains_every_column_of_the_command() -> None:
    source = inspect.getsource(importlib.import_module("rmcla_fast.cli.recipes"))
    (columns,) = re.findall(r"for column in \((.*?)\)", source)
    page = (ROOT / "docs/recipes.md").read_text()
    assert re.findall(r"^\* `([\w ]+)`: ", page, re.MULTILINE) == list(ast.literal_eval(f"({columns})"))


def test_the_page_about_the_evaluation_lists_every_attack() -> None:
    assert tuple(first_column("docs/evaluation.md", "The attacks")) == attacks.ATTACKS


def test_the_page_about_the_command_line_lists_every_command() -> None:
    group: Any = typer.main.get_command(cli.app)
    rows = re.findall(r"^\| `rmcla (\w+)` \|", (ROOT / "docs/command-line.md").read_text(), re.MULTILINE)
    assert rows == list(group.commands)


MODULES = ("rmcla_fast", "rmcla_fast.attacks", "rmcla_fast.data", "rmcla_fast.models", "rmcla_fast.training")


@pytest.mark.parametrize("name", MODULES)
def test_the_api_pages_have_every_public_name_once(name: str) -> None:
    described = []
    for path in sorted((ROOT / "docs/api").glob("*.md")):
        module = "rmcla_fast"
        for directive, of in re.findall(r"^\.\. ([\w:]+):: ([\w.]+)", path.read_text(), re.MULTILINE):
            if directive in ("currentmodule", "automodule"):
                module = of
            elif directive.startswith(("auto", "py:")):
                described.append(of if of.startswith("rmcla_fast.") else f"{module}.{of}")
    for each in importlib.import_module(name).__all__:
        if inspect.ismodule(getattr(rmcla_fast, each, None)):
            continue  # it has pages of its own
        assert described.count(f"{name}.{each}") == 1, each


def names_of_the_operators() -> dict[str, Any]:
    """Run the page about the operators, and return what it defines."""
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    for block in python_blocks("docs/operators.md"):
        exec(block, names)
    return names


def test_the_page_about_the_operators_compares_each_of_them_with_plain_pytorch() -> None:
    page = (ROOT / "docs/operators.md").read_text()
    sections = {section.partition("\n")[0]: section for section in page.split("\n## ")[1:]}
    operators = [name for name in rmcla_fast.ops.__all__ if name.islower()]
    assert sorted(sections) == sorted(operators)
    for name, section in sections.items():
        assert f"def plain_{name}(" in section
        assert re.search(rf"(?<!plain_)\b{name}\(", section)
        assert "assert" in section
        assert "$$" in section or name in ("joint_objective", "redistribute_labels")  # theirs is that of joint_gradient


def test_the_plain_operators_agree_for_other_arguments() -> None:
    names = names_of_the_operators()
    for seed in range(20):
        torch.manual_seed(seed)
        rows, classes = int(torch.randint(1, 40, ())), int(torch.randint(2, 30, ()))
        logits, labels = 5 * torch.randn(rows, classes), torch.randint(0, classes, (rows,))
        rule = {"beta": 1 + 20 * float(torch.rand(())), "gamma": 0.001 + float(torch.rand(()))}
        ours = rmcla_fast.joint_gradient(logits, labels, **rule)
        torch.testing.assert_close(tuple(ours), names["plain_joint_gradient"](logits, labels, **rule))
        for scheme in ("main", "sup") if classes > 2 else ("main",):
            arguments = {**rule, "label_scheme": scheme, "top_k": int(torch.randint(1, classes, ()))}
            theirs = names["plain_redistribute_labels"](logits, labels, **arguments)
            torch.testing.assert_close(rmcla_fast.redistribute_labels(logits, labels, **arguments), theirs)
        images, epsilon = torch.rand(rows, 3, classes, 5), 0.01 + float(torch.rand(()))
        start = rmcla_fast.random_start(images, epsilon, rng=torch.tensor([seed << 20, seed]))
        assert torch.equal(start, names["plain_random_start"](images, epsilon, seed << 20, seed))
        grad, step = torch.randn_like(images), float(torch.rand(()))
        moved = rmcla_fast.perturb_step(start, images, grad, step_size=step, epsilon=epsilon)
        assert torch.equal(moved, names["plain_perturb_step"](start, images, grad, step, epsilon))
        dataset, index = (256 * images).byte(), torch.randint(0, rows, (7,))
        crops = rmcla_fast.augment(dataset, index, rng=torch.tensor([seed, 3]), padding=2)
        assert torch.equal(crops, names["plain_augment"](dataset, index, seed, 3, padding=2))
        smoothing = float(torch.rand(())) / 2
        loss = rmcla_fast.soft_cross_entropy(logits, ours.soft_labels, label_smoothing=smoothing)
        torch.testing.assert_close(loss, names["plain_soft_cross_entropy"](logits, ours.soft_labels, smoothing))


def test_the_form_for_bugs_is_valid_and_names_commands_that_exist() -> None:
    yaml = pytest.importorskip("yaml")
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug_report.yml").read_text())
    assert {"name", "description", "body"} <= set(form)
    fields = {entry["id"]: entry for entry in form["body"] if entry["type"] != "markdown"}
    assert list(fields) == ["info", "command", "happened", "expected"]
    assert all(entry["attributes"]["label"] and entry["validations"]["required"] for entry in fields.values())
    group: Any = typer.main.get_command(cli.app)
    named = re.findall(r"`(rmcla [^`]*)`", str(form))
    assert any(words == "rmcla info" for words in named)
    for words in (*named, fields["command"]["attributes"]["placeholder"]):
        arguments = shlex.split(words)[1:]
        _, command, rest = group.resolve_command(group.make_context("rmcla", list(arguments)), arguments)
        if rest:
            command.make_context(command.name, list(rest))
    assert (ROOT / "docs/troubleshooting.md").exists()


@pytest.mark.slow
def test_the_pictures_of_the_method_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")  # it brings the images
    pytest.importorskip("matplotlib")
    process = python(ROOT / "docs/pictures.py", "--out", tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    drawn = sorted(path.name for path in tmp_path.glob("*.png"))
    assert drawn == sorted(path.name for path in (ROOT / "docs").glob("method-*.png"))
