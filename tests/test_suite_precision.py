"""`evaluate` in 16 bits: only the network computes in them, in attacks and verdicts alike, and the result says so."""

from __future__ import annotations

import pytest
import torch
from evaluation_cases import Poisoned, assert_same, drifting_model, examples, small_net, snapshot
from torch import Tensor, nn

from rmcla_fast.attacks import evaluate, pgd_step
from rmcla_fast.attacks.checked_model import checked
from rmcla_fast.attacks.pgd import PGDAttack
from rmcla_fast.attacks.pgd_settings import PGDSettings
from rmcla_fast.attacks.suite import AttackResult
from rmcla_fast.errors import UserError
from rmcla_fast.evaluation.curves import loss_surface, over_epsilon, over_iterations
from rmcla_fast.evaluation.report import explanation, remarks
from rmcla_fast.precision import PRECISIONS, require_precision

OWN = "clean,fgsm,ce20,cw100"
EPSILON = 8 / 255
SIXTEEN = pytest.mark.parametrize("precision", ["bf16", "fp16"])


class Autocasting(nn.Module):
    """A network that puts itself under autocast."""

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.model, self.dtype = model, PRECISIONS[precision]

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, dtype=self.dtype):
            return self.model(images).float()


class Watched(nn.Module):
    """A network that notes the type of its logits, and whether autocast would keep the weights that it casts."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.seen = small_net(), set[object]()

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        self.seen.add((logits.dtype, torch.is_autocast_cache_enabled()))
        return logits


def labelled(model: nn.Module, count: int = 64) -> tuple[Tensor, Tensor]:
    images, _ = examples(count)
    with torch.no_grad():
        return images, model(images).argmax(1)


def confident(margin: float = 1500.0) -> nn.Module:
    """Return a model whose logits are so far apart that the gradient of the loss is below the smallest float16."""
    model = small_net()
    with torch.no_grad():
        for parameter in model[-1].parameters():
            parameter.mul_(margin)
    return model


@SIXTEEN
def test_the_results_are_those_of_a_network_that_autocasts_itself(precision: str) -> None:
    model = small_net()
    images, labels = labelled(model)
    expected = evaluate(Autocasting(model, precision), images, labels, attacks=OWN, epsilon=EPSILON)
    got = evaluate(model, images, labels, attacks=OWN, epsilon=EPSILON, precision=precision)
    assert torch.equal(got["clean"].right, expected["clean"].right)
    for name, result in got.items():
        assert result.precision == precision
        assert result.as_json()["precision"] == precision
        # In fp16 the gradient is scaled on its way, so a sign may differ.
        assert int((result.right != expected[name].right).sum()) <= (0 if precision == "bf16" else 1)
    assert 0 < got["ce20"].accuracy < 100


@SIXTEEN
def test_only_the_network_computes_in_16_bits(precision: str) -> None:
    dtype = PRECISIONS[precision]
    model = Watched()
    images, labels = labelled(small_net(), 16)
    evaluate(model, images, labels, attacks=OWN, epsilon=EPSILON, precision=precision)
    assert model.seen == {(dtype, False)}
    assert torch.is_autocast_cache_enabled()
    with checked(model, precision=precision) as asked:
        assert asked(images).dtype == torch.float32
        found = PGDAttack(asked).perturb(images, labels, PGDSettings(EPSILON, EPSILON / 4, 3))
    assert found.dtype == torch.float32
    assert float((found - images).abs().max()) == pytest.approx(EPSILON, abs=1e-6)  # not rounded to 16 bits


def test_fp32_is_the_default_precision() -> None:
    model = small_net()
    images, labels = labelled(model, 16)
    plain = evaluate(model, images, labels, attacks=OWN, epsilon=EPSILON)
    named = evaluate(model, images, labels, attacks=OWN, epsilon=EPSILON, precision="fp32")
    for name, result in plain.items():
        assert torch.equal(result.right, named[name].right)
        assert "precision" not in result.as_json()


def test_the_callers_autocast_takes_effect_only_with_fp32() -> None:
    model = Watched()
    images, labels = labelled(small_net(), 8)
    for precision, dtype in (("fp32", torch.float16), ("bf16", torch.bfloat16)):
        model.seen.clear()
        with torch.autocast("cpu", dtype=torch.float16):
            evaluate(model, images, labels, attacks="fgsm", epsilon=EPSILON, precision=precision)
            assert torch.get_autocast_dtype("cpu") == torch.float16
        assert {seen for seen, _ in model.seen} == {dtype}


@SIXTEEN
def test_the_gradient_of_a_confident_answer_does_not_vanish(precision: str) -> None:
    model = confident()
    images, labels = labelled(model)
    settings = {"attacks": "fgsm,ce20", "epsilon": 12 / 255}
    expected = evaluate(model, images, labels, **settings)
    got = evaluate(model, images, labels, **settings, precision=precision)
    for name, result in got.items():
        assert result.accuracy == pytest.approx(expected[name].accuracy, abs=5)
    if precision == "fp16":  # in which the attack stands still without the scale of the gradient
        alone = evaluate(Autocasting(model, precision), images, labels, **settings)
        assert alone["ce20"].accuracy > got["ce20"].accuracy + 20


def test_the_callers_own_float16_does_not_weaken_the_attack() -> None:
    """With precision "fp32", float16 weights or the caller's autocast make the model compute in float16, too."""
    model = confident()
    images, labels = labelled(model)
    settings = {"attacks": "ce20", "epsilon": 12 / 255}
    expected = evaluate(model, images, labels, **settings)["ce20"].accuracy
    half = confident().half()
    for given in (images, images.half()):
        assert evaluate(half, given, labels, **settings)["ce20"].accuracy == pytest.approx(expected, abs=5)
        got = evaluate(model, given, labels, **settings, precision="fp16")["ce20"].accuracy
        assert got == pytest.approx(expected, abs=5)
    with torch.autocast("cpu", dtype=torch.float16):
        assert evaluate(model, images, labels, **settings)["ce20"].accuracy == pytest.approx(expected, abs=5)


def test_logits_beyond_float16_count_as_wrong_answers() -> None:
    model = confident(1e7)
    images, labels = labelled(model, 32)
    results = evaluate(model, images, labels, attacks="clean,ce20", epsilon=EPSILON, precision="fp16")
    assert results["clean"].nonfinite > 0
    assert results["clean"].accuracy == pytest.approx(100 * (1 - results["clean"].nonfinite / 32))
    assert evaluate(model, images, labels, attacks="clean", epsilon=EPSILON, precision="bf16")["clean"].nonfinite == 0


@SIXTEEN
def test_nan_counts_as_a_wrong_answer(precision: str) -> None:
    model = Poisoned()
    images, labels = labelled(model.model)
    bright = images[:, 0, 0, 0] > 0.5
    results = evaluate(model, images, labels, attacks=OWN, epsilon=EPSILON, precision=precision)
    assert results["clean"].nonfinite == int(bright.sum())
    assert not results["ce20"].right[bright].any()


@SIXTEEN
def test_the_model_stays_as_it_was(precision: str) -> None:
    model = drifting_model()
    before = snapshot(model)
    evaluate(model, *examples(16), attacks=OWN, epsilon=EPSILON, precision=precision)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float64, "bf16"), (torch.float16, "bf16"), (torch.bfloat16, "fp16")]
)
def test_weights_of_another_type_are_refused(dtype: torch.dtype, precision: str) -> None:
    with pytest.raises(
        ValueError, match=f"^precision '{precision}' needs weights in float32 or .*; the model's are {dtype}"
    ):
        evaluate(small_net().to(dtype), *examples(4), attacks="clean", epsilon=EPSILON, precision=precision)


@SIXTEEN
def test_16_bit_weights_and_float64_images_give_similar_results(precision: str) -> None:
    images, labels = labelled(small_net(), 32)
    expected = evaluate(small_net(), images, labels, attacks="clean,ce20", epsilon=EPSILON, precision=precision)
    for model, given in ((small_net().to(PRECISIONS[precision]), images), (small_net(), images.double())):
        got = evaluate(model, given, labels, attacks="clean,ce20", epsilon=EPSILON, precision=precision)
        for name, result in got.items():
            assert result.accuracy == pytest.approx(expected[name].accuracy, abs=10)


@pytest.mark.parametrize("precision", ["int8", None, ["bf16"]])
def test_an_unknown_precision_is_refused(precision: object) -> None:
    with pytest.raises(ValueError, match=r"^precision must be one of 'fp32', 'bf16', 'fp16'; got"):
        evaluate(small_net(), *examples(4), attacks="clean", epsilon=EPSILON, precision=precision)  # type: ignore[arg-type]


def test_a_gpu_without_bf16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test only pretends to have a GPU from before bf16."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old GPU")
    cuda = torch.device("cuda")
    with pytest.raises(UserError, match="--precision bf16 is not supported by an old GPU; use fp16 or fp32"):
        require_precision("bf16", cuda)
    for precision, device in (("fp16", cuda), ("fp32", cuda), ("bf16", torch.device("cpu"))):
        require_precision(precision, device)


def test_the_report_says_the_precision() -> None:
    result = AttackResult(50.0, 4, 0.0, restarts=2, precision="bf16")
    assert remarks(result) == "bf16; 2 restarts"
    said = "The network computed in bf16 under clean, CE20; the accuracy to publish is that in fp32."
    assert said in explanation({"clean": result, "ce20": result, "apgd": result}, "")
    assert "to publish" not in explanation({"apgd": result}, "")
    assert "fp32" not in explanation({"clean": AttackResult(50.0, 4, 0.0)}, "")


@pytest.mark.parametrize("attack", ["mi", "cw-l2-a", "deepfool-l2", "autoattack"])
def test_the_libraries_ask_the_same_network(attack: str) -> None:
    pytest.importorskip("foolbox", reason="pip install 'rmcla-fast[eval]'")
    model = small_net()
    images, labels = labelled(model, 3)
    expected = evaluate(Autocasting(model, "bf16"), images, labels, attacks=attack, epsilon=EPSILON)[attack]
    got = evaluate(model, images, labels, attacks=attack, epsilon=EPSILON, precision="bf16")[attack]
    assert torch.equal(got.right, expected.right)
    assert (got.precision, got.distortion_median) == ("bf16", expected.distortion_median)


def test_the_curves_ask_the_same_network() -> None:
    model = small_net()
    images, labels = labelled(model, 32)
    wrapped = Autocasting(model, "bf16")
    assert over_epsilon(model, images, labels, [0.0, 0.02], precision="bf16") == over_epsilon(
        wrapped, images, labels, [0.0, 0.02]
    )
    assert over_iterations(model, images, labels, 0.02, steps=5, precision="bf16") == over_iterations(
        wrapped, images, labels, 0.02, steps=5
    )
    _, loss = loss_surface(model, images[0], int(labels[0]), 0.02, points=3, precision="bf16")
    assert torch.equal(loss, loss_surface(wrapped, images[0], int(labels[0]), 0.02, points=3)[1])


@SIXTEEN
def test_the_captured_path_gives_the_eager_accuracy(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_net()
    images, labels = labelled(model)
    settings = {"attacks": "ce20,cw100", "epsilon": EPSILON, "precision": precision}
    expected = evaluate(model, images, labels, **settings)
    monkeypatch.setattr(pgd_step, "capture_for", lambda device: lambda step: (step(), step)[1])
    got = evaluate(model, images, labels, **settings)
    for name, result in got.items():  # batches of other sizes round differently
        assert result.accuracy == pytest.approx(expected[name].accuracy, abs=4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@SIXTEEN
@pytest.mark.parametrize("margin", [1.0, 1500.0])
def test_a_graph_gives_the_eager_accuracy(precision: str, margin: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = confident(margin).cuda()
    images, labels = (part.cuda() for part in examples(64))
    with torch.no_grad():
        labels = model(images).argmax(1)
    settings = {"attacks": "ce20,cw100", "epsilon": EPSILON, "precision": precision}
    got = evaluate(model, images, labels, **settings)
    again = evaluate(model, images, labels, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(pgd_step, "capture_for", lambda device: None)
        expected = evaluate(model, images, labels, **settings)
    for name, result in got.items():
        assert result.accuracy == pytest.approx(expected[name].accuracy, abs=4)
        assert again[name].accuracy == pytest.approx(result.accuracy, abs=4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_graph_attacks_the_weights_of_its_replay() -> None:
    """The casts of the weights are in the graph, so it does not keep the weights of its capture."""
    model = small_net().cuda()
    images, labels = (part.cuda() for part in examples(64))
    settings = PGDSettings(EPSILON, EPSILON / 4, 25)
    with checked(model, precision="bf16") as asked:
        attack = PGDAttack(asked)
        before = attack.perturb(images, labels, settings)
        captured = dict(attack.pool.captured)
        assert list(captured) == [64]
        model[-1].weight.neg_()
        after = attack.perturb(images, labels, settings)
        assert attack.pool.captured == captured
        fresh = PGDAttack(asked).perturb(images, labels, settings)
    same = ((after - fresh).abs() < 1e-6).float().mean()
    assert float(same) > 0.9
    assert float(((after - before).abs() < 1e-6).float().mean()) < 0.6
