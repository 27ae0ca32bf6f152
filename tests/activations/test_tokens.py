"""Tokens from every source: nothing lost, packed rows, shuffled passes, shards, a place to go on from."""

import json
import os
import signal
import warnings

import numpy as np
import pytest
import tokenizers

import jaxinterp as ji
from jaxinterp._errors import InputError, MissingFileError, TokenError
from jaxinterp.activations import _tokens, read_tokens
from jaxinterp.store import StoreMismatchError
from tests.activations.conftest import LETTERS, TEXTS, Letters


def pieces_of(batches):
    """(document, ids) of each piece."""
    found = []
    for batch in batches:
        for row in range(len(batch.tokens)):
            segments = batch.segments[row]
            for i in range(segments.max() + 1):
                at = np.flatnonzero(segments == i)
                assert (np.diff(at) == 1).all() and batch.positions[row, at].tolist() == list(range(len(at)))
                assert len(set(batch.documents[row, at])) == 1
                found.append((int(batch.documents[row, at[0]]), batch.tokens[row, at].tolist()))
            padding = segments < 0
            assert (batch.documents[row][padding] == -1).all() and not batch.tokens[row][padding].any()
    return found


def expected(n_ctx=12, front=(10,)):
    step = n_ctx - len(front)
    ids = [LETTERS.encode(text) for text in TEXTS]
    return [(d, [*front, *row[i : i + step]]) for d, row in enumerate(ids) for i in range(0, len(row), step)]


@pytest.mark.parametrize("pack", [True, False])
def test_nothing_is_lost_and_rows_are_full(pack):
    batches = list(read_tokens(TEXTS, LETTERS, n_ctx=12, batch_size=4, pack=pack))
    assert all(x.shape == (4, 12) and x.dtype == np.int32 for batch in batches for x in batch)
    assert sorted(pieces_of(batches)) == sorted(expected())
    if pack:
        used = np.mean([batch.documents >= 0 for batch in batches[:-1]])
        assert used > 0.93
    else:
        assert max(batch.segments.max() for batch in batches) == 0


def test_sources_are_the_same_documents(tmp_path):
    (tmp_path / "a.txt").write_text("<|endoftext|>\n".join(["", *TEXTS, " \n", ""]))
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps({"body": text, "n": 1}) for text in TEXTS))
    how = dict(n_ctx=12, batch_size=4)
    want = pieces_of(read_tokens(TEXTS, LETTERS, **how))
    assert pieces_of(read_tokens(tmp_path / "a.txt", LETTERS, **how)) == want
    assert pieces_of(read_tokens(str(tmp_path / "a.jsonl"), LETTERS, field="body", **how)) == want
    ids = np.full((len(TEXTS), 31), 9, np.uint16)
    for row, text in zip(ids, TEXTS, strict=True):
        row[1 : 1 + len(text)] = LETTERS.encode(text)
    np.save(tmp_path / "a.npy", ids)
    assert pieces_of(read_tokens(tmp_path / "a.npy", LETTERS, prepend_bos=True, pad_id=9, **how)) == want
    assert sorted(pieces_of(read_tokens(ids, pad_id=9, **how))) == sorted(expected(front=()))


def test_passes_have_orders_of_their_own():
    once = lambda **how: [
        d for d, _ in pieces_of(read_tokens(TEXTS, LETTERS, n_ctx=64, batch_size=4, pack=False, **how))
    ]
    twice = once(seed=0, epochs=2)
    assert sorted(twice[:40]) == sorted(twice[40:]) == list(range(40))
    assert twice[:40] != twice[40:] and twice[:40] == once(seed=0) != once(seed=1)
    assert once() == list(range(40))
    endless = read_tokens(TEXTS[:3], LETTERS, n_ctx=64, batch_size=4, epochs=None)
    assert len([next(endless) for _ in range(20)]) == 20


def test_shards_are_the_whole():
    found = []
    for i in range(3):
        tokens = read_tokens(TEXTS, LETTERS, n_ctx=12, batch_size=6, seed=5, shard=(i, 3))
        batches = list(tokens)
        assert batches[0].tokens.shape == (2, 12)
        found += pieces_of(batches)
    assert sorted(found) == sorted(expected())
    assert list(read_tokens(TEXTS[:2], LETTERS, n_ctx=12, batch_size=6, shard=(2, 3))) == []


@pytest.mark.parametrize("served", [0, 1, 5])
def test_a_restored_reader_goes_on(served):
    make = lambda: read_tokens(TEXTS, LETTERS, n_ctx=12, batch_size=4, seed=2, epochs=2)
    tokens = make()
    for _ in range(served):
        next(tokens)
    state = json.loads(json.dumps(tokens.state()))
    want = list(tokens)
    other = make()
    next(other)
    other.restore(state)
    got = list(other)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_state_is_of_one_order_and_one_shard():
    make = lambda **more: read_tokens(TEXTS, LETTERS, n_ctx=12, batch_size=4, **{"seed": 2, "epochs": 2, **more})
    tokens = make()
    next(tokens)
    with pytest.raises(StoreMismatchError, match="seed was 2, is 3"):
        make(seed=3).restore(tokens.state())
    with pytest.raises(StoreMismatchError, match="shard"):
        make(shard=(0, 2)).restore(tokens.state())
    make(epochs=1).restore(tokens.state())
    first = pieces_of(tokens)
    with pytest.raises(StoreMismatchError, match="epochs was 2, is 1"):
        make(epochs=1).restore(tokens.state())
    other = make(epochs=3)
    other.restore(tokens.state())
    assert sorted(pieces_of(other)) == sorted(expected()) and len(first) > len(expected())


def test_padding_of_ids_is_that_of_the_tokenizer():
    class Padded(Letters):
        pad_id = 8

    ids = np.array([[8, 1, 2, 8, 3, 8], [4, 10, 9, 9, 8, 8]])
    read = lambda tokenizer, **more: [
        p for _, p in pieces_of(read_tokens(ids, tokenizer, n_ctx=8, batch_size=2, **more))
    ]
    assert read(Padded()) == [[1, 2, 8, 3], [4, 10, 9, 9]] == read(None, pad_id=8)
    assert read(Padded(), pad_id=-1) == read(LETTERS) == read(None) == ids.tolist()
    assert read(Padded(), pad_id=9)[1] == ids[1].tolist()
    Padded.pad_id = Padded.eos_id = 8  # a row's last token may be one that was read
    assert read(Padded()) == ids.tolist()


def test_special_ids_are_those_that_the_tokenizer_marks():
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "[U]": 2}, unk_token="[U]"))
    backend.add_special_tokens(["<s>", "<|im_start|>"])
    backend.add_tokens(["<tool>"])
    tokenizer = ji.weights.Tokenizer.from_json(backend.to_str(), bos_token="<s>", eos_token="b")
    assert tokenizer.special_ids == (1, 3, 4)
    assert read_tokens(["a"], tokenizer, n_ctx=4, batch_size=1).special_ids == (1, 3, 4)
    assert read_tokens(np.zeros((1, 2), int), n_ctx=4, batch_size=1).special_ids is None


def test_what_cannot_be_read(tmp_path):
    how = dict(n_ctx=12, batch_size=4)
    (tmp_path / "bad.jsonl").write_text('{"text": "ab"}\n{"txt": "ab"}\n')
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    for source, kind, message in [
        (tmp_path / "none.txt", MissingFileError, "not there"),
        (tmp_path / "empty.txt", InputError, "empty"),
        (tmp_path / "cut.npy", InputError, "cut.npy is no whole"),
        ([], InputError, "no document"),
        (["a", 3], InputError, "document 1 is a int"),
        (np.zeros((3, 2)), InputError, r"float64\[3, 2\]"),
    ]:
        with pytest.raises(kind, match=message):
            read_tokens(source, LETTERS, **how)
    with pytest.raises(InputError, match="line 2: .*'text'"):
        list(read_tokens(tmp_path / "bad.jsonl", LETTERS, **how))
    for more, kind, message in [
        (dict(tokenizer=None), TokenError, "lm.tokenizer"),
        (dict(n_ctx=1), InputError, "n_ctx=1 leaves no room"),
        (dict(batch_size=0), InputError, "batch_size=0"),
        (dict(batch_size=4, shard=(0, 3)), InputError, "multiple of the 3"),
        (dict(shard=(3, 3)), InputError, "from 0 to n - 1"),
        (dict(epochs=0), InputError, "epochs=0"),
    ]:
        with pytest.raises(kind, match=message):
            read_tokens(TEXTS, **{"tokenizer": LETTERS, **how, **more})


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("epochs", [1, 2, None])
def test_a_source_without_a_token_is_an_error(seed, epochs, tmp_path):
    how = dict(n_ctx=12, batch_size=4, seed=seed, epochs=epochs)
    with pytest.raises(InputError, match="list of 2 texts gives no token: 2 documents .*separator"):
        next(read_tokens(["", ""], LETTERS, **how))
    (tmp_path / "bos.txt").write_text("k")  # "k" is 10, BOS
    with pytest.raises(InputError, match=r"bos.txt \(1 document\) gives no token"):
        next(read_tokens(tmp_path / "bos.txt", LETTERS, **how))
    with pytest.raises(InputError, match="array of 3 documents gives no token"):
        next(read_tokens(np.full((3, 4), 7), pad_id=7, **how))
    assert len(next(read_tokens(["", "a", ""], LETTERS, **how)).tokens) == 4


def test_a_part_without_a_token_is_an_error_where_it_has_no_end():
    how = dict(n_ctx=12, batch_size=4, shard=(1, 2))
    with pytest.raises(InputError, match="of part 1 of 2"):
        next(read_tokens(["a", ""] * 2, LETTERS, epochs=None, **how))
    assert list(read_tokens(["a", ""] * 2, LETTERS, epochs=2, **how)) == []
    assert next(read_tokens(["a"] + [""] * 7, LETTERS, epochs=None, seed=0, **how)).documents.max() == 0


def test_reading_can_be_interrupted():
    class Slow(Letters):
        def encode(self, text, *, prepend_bos=None):
            os.kill(os.getpid(), signal.SIGINT)
            return []

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which workers of xdist ignore
    try:
        with pytest.raises(KeyboardInterrupt):
            next(read_tokens([""] * 20_000, Slow(), n_ctx=12, batch_size=4, epochs=None))
    finally:
        signal.signal(signal.SIGINT, before)


class Counting(Letters):
    def __init__(self):
        self.texts = []

    def encode(self, text, *, prepend_bos=None):
        self.texts.append(text)
        return super().encode(text)


@pytest.mark.parametrize("texts", [["abcdefghi" * 2000], TEXTS])
def test_a_short_source_is_tokenized_once(texts, monkeypatch):
    tokenizer, how = Counting(), dict(n_ctx=12, batch_size=200, seed=0)
    tokens = read_tokens(texts, tokenizer, epochs=None, **how)
    batches = [next(tokens) for _ in range(40)]
    assert tokens.passes > 3 and sorted(tokenizer.texts) == sorted(texts)
    monkeypatch.setattr(_tokens, "KEPT", 200)  # but two or three are read in each pass
    again = read_tokens(texts, LETTERS, epochs=None, **how)
    for batch in batches:
        np.testing.assert_array_equal(batch, next(again))
    assert len(again._pieces._known) < 10


def test_long_documents_are_few_ahead(monkeypatch):
    ahead = lambda: read_tokens(["a" * 100] * 3, LETTERS, n_ctx=12, batch_size=1)._pieces.ahead
    assert ahead() == _tokens.AHEAD
    monkeypatch.setattr(_tokens, "AHEAD_BYTES", 250)
    assert ahead() == 2
    monkeypatch.setattr(_tokens, "AHEAD_BYTES", 1)
    assert ahead() == 1


def test_grain_sees_few_leaves():
    """It measures each element by a walk over its tree."""
    element = read_tokens(["abc" * 1000], LETTERS, n_ctx=12, batch_size=1)._pieces[0]
    assert element[0] == 0 and element[1].dtype == np.int32 and element[1].shape == (3000,)


def test_an_error_of_a_document_comes_each_time():
    class Broken(Letters):
        def encode(self, text, *, prepend_bos=None):
            raise ValueError("no such letter")

    tokens = read_tokens(["a"], Broken(), n_ctx=12, batch_size=1, epochs=None)
    for _ in range(2):
        with pytest.raises(ValueError, match="no such letter"):
            next(tokens)


def test_bytes_that_are_no_utf8_are_told_once(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc<|endoftext|>ab\xff\xfe<|endoftext|>\xff")

    class Marks(Letters):
        def encode(self, text, *, prepend_bos=None):
            return [5 if letter == "\ufffd" else 1 for letter in text]

    tokens = read_tokens(tmp_path / "a.txt", Marks(), n_ctx=12, batch_size=1)
    with pytest.warns(UnicodeWarning, match="a.txt, document 1: byte 18 of the file is not valid UTF-8") as caught:
        found = pieces_of(list(tokens))
    assert len(caught) == 1 and [ids for _, ids in found] == [[10, 1, 1, 1], [10, 1, 1, 5, 5], [10, 5]]
    (tmp_path / "b.txt").write_text("abc\u00e9")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(read_tokens(tmp_path / "b.txt", Marks(), n_ctx=12, batch_size=1))
