"""The oracle is a dictionary of what was written; corruption is done to the files by hand."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from jaxinterp._errors import InputError, JaxinterpError, MissingFileError, SaveError
from jaxinterp.store._results import ResultStore, StoreMismatchError

ROWS, CHUNKS = 23, 8
ARRAYS = {"effect": ((ROWS, 3), "float32"), "count": ((ROWS,), np.int64), "deep": ((ROWS, 2, 2), "float64")}
FACTS = {"site": "attn.z", "layers": [0, 1, 2, 3, 4], "op": {"name": "patch", "scale": np.float32(0.5)}}
SAY = dict(facts=FACTS, arrays=ARRAYS, chunks=CHUNKS)


def rows_of(chunk):
    """Scattered rows: 7, 15, ... of one chunk; the last one has fewer."""
    return np.arange(ROWS)[chunk::CHUNKS]


def values_of(chunk, seed=0):
    rng = np.random.default_rng(seed + chunk)
    n = len(rows_of(chunk))
    return {
        "effect": rng.normal(size=(n, 3)).astype(np.float32),
        "count": rng.integers(0, 100, n),
        "deep": rng.normal(size=(n, 2, 2)),
    }


def expected(chunks):
    """Plain arrays with the rows of those chunks."""
    full = {"effect": np.full((ROWS, 3), np.nan, np.float32), "count": np.zeros(ROWS, np.int64)}
    full["deep"] = np.full((ROWS, 2, 2), np.nan)
    for chunk in chunks:
        for name, values in values_of(chunk).items():
            for row, value in zip(rows_of(chunk), values, strict=True):
                full[name][row] = value
    return full


def check(store, chunks):
    assert store.done == frozenset(chunks)
    assert store.is_complete == (len(chunks) == CHUNKS)
    for name, want in expected(chunks).items():
        got = store.read(name)
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


def check_folder(folder, chunks):
    """As the next process finds it."""
    with ResultStore.open(folder, **SAY) as store:
        check(store, chunks)


def fill(store, chunks):
    for chunk in chunks:
        store.write(chunk, rows_of(chunk), values_of(chunk))


@pytest.fixture
def folder(tmp_path):
    """A store with chunks 0 to 5 done."""
    path = tmp_path / "results"
    with ResultStore.open(path, **SAY) as store:
        fill(store, range(6))
    return path


def test_what_is_written_is_read_now_and_after_reopening(tmp_path):
    path = tmp_path / "deep" / "results"
    with ResultStore.open(path, **SAY) as store:
        check(store, [])
        fill(store, [5, 0, 2])
        check(store, [0, 2, 5])
    with ResultStore.open(path, **SAY) as store:
        check(store, [0, 2, 5])
        fill(store, [1, 3, 4, 6, 7])
        check(store, range(CHUNKS))
    check(ResultStore.open(path, **SAY, write=False), range(CHUNKS))
    assert not store.read("effect").flags.writeable


def test_a_slice_is_the_same_as_its_rows(tmp_path):
    values = {"a": np.arange(8.0).reshape(4, 2)}
    files = []
    for rows in (slice(3, 7), np.arange(3, 7), slice(3, None)):
        with ResultStore.open(tmp_path / str(rows), facts={}, arrays={"a": ((7, 2), float)}, chunks=1) as store:
            store.write(0, rows, values)
        files.append([(tmp_path / str(rows) / name).read_bytes() for name in ("a.npy", "done.log")])
    assert files[0] == files[1] == files[2]
    np.testing.assert_array_equal(np.load(tmp_path / str(slice(3, 7)) / "a.npy")[3:], values["a"])


def test_a_chunk_may_be_written_again(folder):
    with ResultStore.open(folder, **SAY) as store:
        store.write(3, rows_of(3), values_of(3, seed=9))
        store.write(3, rows_of(3), values_of(3))
    check_folder(folder, range(6))


def test_no_rows_and_no_chunks(tmp_path):
    with ResultStore.open(tmp_path / "a", facts={}, arrays={"a": ((0, 3), "float32")}, chunks=0) as store:
        assert store.is_complete and store.read("a").shape == (0, 3)


# ---------------------------------------------------------------------------------------------- interruptions
WRITER = """
import sys
sys.path.insert(0, {root!r})
import numpy as np
from jaxinterp.store._results import ResultStore
rows, chunks = 6000, 1500
say = dict(facts={{"seed": 1}}, arrays={{"a": ((rows, 40), "float64"), "b": ((rows,), "int32")}}, chunks=chunks)
with ResultStore.open({path!r}, **say) as store:
    print("open", flush=True)
    for chunk in sorted(frozenset(range(chunks)) - store.done):
        rng = np.random.default_rng(chunk)
        store.write(chunk, np.arange(rows)[chunk::chunks], {{"a": rng.normal(size=(4, 40)), "b": rng.integers(0, 9, 4, "int32")}})
print("complete", flush=True)
"""


def test_killed_at_random_moments_and_resumed(tmp_path):
    """Real processes under SIGKILL; the arrays end as those of plain loops, bit for bit."""
    path = tmp_path / "results"
    code = WRITER.format(root=str(Path(__file__).resolve().parents[2]), path=str(path))
    rng, finished, kills = np.random.default_rng(0), False, 0
    for attempt in range(40):
        process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, text=True)
        if attempt == 0:  # the first is killed while it starts or makes the store
            time.sleep(rng.uniform(0.1, 0.4))
        else:
            process.stdout.readline()
            if attempt < 6:
                time.sleep(rng.uniform(0.0, 0.03))
        if attempt < 6:
            process.send_signal(signal.SIGKILL)
            kills += 1
        rest = process.communicate(timeout=60)[0]
        finished = "complete" in rest
        if finished:
            break
    assert finished and kills >= 3
    a, b = np.zeros((6000, 40)), np.zeros(6000, "int32")
    for chunk in range(1500):
        rng = np.random.default_rng(chunk)
        a[chunk::1500], b[chunk::1500] = rng.normal(size=(4, 40)), rng.integers(0, 9, 4, "int32")
    assert (np.load(path / "a.npy") == a).all() and (np.load(path / "b.npy") == b).all()
    assert sorted(p.name for p in path.iterdir()) == ["a.npy", "b.npy", "done.log", "manifest.json"]


@pytest.mark.parametrize("what", ["nothing", "manifest.json", "effect.npy", "deep.npy"])
def test_killed_while_the_store_was_being_made(tmp_path, what):
    """A store without its later files, and with a half-written one under a temporary name, is simply made."""
    path = tmp_path / "results"
    ResultStore.open(path, **SAY).close()
    order = ["manifest.json", "effect.npy", "count.npy", "deep.npy", "done.log"]
    for name in order[0 if what == "nothing" else order.index(what) + 1 :]:
        (path / name).unlink()
    (path / ".manifest.0a1b2c3d.partial.json").write_text('{"form')
    with ResultStore.open(path, **SAY) as store:
        fill(store, range(CHUNKS))
        check(store, range(CHUNKS))
    assert sorted(p.name for p in path.iterdir()) == sorted(order)


def test_a_torn_last_line(folder):
    whole = (folder / "done.log").read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for cut in range(1, len(last)):
        (folder / "done.log").write_bytes(whole[:-cut])
        if cut == len(last):
            continue
        named = r"torn.*\(chunk 5\).*computed again" if len(last) - cut > 1 else "torn.*computed again"
        with pytest.warns(UserWarning, match=named), ResultStore.open(folder, **SAY) as store:
            assert store.done == frozenset(range(5))
            fill(store, [5])
        check_folder(folder, range(6))  # what was appended after the torn line counts
    (folder / "done.log").write_bytes(whole[: -len(last)])
    with ResultStore.open(folder, **SAY) as store:
        assert store.done == frozenset(range(5))


def test_a_reader_beside_the_writer(folder):
    with ResultStore.open(folder, **SAY) as writer:
        with ResultStore.open(folder, **SAY, write=False) as reader:
            check(reader, range(6))
            with pytest.raises(InputError, match="reading only"):
                fill(reader, [6])
        fill(writer, [6])
        check(ResultStore.open(folder, **SAY, write=False), range(7))
        with open(folder / "done.log", "ab") as file:
            file.write(b"7 2 7:8,15")  # a line on its way
        check(ResultStore.open(folder, **SAY, write=False), range(7))


def test_one_writer_at_a_time(folder):
    pytest.importorskip("fcntl", reason="locks of files are a thing of POSIX")
    with ResultStore.open(folder, **SAY), pytest.raises(InputError, match="open for writing already"):
        ResultStore.open(folder, **SAY)
    ResultStore.open(folder, **SAY).close()


# ---------------------------------------------------------------------------------------------------- corruption
@pytest.mark.parametrize("name", list(ARRAYS))
@pytest.mark.parametrize("chunk", [0, 5])
def test_a_changed_bit_in_a_chunk(folder, name, chunk):
    array = np.load(folder / f"{name}.npy", mmap_mode="r+")
    array.view(np.uint8).reshape(ROWS, -1)[rows_of(chunk)[-1], 1] ^= 4
    array.flush()
    with pytest.warns(UserWarning, match=rf"chunk {chunk} .*checksum of {name}.*computed again"):
        store = ResultStore.open(folder, **SAY)
    assert store.done == frozenset(range(6)) - {chunk}
    fill(store, [chunk])
    check(store, range(6))
    store.close()
    check_folder(folder, range(6))


def test_a_changed_bit_where_nothing_is_done_yet_is_no_fault(folder):
    array = np.load(folder / "effect.npy", mmap_mode="r+")
    array[rows_of(7)[0]] = 3.0
    array.flush()
    with ResultStore.open(folder, **SAY) as store:
        assert store.done == frozenset(range(6))


@pytest.mark.parametrize(
    "garbage", [b"hello\n", b"2 3 2:3,10:11,18:19 00000000,00000000,00000000 00000000\n", b"\x00\xff\n", b"\n"]
)
def test_garbage_in_the_journal(folder, garbage):
    lines = (folder / "done.log").read_bytes().splitlines(keepends=True)
    (folder / "done.log").write_bytes(b"".join([*lines[:2], garbage, *lines[3:]]))  # in place of the line of chunk 2
    number = r" \(chunk 2\)" if garbage[:2] == b"2 " else ""
    with pytest.warns(UserWarning, match=f"line 3 of done.log is not legal{number}.*computed again"):
        store = ResultStore.open(folder, **SAY)
    assert store.done == frozenset({0, 1, 3, 4, 5})
    store.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once, mended since
        ResultStore.open(folder, **SAY).close()


def test_a_journal_of_another_store(folder, tmp_path):
    lines = []
    for name, chunk, rows in (("chunk", 40, slice(0, 2)), ("rows", 7, slice(80, 82))):
        arrays = dict.fromkeys("abc", ((90,), float))
        with ResultStore.open(tmp_path / name, facts={}, arrays=arrays, chunks=50) as other:
            other.write(chunk, rows, {a: np.zeros(2) for a in "abc"})
        lines.append((tmp_path / name / "done.log").read_bytes())
    with open(folder / "done.log", "ab") as file:
        file.write(b"".join(lines))
    with pytest.warns(UserWarning, match=r"line 7 .*\(chunk 40\).*line 8 .*\(chunk 7\)"):
        check_folder(folder, range(6))


@pytest.mark.parametrize("how", ["shorter", "longer", "empty", "gone", "header"])
def test_an_array_file_that_is_damaged(folder, how):
    file = folder / "count.npy"
    content = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        changes = {"shorter": content[:-3], "longer": content + b"0", "empty": b"", "header": b"x" + content[1:]}
        file.write_bytes(changes[how])
    with pytest.warns(UserWarning, match=r"count\.npy .*every chunk.*computed again"):
        reader = ResultStore.open(folder, **SAY, write=False)
    assert reader.done == frozenset()
    with pytest.raises(InputError, match=r"count\.npy .*open the store for writing"):
        reader.read("count")
    with pytest.warns(UserWarning, match=r"count\.npy .*every chunk.*computed again"):
        store = ResultStore.open(folder, **SAY)
    assert store.done == frozenset()
    fill(store, range(CHUNKS))
    check(store, range(CHUNKS))
    store.close()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "jaxinterp results 1", "facts": 3}'])
def test_a_manifest_that_cannot_be_read(folder, text):
    (folder / "manifest.json").write_text(text)
    before = sorted((p.name, p.read_bytes()) for p in folder.iterdir())
    with pytest.raises(InputError, match=r"manifest\.json cannot be read.*nothing was changed"):
        ResultStore.open(folder, **SAY)
    assert sorted((p.name, p.read_bytes()) for p in folder.iterdir()) == before


# --------------------------------------------------------------------------------------------------- refusals
def test_other_facts_are_refused_and_listed(folder):
    facts = {
        "site": "resid_pre",
        "layers": [0, 1, 2, 3, 9],
        "op": {"name": "patch", "scale": 0.25},
        "new": True,
        "weights": "x" * 90 + "b",
    }
    with pytest.raises(StoreMismatchError) as caught:
        ResultStore.open(folder, facts=facts, arrays=ARRAYS | {"count": ((ROWS,), "int32")}, chunks=9)
    message = str(caught.value)
    assert isinstance(caught.value, JaxinterpError) and isinstance(caught.value, ValueError)
    for line in (
        'site: stored "attn.z", given "resid_pre"',
        "layers[4]: stored 4, given 9",
        "op.scale: stored 0.5, given 0.25",
        "new: stored nothing, given true",
        'arrays.count: stored [[23], "<i8"], given [[23], "<i4"]',
        "chunks: stored 8, given 9",
    ):
        assert f"  {line}\n" in message, (line, message)
    assert "op.name" not in message and "arrays.effect" not in message
    assert str(folder) in message and "same arguments" in message and "another folder" in message
    check_folder(folder, range(6))


def test_long_facts_are_shown_where_they_differ(tmp_path):
    a, b = "x" * 400 + "a" + "y" * 300, "x" * 400 + "b" + "y" * 300
    ResultStore.open(tmp_path / "a", facts={"text": a, "many": list(range(99))}, arrays=ARRAYS, chunks=1).close()
    with pytest.raises(StoreMismatchError) as caught:
        ResultStore.open(tmp_path / "a", facts={"text": b, "many": list(range(98))}, arrays=ARRAYS, chunks=1)
    assert re.search(r"text: stored \.\.\.x+ay+\.\.\., given \.\.\.x+by+\.\.\.\n", str(caught.value))
    assert "(99 values), given" in str(caught.value) and len(str(caught.value)) < 900


def test_facts_that_come_back_equal_from_json(tmp_path):
    facts = {"none": None, "nan": float("nan"), "tuple": (1, 2.5), "array": np.arange(3), 3: "key", "text": "é"}
    for _ in range(2):
        ResultStore.open(tmp_path / "a", facts=facts, arrays=ARRAYS, chunks=1).close()
    assert json.loads((tmp_path / "a" / "manifest.json").read_text(encoding="utf-8"))["facts"]["array"] == [0, 1, 2]
    with pytest.raises(InputError, match="object"):
        ResultStore.open(tmp_path / "b", facts={"model": object()}, arrays=ARRAYS, chunks=1)
    assert not (tmp_path / "b").exists()


def test_a_folder_that_is_no_store(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"holds no results.*thesis\.tex"):
        ResultStore.open(tmp_path, **SAY)
    with pytest.raises(InputError, match="is a file"):
        ResultStore.open(tmp_path / "thesis.tex", **SAY)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(MissingFileError, match="no results"):
        ResultStore.open(tmp_path / "absent", **SAY, write=False)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"a": ((), "float32")},
        {"../a": ((2,), "float32")},
        {"a": ((2,), object)},
        {"a": ((2,), "i4"), "b": ((3,), "i4")},
    ],
)
def test_arrays_that_are_not_legal(tmp_path, arrays):
    with pytest.raises(InputError, match="array"):
        ResultStore.open(tmp_path / "a", facts={}, arrays=arrays, chunks=1)
    assert not (tmp_path / "a").exists()


def test_values_that_do_not_fit(folder):
    with ResultStore.open(folder, **SAY) as store:
        good, rows = values_of(6), rows_of(6)
        calls = [
            (CHUNKS, rows, good, "chunk 8"),
            (-1, rows, good, "chunk -1"),
            (6, rows[:1], good, r"effect.*float32\[1, 3\]"),
            (6, rows[::-1], good, "increasing order"),
            (6, np.array([1, 1]), good, "increasing order"),
            (6, np.array([22, 23]), good, "0 to 22"),
            (6, np.array([True, False]), good, "rows are bool"),
            (6, slice(20, 24), good, "inside the array"),
            (6, slice(0, 4, 2), good, "step 1"),
            (6, slice(4, 4), good, "at least one row"),
            (6, rows, {"effect": good["effect"]}, "arrays"),
            (6, rows, good | {"effect": good["effect"].astype(float)}, "float64.*float32"),
        ]
        for chunk, where, values, message in calls:
            with pytest.raises(InputError, match=message):
                store.write(chunk, where, values)
        with pytest.raises(InputError, match="No array 'effects'"):
            store.read("effects")
        check(store, range(6))
    with pytest.raises(InputError, match="closed"):
        store.write(6, rows, good)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_keeps_what_is_done(folder):
    store = ResultStore.open(folder, **SAY)
    real = store._files["deep"]
    with open("/dev/full", "r+b", buffering=0) as full:
        store._files["deep"] = full
        with pytest.raises(SaveError, match="No space left.*kept.*run the same again"):
            fill(store, [6])
        with pytest.raises(SaveError):
            fill(store, [2])  # done before, half-written now
        assert store.done == frozenset({0, 1, 3, 4, 5})
    store._files["deep"] = real
    fill(store, [6, 2])
    store.close()
    check_folder(folder, range(7))


def test_memory_does_not_grow_with_the_number_of_chunks(tmp_path):
    if not Path("/proc/self/statm").exists():
        pytest.skip("reads the resident memory from /proc")
    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    say = dict(facts={}, arrays={"a": ((8000, 1000), "float64")}, chunks=2000)
    block = {"a": np.ones((4, 1000), np.float64)}
    with ResultStore.open(tmp_path / "a", **say) as store:
        for chunk in range(2000):
            store.write(chunk, slice(4 * chunk, 4 * chunk + 4), block)
            if chunk == 100:
                before = resident()
        assert resident() - before < 8e6, "the array has 64 MB"
    before = resident()
    with ResultStore.open(tmp_path / "a", **say) as store:
        assert len(store.done) == 2000
    assert resident() - before < 16e6
