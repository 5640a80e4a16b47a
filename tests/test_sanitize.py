"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: the build, faults on purpose, some cases."""

from __future__ import annotations

import pytest
from stress import sanitize

REASON = sanitize.why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON)]


def test_faults_are_reported_and_a_hundred_cases_have_none() -> None:
    sanitize.build()
    sanitize.check_faults()
    results, reports = sanitize.run_fuzzer(["cpu"], cases=105, seed=0)
    assert results["failures"] == []
    assert sum(results["cases"]["cpu"].values()) == 105
    assert reports.total() == 0, dict(reports)
