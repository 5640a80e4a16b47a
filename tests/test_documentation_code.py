"""The code of the documentation: each page's Python and shell blocks run in their order, as a reader would run them.

A page has one namespace and one folder. Commands that train or attack are made small. A block that begins with
`# mine.py, in the working folder` is written into that file. A block that cannot run here has the comment "not run",
with the reason, before it; its commands are still parsed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from documentation import COMMANDS, PAGES, Block, commands, name_of, read, rmcla_arguments
from evaluation_cases import examples, small_net
from run_cases import ROOT, rmcla

from rmcla_fast import cli, data, models

Names = dict[str, Any]
SMALLER = {  # options that are added to a command; the last one of a kind wins
    "train": "--epochs 1 --images-per-class 20 --batch-size 50 --threads 1",
    "evaluate": "--images 12",
    "compare": "--images 12",
    "gradients": "--images 12",
    "reproduce": "--epochs 1 --no-autoattack",
    "recipes": "",
    "info": "",
}
SLOW = ("README.md", "docs/command-line.md", "docs/quick-start.md", "docs/reading-an-evaluation.md")


def names_in_the_readme() -> Names:
    model = models.create("small-cnn", 10, 1)
    batch = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8), torch.randint(0, 10, (8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    return {"model": model, "loader": [batch] * 3, "optimizer": optimizer, "device": "cpu", "BEFORE": before}


def names_in_a_loop() -> Names:
    images, labels = torch.rand(40, 1, 8, 8), torch.arange(40) % 10
    model = models.create("small-cnn", 10, 1)
    loader = list(zip(images.split(20), labels.split(20), strict=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {"model": model, "optimizer": optimizer, "epochs": 2, "images": images, "loader": loader}


def names_of_an_evaluation() -> Names:
    return dict(zip(("images", "labels"), examples(8), strict=True)) | {"model": small_net()}


def names_of_a_data_set() -> Names:
    digits = data.load("digits").train
    return {"images": digits.images.permute(0, 2, 3, 1).numpy(), "labels": digits.labels.numpy()}


GIVEN: dict[str, Callable[[], Names]] = {  # what the code of a page takes for granted
    "README.md": names_in_the_readme,
    "docs/one-step.md": names_in_a_loop,
    "docs/data.md": names_of_a_data_set,
    "docs/evaluation.md": names_of_an_evaluation,
}


def the_loop_has_trained(names: Names, printed: str) -> None:
    assert names["rng"].tolist() == [0, 3]
    assert names["loss"].isfinite()
    pairs = zip(names["BEFORE"], names["model"].parameters(), strict=True)
    assert all(not torch.equal(before, now) for before, now in pairs)


def the_average_began_anew(names: Names, printed: str) -> None:
    assert names["logits"].shape == (20, 10)
    assert names["step"].recipe.label_smoothing == 0.4
    averaged, current = names["average"].module.parameters(), names["model"].parameters()
    assert all(torch.equal(*pair) for pair in zip(averaged, current, strict=True))


def the_parts_are_printed(names: Names, printed: str) -> None:
    assert names["both"].dtype == bool
    assert "apgd-t fooled" in printed
    assert "wrong: [" in printed


def the_accuracies_are_printed(names: Names, printed: str) -> None:
    assert "'ce20':" in printed
    assert names["classes"].shape == (8,)


def the_output_is_that_of_the_page(names: Names, printed: str) -> None:
    """Compare the words, and the figures with a tolerance, since another machine rounds the training differently."""
    (shown,) = [b.code for b in read(ROOT / "docs/reading-an-evaluation.md").blocks if b.language == "text"]
    lines = shown.splitlines()
    for here, there in zip(printed.splitlines()[: len(lines)], lines, strict=True):
        figure = r"(?<![\w-])\d+(?:\.\d)?"
        assert re.sub(figure, "#", here).split() == re.sub(figure, "#", there).split()
        ours, page = ([float(number) for number in re.findall(figure, line)] for line in (here, there))
        assert ours == pytest.approx(page, abs=20)


CHECKS: dict[str, Callable[[Names, str], None]] = {
    "README.md": the_loop_has_trained,
    "docs/one-step.md": the_average_began_anew,
    "docs/evaluation.md": the_parts_are_printed,
    "docs/quick-start.md": the_accuracies_are_printed,
    "docs/reading-an-evaluation.md": the_output_is_that_of_the_page,
}


def write_images(folder: Path) -> Path:
    """Write some of the digits as an image folder."""
    image_module = pytest.importorskip("PIL.Image")
    pytest.importorskip("sklearn")  # it brings the images
    splits = data.load("digits", images_per_class=20)
    for name, split, count in (("train", splits.train, 200), ("test", splits.test, 100)):
        for number, label in enumerate(split.labels[:count].tolist()):
            path = folder / name / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image_module.fromarray(split.images[number][0].numpy()).save(path)
    return folder


@pytest.fixture(scope="module")
def given_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the image folder IMAGES and the runs RUN and RUN2, which many pages begin with."""
    folder = tmp_path_factory.mktemp("given")
    write_images(folder / "IMAGES")
    for run, recipe in (("RUN", "r-mc-la"), ("RUN2", "standard")):
        options = f"--data folder --data-dir {folder / 'IMAGES'} --recipe {recipe} --epsilon 0.15 --no-augment"
        assert rmcla("train", *options.split(), "--out", folder / run, *smaller(["train"])) == 0
        assert rmcla("evaluate", folder / run, "--attacks", "clean,autoattack", "--images", 12) == 0
    return folder


def smaller(arguments: list[str]) -> list[str]:
    """Return the options that make a command small. A network takes the place of others, but not of the page's own."""
    command, *options = arguments
    own = any(Path(word.partition(":")[0]).with_suffix(".py").exists() for word in options if ":" in word)
    network = "--model small-cnn " if command == "train" and not own else ""
    return (network + SMALLER[command]).split()


def run_command(words: list[str]) -> None:
    """Run a command of a page if it is `rmcla`; check that any other names what exists."""
    assert words[0] in COMMANDS, f"the tests do not know {words[0]!r}"
    arguments = rmcla_arguments(words)
    if arguments is not None:
        assert words[0] == "rmcla", "torchrun needs several processes; say why it is not run"
        assert rmcla(*arguments, *smaller(arguments)) == 0
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "python":
        assert (ROOT / next(word for word in words if word.endswith(".py"))).is_file()
    else:
        extras = [extra for word in words for extra in re.findall(r"\[([\w,]+)\]", word)]
        for extra in ",".join(extras).split(","):
            assert not extra or f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()


def pages_with_code() -> list[Any]:
    pages = [path for path in PAGES if any(block.language in ("python", "sh", "bash") for block in read(path).blocks)]
    slow = pytest.mark.slow
    return [pytest.param(path, id=(n := name_of(path)), marks=[slow] if n in SLOW else []) for path in pages]


@pytest.mark.parametrize("path", pages_with_code())
def test_the_blocks_of_a_page_run_in_their_order(
    path: Path,
    given_folders: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, page = name_of(path), read(path)
    made = " ".join(block.code for block in page.blocks if not block.not_run)
    for folder in ("IMAGES", "RUN", "RUN2"):
        if not re.search(rf'--out {folder}\b|Path\("{folder}"', made):
            shutil.copytree(given_folders / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    names = GIVEN.get(name, dict)()
    capsys.readouterr()
    printed = ""
    for block in page.blocks:
        if block.not_run:
            continue
        if file := re.match(r"# (\w+\.py), in the working folder\n", block.code):
            (tmp_path / file[1]).write_text(block.code)
        elif block.language == "python":
            # `compile` gives the lines of the page, for a failure.
            exec(compile("\n" * block.line + block.code, str(path), "exec"), names)
            printed += capsys.readouterr().out
        elif block.language in ("sh", "bash"):
            for words in commands(block):
                run_command(words)
            capsys.readouterr()
    if name in CHECKS:
        CHECKS[name](names, printed)


def shell_blocks() -> list[Any]:
    found = [(path, block) for path in PAGES for block in read(path).blocks if block.language in ("sh", "bash")]
    return [pytest.param(block, id=f"{name_of(path)}:{block.line}") for path, block in found]


@pytest.mark.parametrize("block", shell_blocks())
def test_the_command_line_takes_every_command(block: Block) -> None:
    group: Any = typer.main.get_command(cli.app)
    for words in commands(block):
        arguments = rmcla_arguments(words)
        if arguments is not None:
            context = group.make_context("rmcla", list(arguments))
            name, command, rest = group.resolve_command(context, list(arguments))
            command.make_context(name, rest, parent=context)  # an unknown option raises


def test_every_option_and_command_within_a_sentence_exists() -> None:
    group: Any = typer.main.get_command(cli.app)
    options = {
        name: {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in group.commands.items()
    }
    scripts = [*(ROOT / "benchmarks").glob("*.*"), *ROOT.glob("tests/*/*.py"), ROOT / "docs/pictures.py"]
    elsewhere = "".join(path.read_text() for path in scripts if path.suffix in (".py", ".sh"))
    everywhere = set().union(*options.values(), ("--help", "-h"))
    for path in PAGES:
        for code in read(path).inline if path.name != "CHANGELOG.md" else []:
            first, *words = code.split() or [""]
            flags = [word for word in (first, *words) if re.fullmatch(r"--[a-z][a-z-]+", word)]
            if first == "rmcla" and words and words[0].isalpha() and words[0].islower():
                assert set(flags) <= options[words[0]] | {"--help"}, f"{name_of(path)}: {code}"
            elif first.startswith("--"):
                assert all(flag in everywhere or f'"{flag}"' in elsewhere for flag in flags), f"{name_of(path)}: {code}"
