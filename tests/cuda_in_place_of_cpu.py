"""A pytest plugin: the operators' own CPU tests, run on the CUDA kernels emulated, in place of the CPU kernels.

    PYTHONPATH=.:tests python -m pytest -p cuda_in_place_of_cpu -k cpu \\
      tests/test_{perturb_step,random_start,redistribute_labels,soft_cross_entropy,joint_gradient,joint_objective}.py

The extension has to be built, with or without CUDA. Left out are the tests that a label outside the classes is a
ValueError: on a GPU it is a NaN row, which test_cuda_kernels.py tests.
"""

from __future__ import annotations

import cuda_emulation
import pytest
import torch

torch.ops.load_library(str(cuda_emulation.build("rmcla_fast")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    checked_on_a_cpu = [item for item in items if "labels_that_are_no_class" in item.name]
    config.hook.pytest_deselected(items=checked_on_a_cpu)
    items[:] = [item for item in items if item not in checked_on_a_cpu]
