"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: the build, faults on purpose, some cases."""

from __future__ import annotations

import pytest
from stress import sanitize

REASON = sanitize.why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON)]


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    sanitize.build()
    sanitize.check_faults()


def test_a_hundred_cases_give_no_report() -> None:
    results, reports = sanitize.run_fuzzer(cases=105, seed=0)
    assert results["failures"] == []
    assert [sum(counts.values()) for counts in results["cases"].values()] == [105] * len(results["cases"])
    assert "cpu" in results["cases"]
    assert reports.total() == 0, dict(reports)


def test_code_without_a_fault_gives_no_report() -> None:
    text, reports = sanitize.run("-c", "import torch, rmcla_fast; print(torch.ones(3).sum().item())")
    assert "3.0" in text
    assert reports.total() == 0, dict(reports)
