"""config.json and the schema of what is read back: one sentence for content of another type, range or program."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from run_cases import rmcla, small

from rmcla_fast import sealed
from rmcla_fast.errors import UserError
from rmcla_fast.options import PERCENT, fact
from rmcla_fast.schema import Mismatch, read_as
from rmcla_fast.training import TrainConfig, train
from rmcla_fast.training.record import Facts, RunRecord, parse_record, read_config
from rmcla_fast.training.resolve import resolve


def record() -> RunRecord:
    options = resolve(TrainConfig(data="digits", out="runs/x", ema=0.9, images_per_class=7))
    return RunRecord(options, Facts(num_classes=10, channels=1, image_size=(8, 8), train_images=70, classes=("é", "b")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_bytes(sealed.dumps(record().as_json()))
    return path


def test_a_record_is_read_as_it_was_written(path: Path) -> None:
    assert read_config(path) == record()
    assert json.loads(path.read_text())["epsilon"] == 0.15


def test_an_option_that_an_older_version_did_not_have_gets_its_default() -> None:
    content = record().as_json()
    del content["ema"], content["classes"]
    assert parse_record(content).options.ema == 0.0
    assert parse_record({**content, "of a later version": 1}).facts.classes == ()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not a JSON object"),
        (b"{", "is not a JSON object"),
        (b"[1]", "is not a JSON object"),
        (b"[" * 100_000, "is not a JSON object"),
        (b"\xff\xfe{}", "is not a JSON object"),
        (b"{}", "has no checksum"),
        (sealed.dumps({"epochs": 30}).replace(b"30", b"31"), "was changed or damaged after it was written"),
        (sealed.dumps({}), r"does not hold the options of a run \(num_classes is missing\)"),
    ],
)
def test_a_config_that_cannot_be_believed_is_refused(path: Path, content: bytes, sentence: str) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"config\.json {sentence}.*; remove the folder and start the run again"):
        read_config(path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": "x"}, "--epochs must be a whole number; got 'x'"),
        ({"epochs": 10**30}, "--epochs must fit 64 bits; got a number of many digits"),
        ({"threads": 10**12}, "--threads must be from 1 to 4096; got 1000000000000"),
        ({"lr": -1}, "--lr must be positive"),
        ({"model": ["x"]}, "--model must be text; got a list of 1"),
        ({"model": None}, "model is missing"),
        ({"recipe": 10**5000}, "--recipe must be text; got a number of many digits"),
        ({"data": "y" * 5000}, "unknown data set"),
        ({"seed": True}, "--seed must be a whole number; got True"),
        ({"image_size": "8x8"}, "image_size must be a list; got '8x8'"),
        ({"channels": 0}, "channels must be at least 1; got 0"),
        ({"train_images": -5}, "train_images must be 0 or more; got -5"),
    ],
)
def test_another_type_or_range_is_one_short_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Mismatch, match=sentence) as caught:
        parse_record({**record().as_json(), **changes})
    assert len(str(caught.value)) < 200


def test_a_run_without_a_checkpoint_goes_on_from_its_config_unless_that_was_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = train(small(tmp_path / "run", epochs=1))
    for path in out.iterdir():
        if path.name != "config.json":
            path.unlink()
    document = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**document, "seed": 1}))
    assert rmcla("train", "--resume", "--out", out) == 2
    assert "was changed or damaged after it was written" in capsys.readouterr().err
    (out / "config.json").write_text(json.dumps(document))
    assert rmcla("train", "--resume", "--out", out, "-q") == 0


def test_a_pipe_in_place_of_a_file_is_not_waited_for(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="is not a file"):
        read_config(path)


@dataclasses.dataclass(frozen=True)
class Inner:
    share: float = fact(PERCENT)
    note: str | None = None


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    many: dict[str, list[Inner]]
    pair: tuple[int, bool] = (0, False)
    anything: Any = None


def test_nested_data_become_nested_dataclasses() -> None:
    read = read_as(
        Outer, {"inner": {"share": 1, "more": 2}, "many": {"a": [{"share": 0.5, "note": "b"}]}, "pair": [3, True]}
    )
    assert read == Outer(Inner(1.0), {"a": [Inner(0.5, "b")]}, (3, True))
    assert isinstance(read.inner.share, float)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([], "the content must be an object; got a list of 0"),
        ({"many": {}}, "inner is missing"),
        ({"inner": {"share": 101}, "many": {}}, r"inner\.share must be in \[0, 100\]; got 101"),
        ({"inner": {"share": float("nan")}, "many": {}}, r"inner\.share must be a number; got NaN"),
        ({"inner": {"share": 1, "note": 5}, "many": {}}, r"inner\.note must be text or nothing; got 5"),
        (
            {"inner": {"share": 1}, "many": {"a": [{"share": "x"}]}},
            r"many\['a'\]\[0\]\.share must be a number; got 'x'",
        ),
        ({"inner": {"share": 1}, "many": {5: []}}, "many must have text as keys"),
        ({"inner": {"share": 1}, "many": {}, "pair": [1]}, "pair must have 2 entries; got 1"),
        ({"inner": {"share": 1}, "many": {}, "pair": [1, 1]}, r"pair\[1\] must be true or false; got 1"),
        ({"inner": {"share": 1}, "many": {}, "pair": [2**63, True]}, r"pair\[0\] must fit 64 bits"),
    ],
)
def test_data_that_do_not_fit_say_where(data: Any, sentence: str) -> None:
    with pytest.raises(Mismatch, match=sentence):
        read_as(Outer, data)
