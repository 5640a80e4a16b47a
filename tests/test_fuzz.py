"""The first cases of the fuzzer on every backend, and tests that the fuzzer notices what is wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Backend
from stress import fuzz
from stress.fuzz_memory import INPUT_LAYOUTS, Arguments

import rmcla_fast

OPERATORS = [operator.__name__ for operator in fuzz.OPERATORS]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("operator", OPERATORS)
def test_first_cases(backend: Backend, operator: str) -> None:
    cases = 4 if backend.name == "triton" else 50
    first = OPERATORS.index(operator)
    target = fuzz.target_named(backend.name)
    for number in range(first, cases * len(OPERATORS), len(OPERATORS)):
        assert fuzz.run_case(target, 0, number) == (operator, ""), f"case {number}"


def test_a_result_off_by_one_bit_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    right = rmcla_fast.perturb_step

    def wrong(*tensors: Any, **options: Any) -> torch.Tensor:
        result = right(*tensors, **options)
        return result.copy_(torch.where(result == result.flatten()[-1], result + torch.finfo(result.dtype).eps, result))

    target = fuzz.target_named("reference")
    numbers = range(OPERATORS.index("perturb_step"), 70, len(OPERATORS))
    assert not any(fuzz.run_case(target, 0, number)[1] for number in numbers)
    monkeypatch.setattr(rmcla_fast, "perturb_step", wrong)
    messages = [fuzz.run_case(target, 0, number)[1] for number in numbers]
    assert sum("elements differ" in message for message in messages) >= 5


@pytest.mark.parametrize("layout", INPUT_LAYOUTS)
def test_an_element_outside_of_out_is_noticed(layout: str) -> None:
    """`out` itself may be written; one byte beside it, or one of an input, may not."""
    for seed in range(40):
        arguments = Arguments(random.Random(seed), torch.device("cpu"))
        values = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
        arguments.add("images", values, (layout,))
        arguments.build((2, 3, 4, 5), torch.float32)
        if arguments.out is not None:
            arguments.out.fill_(1)
            arguments.check()
            whole = arguments.out.as_strided((arguments.out.untyped_storage().nbytes() // 4,), (1,), 0)
            outside = int((whole != 1).nonzero()[-1])
            whole[outside] = 1
        else:
            arguments.check()
            arguments.tensors["images"][0, 0, 0, 0] = 2
        with pytest.raises(AssertionError, match="bytes outside of out were written"):
            arguments.check()


def test_the_command_counts_its_cases_and_repeats_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["fuzz.py", "--seed", "3", "--backends", "reference"]
    results = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", [*options, "--cases", "21", "--processes", "2", "--json", str(results)])
    assert fuzz.main() == 0
    report = json.loads(results.read_text())
    assert report["cases"] == {"reference": dict.fromkeys(sorted(OPERATORS), 3)}
    assert report["failures"] == []
    assert report["about"]["torch"] == torch.__version__
    monkeypatch.setattr(sys, "argv", [*options, "--case", "4"])
    assert fuzz.main() == 0


def work_that_dies(name: str, seed: int, numbers: range, results: Connection) -> None:
    for number in numbers:
        if number == 4:
            os._exit(7)
        results.send((OPERATORS[number % len(OPERATORS)], "it is wrong" if number == 6 else ""))


def test_a_process_that_dies_is_a_failure_of_its_case_alone() -> None:
    run = fuzz.Run(seed=0, processes=1, work=work_that_dies)
    run.context = multiprocessing.get_context("fork")  # at once, since nothing is imported again
    run.backend("cpu", 14)
    assert run.counts["cpu"].total() == 14
    assert [(failure["case"], failure["message"]) for failure in run.failures] == [
        (4, "the process ended with exit code 7"),
        (6, "it is wrong"),
    ]
    assert run.failures[0]["repeat"].startswith("python tests/stress/fuzz.py --seed 0 --backends cpu --case ")
