"""Pickles of data sets: what is read, and hostile ones, which change nothing and cost no more than their size."""

from __future__ import annotations

import pickle
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import Malicious, write_cifar10

from rmcla_fast import data
from rmcla_fast.data import pickles
from rmcla_fast.data.pickles import load_pickle
from rmcla_fast.errors import UserError


def test_a_malicious_pickle_does_not_run(tmp_path: Path) -> None:
    root = write_cifar10(tmp_path)
    mark = tmp_path / "it-ran"
    bad = {"data": np.zeros((20, 3072), np.uint8), "labels": [0] * 20, "extra": Malicious(mark)}
    (root / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps(bad))
    with pytest.raises(UserError, match="data_batch_3 is refused"):
        data.load("cifar10", root)
    assert not mark.exists()


@pytest.mark.parametrize("call", ["builtins.eval", "os.system", "numpy.load", "functools.partial"])
def test_a_pickle_that_calls_a_function_is_refused(tmp_path: Path, call: str) -> None:
    module, _, name = call.rpartition(".")
    file = tmp_path / "file"
    file.write_bytes(f"c{module}\n{name}\n(S'1'\ntR.".encode())
    with pytest.raises(UserError, match="refused"):
        load_pickle(file)


def test_objects_inside_an_array_do_not_run(tmp_path: Path) -> None:
    mark, file = tmp_path / "it-ran", tmp_path / "file"
    file.write_bytes(pickle.dumps({"data": np.array([Malicious(mark)], dtype=object)}))
    with pytest.raises(UserError, match="refused"):
        load_pickle(file)
    assert not mark.exists()


class ObjectDtypeWithoutFlags:
    """Pickles as numpy's dtype of objects, with a state that clears its flags."""

    def __reduce__(self) -> Any:
        return np.dtype, ("O", False, True), (3, "|", None, None, None, -1, -1, 0)


class ArrayOfPointers:
    """Pickles as an array whose content numpy would use as pointers if it trusted the dtype."""

    def __reduce__(self) -> Any:
        reconstruct, arguments, _ = np.zeros(1).__reduce__()
        return reconstruct, arguments, (1, (1,), ObjectDtypeWithoutFlags(), False, b"AAAAAAAA")


def test_bytes_of_a_pickle_do_not_become_pointers(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(pickle.dumps({"data": ArrayOfPointers()}))
    with pytest.raises(UserError, match=r"refused.*an array of the dtype O"):
        load_pickle(file)


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    """The official CIFAR files are of this kind: strings are BINSTRING, and the module is numpy.core."""
    pixels = bytes(range(256)) * 24  # 2 images
    shape = b"K\x02M\x00\x0c\x86"
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01" + shape + dtype
    array += b"\x89T" + len(pixels).to_bytes(4, "little") + pixels + b"tb"
    (tmp_path / "file").write_bytes(b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x03K\x07eu.")
    content = load_pickle(tmp_path / "file")
    assert content["labels"] == [3, 7]
    assert np.array_equal(content["data"], np.frombuffer(pixels, np.uint8).reshape(2, 3072))


def test_arrays_of_several_dtypes_are_read(tmp_path: Path) -> None:
    content = {"big": np.arange(5, dtype=">i4"), "names": np.array([b"a", b"bc"]), "one": np.float32(2.5)}
    (tmp_path / "file").write_bytes(pickle.dumps(content, protocol=4))
    for name, value in load_pickle(tmp_path / "file").items():
        assert value.dtype.kind == content[name].dtype.kind
        assert np.array_equal(value, content[name])


def test_arrays_in_any_order_of_bytes_and_axes_are_read(tmp_path: Path) -> None:
    root = write_cifar10(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    labels = (3 * np.arange(40, dtype=">i8") // 2)[::2] % 10
    for protocol in (2, 4):
        content = {"data": np.asfortranarray(images), "labels": labels}
        (root / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(content, protocol=protocol))
        test = data.load("cifar10", root).test
        assert np.array_equal(test.images.numpy(), images.reshape(20, 3, 32, 32))
        assert test.labels.tolist() == [3 * k % 10 for k in range(20)]


def in_dictionary(value: bytes) -> bytes:
    """Return a pickle of {"a": value}, where `value` is the opcodes that make it."""
    return b"\x80\x04}\x8c\x01a" + value + b"s."


def array(shape: bytes, content: bytes, code: bytes = b"u1") -> bytes:
    """Return the opcodes of an array; all arguments but `code` are opcodes."""
    numbers = b"cnumpy\ndtype\n\x8c" + bytes([len(code)]) + code + b"\x85R"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01"
        + shape
        + numbers
        + (b"\x89" + content + b"tb")
    )


ENCODE = b"c_codecs\nencode\n"
REDUCE = b"\x8c\x01a\x8c\x06latin1\x86R"
DTYPE = b"cnumpy\ndtype\n\x8c\x02u1\x85R"
STATE_OF_ATTRIBUTES = b"}\x8c\x01aK\x01sb"
HOSTILE = {
    "attributes of a function": ENCODE + STATE_OF_ATTRIBUTES,
    "slots of a function": ENCODE + b"N}\x8c\x0c__defaults__K\x01\x85s\x86b",
    "attributes of a class": b"cnumpy\nndarray\n" + STATE_OF_ATTRIBUTES,
    "attributes of a dtype": DTYPE + STATE_OF_ATTRIBUTES,
    "attributes of an array": array(b"K\x00\x85", b"C\x00") + STATE_OF_ATTRIBUTES,
    "attributes of a list": b"]" + STATE_OF_ATTRIBUTES,
    "a state of numbers for a dtype": DTYPE + b"K\x01K\x02\x86b",
    "a byte order that does not exist": DTYPE + b"K\x03\x8c\x01x\x86b",
    "a call of an array": array(b"K\x00\x85", b"C\x00") + b")R",
    "a call with no arguments": ENCODE + b")R",
    "a call with a list of arguments": ENCODE + b"]R",
    "another codec": ENCODE + b"\x8c\x01a\x8c\x05utf-8\x86R",
    "a text that is not latin-1": ENCODE + b"\x8c\x03\xe2\x82\xac\x8c\x06latin1\x86R",
    "a dtype of objects": b"cnumpy\ndtype\n\x8c\x01O\x85R",
    "a dtype of records": b"cnumpy\ndtype\n\x8c\x05i4,i4\x85R",
    "a dtype of a list": b"cnumpy\ndtype\n]\x85R",
    "a negative side": array(b"J\xff\xff\xff\xff\x85", b"C\x01a"),
    "two negative sides": array(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86", b"C\x01a"),
    "sides that overflow": array(b"J\x00\x00\x00\x40J\x00\x00\x00\x40J\x00\x00\x00\x40\x87", b"C\x00"),
    "a side of 100 digits": array(b"L" + b"9" * 100 + b"L\n\x85", b"C\x00"),
    "a side that is a bool": array(b"\x88\x85", b"C\x01a"),
    "a hundred sides": array(b"(" + b"K\x01" * 100 + b"t", b"C\x01a"),
    "more shape than content": array(b"M\x00\x10\x85", b"C\x01a"),
    "less shape than content": array(b"K\x01\x85", b"C\x02aa"),
    "elements of no bytes": array(b"J\x00\x00\x00\x40\x85", b"C\x00", b"S0"),
    "elements of a gigabyte": array(b"K\x01\x85", b"C\x01a", b"S1000000000"),
    "a content of objects": array(b"K\x01\x85", b"(]]l"),
    "a scalar without content": b"cnumpy.core.multiarray\nscalar\n" + DTYPE + b"C\x00\x86R",
    "bytes of 10 GB": b"\x8e" + (10**10).to_bytes(8, "little") + b"aaa",
    "bytes beyond memory": b"\x8e" + (2**62).to_bytes(8, "little") + b"aaa",
    "a text of 4 GB": b"X\xff\xff\xff\xffaaa",
    "a number of 2 GB": b"\x8b\xff\xff\xff\x7faaa",
    "a number of negative length": b"\x8b\xff\xff\xff\xffaaa",
    "a number of many digits": b"L" + b"9" * 100_000 + b"L\n",
    "a persistent id": b"Pabc\n",
    "a persistent id on the stack": b"K\x01Q",
    "the extension registry": b"\x82\x01",
    "an instance": b"(ios\nsystem\n",
    "a new object": b"cnumpy\nndarray\n)\x81",
    "a buffer": b"\x97",
    "copyreg": b"ccopyreg\n_reconstructor\n",
    "a name made of lists": b"]]\x93",
    "a key that is a number": b"}K\x01K\x01s",
    "a key that is a list": b"}]K\x01s",
    "a key without a value": b"}(\x8c\x01au",
    "items for a number": b"K\x01K\x01a",
    "a memo that is empty": b"h\x07",
    "no mark": b"t",
    "no stack": b"\x87",
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_pickle_is_refused_in_one_sentence(tmp_path: Path, value: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(in_dictionary(value))
    before = {name: dict(vars(thing)) for name, thing in vars(pickles).items() if hasattr(thing, "__dict__")}
    with pytest.raises(UserError, match=r"^\S*file is refused: it is corrupt, or holds more than") as caught:
        load_pickle(file)
    assert len(str(caught.value)) < 500 + len(str(file))
    assert "\n" not in str(caught.value)
    assert {name: dict(vars(getattr(pickles, name))) for name in before} == before
    file.write_bytes(in_dictionary(ENCODE + REDUCE))
    assert load_pickle(file) == {"a": b"a"}


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in a text of protocol 0
def test_every_cut_and_many_changes_of_a_pickle_give_a_user_error_or_a_dictionary(tmp_path: Path) -> None:
    file = tmp_path / "file"
    content = {"data": np.zeros((2, 3), np.uint8), "one": np.float32(2.5), "name": b"\xff", "t": (1.5, None, [1, 2])}
    draw = np.random.default_rng(0)
    for protocol in (0, 2, 4):
        whole = pickle.dumps(content, protocol=protocol)
        changed = [bytearray(whole[:size]) for size in range(0, len(whole), 3)]
        for place in draw.integers(len(whole), size=150):
            changed.append(bytearray(whole))
            changed[-1][place] = draw.integers(256)
        for text in changed:
            file.write_bytes(text)
            with suppress(UserError):
                assert isinstance(load_pickle(file), dict)


def test_a_value_nested_ten_thousand_times_does_not_overflow_the_stack(tmp_path: Path) -> None:
    file, depth = tmp_path / "file", 10_000
    nested = {
        "list": b"]" * depth + b"a" * (depth - 1),
        "tuple": b")" + b"\x85" * depth,
        "dict": b"}\x8c\x01a" * depth + b"K\x01" + b"s" * depth,
    }
    for value in nested.values():
        file.write_bytes(in_dictionary(value))
        assert list(load_pickle(file)) == ["a"]
        file.write_bytes(in_dictionary(b"}" + value + b"K\x01s"))  # a key, whose hash would recurse
        with pytest.raises(UserError, match="a key that is no text"):
            load_pickle(file)
        file.write_bytes(in_dictionary(value + value + b"\x93"))  # a name, whose text would recurse
        with pytest.raises(UserError, match="a name that is no text"):
            load_pickle(file)
        for code in (b"cnumpy\ndtype\n" + value + b"\x85R", DTYPE + b"K\x01" + value + b"\x86b"):
            file.write_bytes(in_dictionary(code))
            with pytest.raises(UserError, match="refused"):
                load_pickle(file)
        root = tmp_path / value[:1].hex()
        images = array(b"K\x00M\x00\x0c\x86", b"C\x00")
        target = write_cifar10(root) / "cifar-10-batches-py" / "data_batch_1"
        target.write_bytes(b"\x80\x04}\x8c\x04data" + images + b"s\x8c\x06labels" + value + b"s.")
        with pytest.raises(UserError, match=r"data_batch_1 is corrupt: .* got uint8 \(0, 3072\) and a"):
            data.load("cifar10", root)


def test_labels_that_hold_themselves_or_each_other_are_refused_at_once(tmp_path: Path) -> None:
    """As an array, the second of these lists would have 10**9 elements."""
    root = write_cifar10(tmp_path)
    target = root / "cifar-10-batches-py" / "data_batch_1"
    images = array(b"K\x00M\x00\x0c\x86", b"C\x00")
    laughs = b"]\x94(" + b"K\x01" * 10 + b"e"
    for level in range(8):
        laughs += b"]\x94(" + bytes([ord("h"), level]) * 10 + b"e"
    for labels in (b"]\x94(h\x00e", laughs):
        opcodes = b"\x80\x04}\x8c\x04data" + images + b"s\x8c\x06labels" + labels + b"s."
        target.write_bytes(opcodes)
        before = time.process_time()  # other processes do not add to it
        with pytest.raises(UserError, match="data_batch_1 is"):
            data.load("cifar10", root)
        assert time.process_time() - before < 5


def test_one_content_does_not_become_many_arrays(tmp_path: Path) -> None:
    file = tmp_path / "file"
    content = b"C\xff" + b"a" * 255 + b"\x94"
    twice_the_bytes = b"(" + array(b"K\xff\x85", content) + array(b"K\xff\x85", b"h\x00") * 40 + b"t"
    encoded = b"(\x8c\xff" + b"a" * 255 + b"\x94" + (ENCODE + b"h\x00\x8c\x06latin1\x86R") * 40 + b"t"
    for value in (twice_the_bytes, encoded):
        file.write_bytes(in_dictionary(value))
        with pytest.raises(UserError, match="arrays that are larger than the file"):
            load_pickle(file)


def test_a_file_of_too_many_opcodes_or_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(in_dictionary(b"(" + b"]" * 1000 + b"t"))
    assert len(load_pickle(file)["a"]) == 1000
    monkeypatch.setattr(pickles, "MOST_OPCODES", 1000)
    with pytest.raises(UserError, match="more than 1000 opcodes"):
        load_pickle(file)
    with file.open("wb") as opened:
        opened.truncate(2**40)  # a file with a hole takes no space
    with pytest.raises(UserError, match=r"has 1099511627776 bytes, and no file of the data set has more than"):
        load_pickle(file)
