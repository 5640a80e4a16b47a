"""Faults are injected into real commands: nothing is lost, nothing is wrong in silence, and nothing is a traceback.

`make faults` injects thousands of them. This is its short form.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_cases import ROOT, python

# A quarter of the kills is for each command, so an evaluation is killed 20 times.
CASES = {"kills": 80, "disks": 4, "readonly": 8, "flips": 20, "truncations": 2, "malformed": 25, "pairs": 1}


@pytest.mark.slow
def test_faults_lose_nothing(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="pip install 'rmcla-fast[train]'")
    pytest.importorskip("foolbox", reason="pip install 'rmcla-fast[eval]'")
    options = [word for name, count in CASES.items() for word in (f"--{name}", count)]
    process = python(ROOT / "tests" / "stress" / "faults.py", *options, "--json", tmp_path / "faults.json")
    table, said = process.communicate()
    assert process.returncode == 0, said
    faults = json.loads((tmp_path / "faults.json").read_text())["faults"]
    assert len(faults) == table.count("\n") - 2
    for fault in faults:
        assert fault["cases"] >= 1, fault
        assert not fault["lost"] + fault["silent"] + fault["tracebacks"], fault
    seen = {fault["fault"]: fault["seen"] for fault in faults}
    assert seen["a flipped bit in checkpoint.pt"] == {"refused in a sentence": 20}
    assert seen["a kill or a signal while training"]["finished, the same to the bit"] >= 1
