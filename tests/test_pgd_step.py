"""PGD replayed from a CUDA graph gives the images and verdicts of PGD run step by step.

On a CPU the captured step is called instead of replayed; everything around it is the code that a GPU runs.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from evaluation_cases import EPSILON, STEP, Counting, Poisoned, called_instead, examples, linear_model, small_net
from torch import Tensor, nn

from rmcla_fast.attacks import evaluate, pgd, pgd_step
from rmcla_fast.attacks.batches import as_images
from rmcla_fast.attacks.checked_model import checked
from rmcla_fast.attacks.pgd import PGDAttack
from rmcla_fast.attacks.pgd_settings import PGDSettings
from rmcla_fast.cuda_graph import CaptureFailed, Work
from rmcla_fast.evaluation.curves import over_iterations

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
SETTINGS = {"epsilon": EPSILON, "step_size": STEP, "steps": 25, "seed": 3}
DROPPING = PGDSettings(EPSILON, STEP, 25, drop_fooled=True)
SEED = 3


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after whose call attacks on the CPU take the captured path."""
    return lambda: monkeypatch.setattr(pgd_step, "capture_for", lambda device: called_instead)


def robust_examples(count: int = 64) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a float64 model, whose gradients have the same signs in every batch size, and images for it.

    The attacks here fool the model on some of the images and not on others.
    """
    model = small_net().double()
    images, _ = examples(count)
    images = images.double()
    labels = model(images).argmax(1)
    labels[:3] = (labels[:3] + 1) % 10  # wrong from the start
    return model, images, labels


@pytest.mark.parametrize("drop_fooled", [False, True])
@pytest.mark.parametrize("objective", ["ce", "margin"])
@pytest.mark.parametrize("restarts", [1, 3])
def test_the_captured_path_gives_the_eager_images_and_verdicts(
    captured: Callable[[], None], objective: str, drop_fooled: bool, restarts: int
) -> None:
    model, images, labels = robust_examples()
    settings = PGDSettings(0.02, 0.005, 25, objective, restarts=restarts, drop_fooled=drop_fooled)
    steps: dict[str, list[tuple[int, int]]] = {"eager": [], "captured": []}
    results = {}
    with checked(model) as asked:
        for name, calls in steps.items():
            if name == "captured":
                captured()
            results[name] = PGDAttack(asked).run(
                images, labels, settings, seed=SEED, step_done=lambda *call, calls=calls: calls.append(call)
            )
    torch.testing.assert_close(results["captured"].images, results["eager"].images, atol=1e-12, rtol=0)
    assert steps["captured"] == steps["eager"]
    assert torch.equal(results["captured"].right, results["eager"].right)
    assert 0 < int(results["eager"].right.sum()) < 61


def test_captured_batches_shrink_with_the_images_left_and_are_used_again(
    captured: Callable[[], None],
) -> None:
    captured()
    inner, images, labels = robust_examples(200)
    labels[:120] = (labels[:120] + 1) % 10
    model = Counting(inner)
    settings = PGDSettings(0.01, 0.001, 60, drop_fooled=True)
    with checked(model) as asked:
        attack = PGDAttack(asked)
        attack.run(images, labels, settings, seed=SEED)
        sizes = sorted(attack.pool.captured)
        assert sizes[-1] == 200
        assert len(sizes) == 2
        assert sizes[0] <= 100
        model.sizes.clear()
        attack.run(images[:190], labels[:190], settings, seed=SEED)
        assert sorted(attack.pool.captured) == sizes
        assert model.sizes[:10] == [200] * 10
        attack.run(images, labels, replace(settings, epsilon=0.02), seed=SEED)
        assert attack.pool.captured[200].settings.epsilon == 0.02


def test_few_steps_are_not_worth_a_capture(captured: Callable[[], None]) -> None:
    captured()
    model, images, labels = robust_examples(8)
    with checked(model) as asked:
        attack = PGDAttack(asked)
        attack.run(images, labels, PGDSettings(EPSILON, EPSILON, 1, drop_fooled=True))
    assert not attack.pool.captured


def test_rows_beyond_the_images_are_never_read(captured: Callable[[], None]) -> None:
    captured()
    model, images, labels = robust_examples(20)
    settings = replace(DROPPING, drop_fooled=False)
    with checked(model) as asked:
        attack = PGDAttack(asked)
        attack.perturb(images, labels, settings, seed=SEED)
        for one in attack.pool.captured.values():
            one.images.fill_(float("nan"))
            one.origin.fill_(float("nan"))
        few = attack.perturb(images[:15], labels[:15], settings, seed=SEED)
    assert list(attack.pool.captured) == [20]
    expected = pgd(model, images[:15], labels[:15], **SETTINGS)
    torch.testing.assert_close(few, expected, atol=1e-12, rtol=0)


def test_a_model_that_answers_nan_gives_the_same_images_captured(captured: Callable[[], None]) -> None:
    images, labels = examples(32)
    eager = pgd(Poisoned(), images, labels, **SETTINGS, random_start=False, drop_fooled=True)
    captured()
    got = pgd(Poisoned(), images, labels, **SETTINGS, random_start=False, drop_fooled=True)
    assert got.isfinite().all()
    torch.testing.assert_close(got, eager, atol=1e-6, rtol=0)


def test_the_curve_over_iterations_is_exact_when_steps_are_replayed(captured: Callable[[], None]) -> None:
    model, images, labels = robust_examples()
    eager = over_iterations(model, images, labels, 0.02, steps=40)
    captured()
    assert over_iterations(model, images, labels, 0.02, steps=40) == eager


def test_a_model_that_cannot_be_captured_runs_eagerly_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, labels = robust_examples()
    settings = {"attacks": "ce20,ce100", "epsilon": EPSILON, "batch_size": 16}
    expected = evaluate(model, images, labels, **settings)

    def refuse(step: Work) -> Work:
        step()
        raise CaptureFailed("called a synchronizing CUDA operation")

    monkeypatch.setattr(pgd_step, "capture_for", lambda device: refuse)
    with pytest.warns(UserWarning, match="without a CUDA graph.*called a synchronizing") as caught:
        got = evaluate(model, images, labels, **settings)
    assert len(caught) == 1
    for name, result in expected.items():
        assert torch.equal(got[name].right, result.right)


def test_captured_batches_are_freed_with_their_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[pgd_step.CapturedBatch]] = []
    create = pgd_step.CapturedBatch.__init__

    def recorded(self: pgd_step.CapturedBatch, *arguments: object) -> None:
        made.append(weakref.ref(self))
        create(self, *arguments)

    monkeypatch.setattr(pgd_step.CapturedBatch, "__init__", recorded)
    # A graph holds no reference to the step that it was captured from, so the stand-in must not hold one either.
    monkeypatch.setattr(pgd_step, "capture_for", lambda device: lambda step: (step(), lambda: None)[1])
    gc.collect()
    gc.disable()
    try:
        pgd(*robust_examples(), **SETTINGS)
        assert len(made) == 1
        assert made[0]() is None
    finally:
        gc.enable()


def test_images_of_one_channel_get_their_plain_strides() -> None:
    odd = torch.rand(4, 8, 8)[:, None].contiguous(memory_format=torch.channels_last)
    odd = torch.empty_strided((4, 1, 8, 8), (64, 1, 8, 1)).copy_(odd)
    assert as_images(odd).stride() == (64, 64, 8, 1)
    assert torch.equal(as_images(odd), odd)
    assert as_images((odd * 255).to(torch.uint8)).stride() == (64, 64, 8, 1)
    wide = torch.rand(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    assert as_images(wide).stride() == wide.stride()


class Branching(nn.Module):
    """A model whose control flow waits for its values, so that no graph can hold it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits if bool(logits.sum() > -1e9) else -logits


def eagerly(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Tensor]) -> Tensor:
    """Return what `run` returns without a CUDA graph."""
    with monkeypatch.context() as patch:
        patch.setattr(pgd_step, "capture_for", lambda device: None)
        return run()


class TestOnAGPU:
    pytestmark = gpu

    @pytest.mark.parametrize("drop_fooled", [False, True])
    @pytest.mark.parametrize("objective", ["ce", "margin"])
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_a_graph_gives_the_eager_images(
        self,
        deterministic_convolutions: None,
        monkeypatch: pytest.MonkeyPatch,
        objective: str,
        drop_fooled: bool,
        memory_format: torch.memory_format,
    ) -> None:
        model, images, labels = robust_examples()
        model, labels = model.cuda(), labels.cuda()
        images = images.cuda().contiguous(memory_format=memory_format)
        settings = {**SETTINGS, "objective": objective, "drop_fooled": drop_fooled, "restarts": 2, "epsilon": 0.02}

        def run() -> Tensor:
            return pgd(model, images, labels, **{**settings, "step_size": 0.005})

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # PyTorch warns where a thread of autograd is the first to multiply matrices on a GPU.
            warnings.filterwarnings("ignore", message="Attempting to run cuBLAS")
            got = run()
        torch.testing.assert_close(got, eagerly(monkeypatch, run), atol=1e-12, rtol=0)

    def test_a_linear_model_has_its_closed_form(self) -> None:
        model, weight = linear_model(classes=2)
        images, labels = examples(20, 2)
        images = images[:, :, :2, :2].contiguous()
        expected = (images + EPSILON * (weight[1 - labels] - weight[labels]).sign().reshape(images.shape)).clamp(0, 1)
        got = pgd(model.cuda(), images.cuda(), labels.cuda(), epsilon=EPSILON, step_size=STEP, steps=30)
        torch.testing.assert_close(got.cpu(), expected, atol=1e-6, rtol=0)

    def test_a_graph_was_captured_and_serves_every_attack(self) -> None:
        model, images, labels = robust_examples()
        model, images, labels = model.cuda(), images.cuda(), labels.cuda()
        with checked(model) as asked:
            attack, kept = PGDAttack(asked), None
            for steps in (20, 50):
                attack.run(images, labels, replace(DROPPING, steps=steps), seed=SEED)
                assert not attack.pool.uncapturable
                assert 64 in attack.pool.captured
                kept = kept or attack.pool.captured[64]
                assert attack.pool.captured[64] is kept

    def test_a_branching_model_runs_eagerly_with_one_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, images, labels = robust_examples()
        model, images, labels = Branching(model).cuda(), images.cuda(), labels.cuda()

        def run() -> Tensor:
            return pgd(model, images, labels, **SETTINGS)

        expected = eagerly(monkeypatch, run)
        with pytest.warns(UserWarning, match="without a CUDA graph") as caught:
            got = run()
        assert len(caught) == 1
        assert torch.equal(got, expected)
        assert torch.cuda.get_sync_debug_mode() == 0
        assert torch.rand(4, device="cuda").isfinite().all()  # nothing is left half captured
