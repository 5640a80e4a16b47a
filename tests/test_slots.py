"""The batch of constant size: it stays full, decides alike in any size, is captured, and reports its progress."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from apgd_cases import EPSILON, decided, right_examples
from evaluation_cases import Counting, called_instead, examples, small_net
from step_cases import RefuseHostReads
from torch import Tensor, nn

from rmcla_fast.attacks import evaluate, slots
from rmcla_fast.attacks.apgd import APGD
from rmcla_fast.attacks.batches import Examples
from rmcla_fast.attacks.checked_model import CheckedModel, checked
from rmcla_fast.attacks.fab import FAB
from rmcla_fast.attacks.slots import Search
from rmcla_fast.attacks.square import Square
from rmcla_fast.cuda_graph import CaptureFailed, Work


@pytest.mark.parametrize("targeted", [False, True])
def test_an_image_gets_the_same_answer_in_any_batch(targeted: bool) -> None:
    model = small_net()
    images, labels = right_examples(model, 32)
    expected = decided(model, images, labels, targeted=targeted)
    for size, rows in ((13, None), (40, torch.arange(32).flip(0)), (64, torch.arange(3, 32, 5))):
        found = decided(model, images, labels, targeted=targeted, size=size, rows=rows)
        assert set(found) == set(range(32) if rows is None else rows.tolist())
        for row, (right, image) in found.items():
            assert right == expected[row][0]
            assert torch.equal(image, expected[row][1])


def test_the_batch_stays_full_until_the_queue_is_empty() -> None:
    model = Counting(small_net())
    images, labels = right_examples(model.model, 200)
    model.sizes.clear()
    decided(model, images, labels, size=32)
    sizes = model.sizes[2:]  # after the two passes that choose the memory layout
    assert sizes[0] == 32
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) <= {8, 16, 24, 32}


def test_a_16_bit_search_is_confirmed_and_never_weaker() -> None:
    model = small_net()
    images, labels = right_examples(model, 100)
    exact = evaluate(model, images, labels, attacks="apgd", epsilon=EPSILON)["apgd"]
    found = evaluate(model, images, labels, attacks="apgd", epsilon=EPSILON, precision="bf16")["apgd"]
    assert not (found.right & ~exact.right).any()
    assert [part.part for part in found.parts] == ["apgd-ce in bf16", "apgd-ce", "apgd-t in bf16", "apgd-t"]
    assert found.parts[0].fooled > 0
    assert "its accuracy is that of the float32 network" in found.notes[0]


def test_a_success_that_float32_does_not_confirm_does_not_count() -> None:
    """This model answers wrongly in 16 bits, and only there."""

    class WrongIn16Bits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = small_net()

        def forward(self, images: Tensor) -> Tensor:
            logits = self.model(images.float())
            return -logits if torch.is_autocast_enabled("cpu") else logits

    model = WrongIn16Bits()
    images, labels = right_examples(model, 32)
    found = evaluate(model, images, labels, attacks="apgd-ce", epsilon=1e-6, precision="bf16")["apgd-ce"]
    assert found.accuracy == 100
    assert [part.fooled for part in found.parts] == [0, 0]


@pytest.mark.parametrize("targeted", [False, True])
def test_the_captured_path_decides_the_same(targeted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_net()
    images, labels = right_examples(model, 60)
    expected = decided(model, images, labels, targeted=targeted, size=24)
    monkeypatch.setattr(slots, "capture_for", lambda device: called_instead)
    found = decided(model, images, labels, targeted=targeted, size=24)
    assert set(found) == set(range(60))
    for row, (right, image) in expected.items():
        assert found[row][0] == right
        assert torch.equal(found[row][1], image)


def test_a_model_that_cannot_be_captured_runs_eagerly_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_net()
    images, labels = right_examples(model, 100)
    expected = decided(model, images, labels, size=48)

    def refuse(step: Work) -> Work:
        step()
        raise CaptureFailed("called a synchronizing CUDA operation")

    monkeypatch.setattr(slots, "capture_for", lambda device: refuse)
    with pytest.warns(UserWarning, match="without a CUDA graph.*called a synchronizing") as caught:
        found = decided(model, images, labels, size=48)
    assert len(caught) == 1
    assert {row: right for row, (right, _) in found.items()} == {row: right for row, (right, _) in expected.items()}


@pytest.mark.parametrize("attack", ["apgd-ce", "apgd-t", "apgd"])
def test_progress_grows_to_the_end(attack: str) -> None:
    model = small_net()
    images, labels = right_examples(model, 40)
    seen: list[float] = []
    report: Callable[[str, float], None] = lambda name, fraction: seen.append(fraction)  # noqa: E731
    evaluate(model, images, labels, attacks=attack, epsilon=EPSILON, batch_size=16, progress=report)
    assert len(seen) > 50
    assert seen == sorted(seen)
    assert seen[-1] == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_decides_as_a_cpu_does(precision: str) -> None:
    """It rounds differently, so two images of a hundred may differ. Each search is captured without a warning."""
    model = small_net()
    images, labels = right_examples(model, 100)
    expected = evaluate(model, images, labels, attacks="apgd,autoattack", epsilon=EPSILON)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Attempting to run cuBLAS")  # by PyTorch, in a process's first backward pass
        found = evaluate(
            model.cuda(), images, labels, attacks="apgd,autoattack", epsilon=EPSILON, batch_size=48, precision=precision
        )
    for name, result in expected.items():
        assert int((found[name].right != result.right).sum()) <= 2


def searches(asked: CheckedModel, data: Examples) -> list[Search]:
    """Return each kind of search, with 32 images in its slots, after its first step."""
    found = [
        APGD(asked, data, 0, epsilon=EPSILON),
        APGD(asked, data, 0, epsilon=EPSILON, targeted=True),
        FAB(asked, data, 0, epsilon=EPSILON),
        Square(asked, data, 0, epsilon=EPSILON),
    ]
    for search in found:
        search.prepare(torch.arange(32), 32)
        search._open(torch.arange(1), 32)
        search._fill(torch.arange(32))
        search.step()
    return found


def test_no_step_reads_a_tensor_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a step cannot be captured in a CUDA graph. On a CPU a step asks whether it can leave something out."""
    for module in ("apgd", "slots"):
        monkeypatch.setattr(f"rmcla_fast.attacks.{module}.some", lambda where: True)
    monkeypatch.setattr(torch, "equal", lambda first, second: False)  # FAB asks with it
    model = small_net()
    images = examples(32)[0]
    with checked(model) as asked:
        asked.num_classes = 10
        for search in searches(asked, Examples(asked, images, model(images).argmax(1))):
            with RefuseHostReads():
                search.step()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_no_step_waits_for_the_gpu() -> None:
    model = small_net().cuda()
    images = examples(32)[0].cuda()
    with checked(model) as asked:
        asked.num_classes = 10
        for search in searches(asked, Examples(asked, images, model(images).argmax(1))):
            torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in range(3):
                    search.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
