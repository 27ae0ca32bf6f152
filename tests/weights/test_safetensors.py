import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinterp._errors import JaxinterpError, WeightsError
from jaxinterp.weights import _safetensors
from jaxinterp.weights._safetensors import DTYPES, make_header, metadata, parse_header, read_header, read_tensor, write


def raw_file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def some_tensors():
    rng = np.random.default_rng(0)
    shapes = [(3, 5), (), (0, 4), (7,), (2, 3, 4)]
    return {
        f"t.{dtype}.{i}": rng.integers(0, 2, s).astype(DTYPES[dtype]) for dtype in DTYPES for i, s in enumerate(shapes)
    }


def test_reads_what_the_library_writes(tmp_path):
    tensors = {name: value for name, value in some_tensors().items() if "F8" not in name}
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors", {"format": "pt", "note": "ä"})
    header = read_header(tmp_path / "a.safetensors")
    assert {entry.name for entry in header.entries} == set(tensors)
    assert metadata(header) == {"format": "pt", "note": "ä"}
    for entry in header.entries:
        value = read_tensor(tmp_path / "a.safetensors", header, entry)
        assert value.dtype == tensors[entry.name].dtype and value.shape == tensors[entry.name].shape
        assert value.tobytes() == tensors[entry.name].tobytes()
        assert not value.flags.writeable or value.size == 0


def test_the_library_reads_what_is_written(tmp_path):
    tensors = {name: value for name, value in some_tensors().items() if "F8" not in name}
    header = make_header([(n, n.split(".")[1], v.shape) for n, v in tensors.items()], {"made": "here"})
    write(tmp_path / "a.safetensors", header, tensors.__getitem__)
    back = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert set(back) == set(tensors)
    for name, value in back.items():
        assert value.dtype == tensors[name].dtype and value.tobytes() == tensors[name].tobytes()
    assert read_header(tmp_path / "a.safetensors") == header
    assert all((8 + len(header.text) + e.start) % DTYPES[e.dtype].itemsize == 0 for e in header.entries)


def test_a_file_is_written_back_byte_for_byte(shared, tmp_path):
    path = shared / "stories260k" / "model.safetensors"
    header = read_header(path)
    entries = {entry.name: entry for entry in header.entries}
    write(tmp_path / "copy", header, lambda name: read_tensor(path, header, entries[name]))
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()


def test_a_transposed_view_is_written_in_row_order(tmp_path):
    value = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write(tmp_path / "a", make_header([("x", "F32", (3, 2))], {}), lambda name: value)
    assert np.array_equal(safetensors.numpy.load_file(tmp_path / "a")["x"], value)


def test_every_cut_of_a_file_is_noticed(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    safetensors.numpy.save_file({"x": np.ones((2, 3), np.float32), "y": np.ones(5, np.float16)}, whole)
    content = whole.read_bytes()
    read_header(whole)
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        with pytest.raises(WeightsError, match="truncated or corrupt") as caught:
            read_header(cut)
        assert str(cut) in str(caught.value)
    cut.write_bytes(content + b"\0")
    with pytest.raises(WeightsError, match="should take 34 bytes, and 35 bytes"):
        read_header(cut)


@pytest.mark.parametrize(
    ("length", "words"),
    [(2**63, "the format allows 100,000,000"), (100_000_001, "the format allows"), (99_999_999, "only 0 bytes follow")],
)
def test_an_oversized_header_is_refused_without_being_read(tmp_path, length, words):
    (tmp_path / "a").write_bytes(length.to_bytes(8, "little"))
    with pytest.raises(WeightsError, match=words):
        read_header(tmp_path / "a")


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"\xff\xfe", "not legal JSON"),
        (b"{", "not legal JSON"),
        (b"[]", "not a table"),
        (b'{"x": {"dtype": "F32"}, "x": {}}', r"named twice: \['x'\]"),
        (b"[" * 100_000, "nested too deep|not legal JSON"),
        ({"x": 3}, "x: it needs dtype"),
        ({"x": entry(extra=1)}, "x: it needs dtype"),
        ({"x": entry(dtype="F7")}, "'F7' is not one of F64"),
        ({"x": entry(dtype=["F32"])}, "x: "),
        ({"x": entry(shape=(-2,))}, "integers from 0"),
        ({"x": entry(shape=(True,))}, "integers from 0"),
        ({"x": entry(shape=(2.0,))}, "integers from 0"),
        ({"x": entry(offsets=(0, 8, 9))}, "a start and an end"),
        ({"x": entry(offsets=(8, 0))}, "takes 8 bytes"),
        ({"x": entry(shape=(10**30,))}, "takes 4,000"),
        ({"x": entry(), "y": entry(offsets=(4, 12))}, "start at 4 where 8"),
        ({"x": entry(), "y": entry(offsets=(12, 20))}, "start at 12 where 8"),
        ({"__metadata__": {"a": 1}}, "__metadata__"),
        ({"__metadata__": 7}, "__metadata__"),
        ({"x": entry(dtype="F7"), "y": entry(shape=(3,)), "z": entry()}, "(?s)x: .*y: F32"),
    ],
)
def test_a_header_that_breaks_a_rule(tmp_path, header, words):
    path = raw_file(tmp_path / "bad.safetensors", header, bytes(8))
    with pytest.raises(WeightsError, match=words) as caught:
        read_header(path)
    assert "bad.safetensors" in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_corrupt_header_gives_no_other_error(tmp_path_factory, data):
    text = bytearray(make_header([("a.b", "F32", (2, 3)), ("c", "BF16", (4,))], {"format": "pt"}).text)
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse_header(bytes(text), tmp_path_factory.getbasetemp() / "x")
    except JaxinterpError as error:
        assert "truncated or corrupt" in str(error)


def test_writing_another_shape_than_the_header_says_stops(tmp_path):
    header = make_header([("x", "F32", (2,))], {})
    with pytest.raises(AssertionError, match="does not fit"):
        write(tmp_path / "a", header, lambda name: np.zeros(3, np.float32))
    with pytest.raises(AssertionError, match="does not fit"):
        write(tmp_path / "a", header, lambda name: np.zeros(2, np.float16))


def test_reading_is_lazy(tmp_path):
    safetensors.numpy.save_file({"x": np.ones((4, 4), np.float32)}, tmp_path / "a")
    header = read_header(tmp_path / "a")
    value = _safetensors.read_tensor(tmp_path / "a", header, header.entries[0])
    assert isinstance(value.base, np.memmap)
