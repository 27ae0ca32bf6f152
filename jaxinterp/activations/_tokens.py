"""Batches of tokens from texts, read through grain: shuffled, packed, sharded by process, resumable."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from jaxinterp._errors import InputError, TokenError
from jaxinterp.activations._description import as_text, check_state, named
from jaxinterp.activations._documents import Documents, open_documents
from jaxinterp.activations._packing import Piece, TokenBatch, as_batch, cut, fill
from jaxinterp.activations._reader import Reader

THREADS, AHEAD = 2, 64
"""Grain's threads that tokenize, and how many documents they may be ahead."""
AHEAD_BYTES = 1 << 25
"""Of documents, about, that they may be ahead: one document if that is longer."""
KEPT, OVERHEAD = 1 << 22, 64
"""Tokens that are kept from one pass to the next, and how many a document costs beside its own."""


class _Pieces:
    """What grain reads: a document by its number, as that and its ids: for grain a tree of two leaves, however long it is.

    Where there is more than one pass, documents are kept as long as there is room, and a single one is kept in any case. Threads
    that want a document at the same time, as they do when the source is shorter than what they are ahead, share one reading.
    """

    def __init__(self, documents: Documents, n_ctx: int, front: list[int], back: list[int], is_repeated: bool):
        self.documents, self.n_ctx, self.front, self.back = documents, n_ctx, front, back
        self.ahead = max(1, min(AHEAD, AHEAD_BYTES * documents.count // max(1, documents.size)))
        self._is_repeated, self._room, self._lock = is_repeated, KEPT, threading.Lock()
        self._known: dict[int, Future[np.ndarray]] = {}  # those that are kept or being read

    def __len__(self) -> int:
        return self.documents.count

    def __getitem__(self, i: Any) -> tuple[int, np.ndarray]:
        i = int(i)
        if not self._is_repeated:
            return i, self._read(i)
        with self._lock:
            known = self._known.get(i)
            mine = self._known.setdefault(i, Future())
        if known is not None:
            return i, known.result()
        try:
            mine.set_result(self._read(i))
        except BaseException as error:
            mine.set_exception(error)
            self._known.pop(i)
            raise
        cost = len(mine.result()) + OVERHEAD
        with self._lock:
            if cost <= self._room or len(self) == 1:
                self._room -= cost
            else:
                self._known.pop(i)
        return i, mine.result()

    def _read(self, i: int) -> np.ndarray:
        ids = list(self.documents.ids(i))
        return np.array(
            ids[1:] if self.front and ids[:1] == self.front else ids, np.int32
        )  # a text may name BOS itself

    def cut(self, i: int, ids: np.ndarray) -> list[Piece]:
        """The pieces of a document."""
        return cut(i, ids, self.n_ctx, self.front, self.back)


class Tokens:
    """An iterator over batches of tokens, made by `read_tokens`.

    Attributes:
        batch_size: rows over all shards; a batch of this process has `batch_size / shard[1]`.
        n_ctx: tokens in a row.
        packed: whether a row may hold several pieces.
        shard: which part of the documents this process reads, of how many.
        special_ids: all special tokens of the tokenizer; None where there was none, so that nobody knows.
        description: the source and how it is read, for JSON.
    """

    def __init__(
        self, pieces: _Pieces, how: Mapping[str, Any], special_ids: tuple[int, ...] | None, about: dict[str, Any]
    ):
        self._pieces = pieces
        self.batch_size: int = how["batch_size"]
        self.n_ctx, self.packed, self.shard = pieces.n_ctx, bool(how["pack"]), tuple(how["shard"])
        self.special_ids, self.description = special_ids, about
        self._waiting: list[Piece] = []
        self._is_cycle = how["seed"] is None and how["epochs"] is None
        self._empty: set[int] = set()  # documents that gave nothing since one gave something
        self._empty_run = 0
        order = {name: how[name] for name in ("seed", "epochs", "shard")}
        self._reader = Reader(pieces, **order, threads=THREADS, ahead=pieces.ahead)

    def __iter__(self) -> Iterator[TokenBatch]:
        return self

    def __next__(self) -> TokenBatch:
        rows = self.batch_size // self.shard[1]
        placed, self._waiting = fill(self._read(), self._waiting, rows, self.n_ctx, self.packed)
        if not any(placed):
            raise StopIteration
        return as_batch(placed, self.n_ctx)

    def _read(self) -> Iterator[list[Piece]]:
        for document, ids in self._reader:
            pieces = self._pieces.cut(document, ids)
            self._note(document, bool(pieces))
            yield pieces

    def _note(self, document: int, is_any: bool) -> None:
        """Raises where documents without a token are all that this process has, or all that there are."""
        if is_any:
            self._empty_run = 0
            self._empty.clear()
            return
        self._empty_run += 1
        self._empty.add(document)
        count = len(self._pieces)
        if len(self._empty) == count or (self._is_cycle and self._empty_run >= count):
            part = f" of part {self.shard[0]} of {self.shard[1]}" if self.shard[1] > 1 else ""
            raise InputError(
                f"{named(self.description['source'])} gives no token: {len(self._empty)} documents{part} were read, and all are "
                "empty but for BOS or padding. Give text; or check separator, field and pad_id."
            )

    @property
    def passes(self) -> int:
        """How many passes over the documents this reader has begun."""
        return self._reader.passes

    def state(self) -> dict[str, Any]:
        """Where the reader stands, for JSON: documents that were read, and pieces of them that wait for a row."""
        waiting = [[piece.document, piece.number] for piece in self._waiting]
        return {**self._reader.state(), "waiting": waiting, "description": as_text(self._described())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state()` of a reader made in the same way: the following batches are the same.

        It may have other epochs, but no fewer than were begun.
        """
        check_state(state, self._described(), state["passes"])
        self._reader.restore(state)
        self._empty_run = 0
        self._empty.clear()
        again = {document: self._pieces.cut(*self._pieces[document]) for document in {i for i, _ in state["waiting"]}}
        self._waiting = [again[document][number] for document, number in state["waiting"]]

    def _described(self) -> dict[str, Any]:
        return {**self.description, "shard": self.shard}


def read_tokens(
    source: Any,
    tokenizer: Any = None,
    *,
    n_ctx: int,
    batch_size: int,
    pack: bool = True,
    seed: int | None = None,
    epochs: int | None = 1,
    prepend_bos: bool | None = None,
    separator: str = "<|endoftext|>",
    field: str = "text",
    pad_id: int | None = None,
    shard: tuple[int, int] | None = None,
) -> Tokens:
    """Batches of tokens from texts or token ids, without an end or for some passes.

    A document longer than `n_ctx` is cut into pieces at fixed places, and each piece is a context of its own: positions begin at
    0, BOS stands in front where the policy says so. The tail is a shorter piece; nothing is dropped. So what a model computes for
    a token does not depend on the order of documents, on what it is packed with, or on how many processes read.

    Args:
        source: texts (a list; a single document may be a list of one); or the path of a text file with documents between
            `separator`s, of a .jsonl file with a text in `field` of each line, or of a .npy file of token ids [n, T]; or such an
            array. A row of ids is a document, taken as it is: no BOS unless `prepend_bos` is True and there is a tokenizer.
        tokenizer: such as `lm.tokenizer`; for ids it may be left out.
        n_ctx: tokens in a row of a batch.
        batch_size: rows in a batch, over all processes.
        pack: several pieces in a row, as long as they fit; else one.
        seed: shuffles the documents, in another order in each pass; None: the source's own order.
        epochs: passes over the source; None: no end.
        prepend_bos: whether each piece begins with BOS; None: the tokenizer's own policy.
        separator: between the documents of a text file; white space around documents is no part of them, nor is an empty one.
        field: of a JSONL file's objects.
        pad_id: of token ids: padding at both ends of a row, which is not read; -1: there is none. None: the tokenizer's padding
            token, if that is not its BOS or EOS too.
        shard: (i, n): reads every n-th document from the i-th on; None: the number of this process, and how many there are.

    Returns:
        An iterator over `TokenBatch`es [batch_size / n, n_ctx], the last one filled up with padding. `state()` and `restore(...)`
        keep its place.

    Raises:
        InputError: a source that cannot be read, or sizes that do not fit; (from `next`) a source without a token.
        TokenError: texts without a tokenizer; BOS where there is none.

    Example:
        >>> import numpy as np
        >>> tokens = read_tokens(np.arange(10).reshape(2, 5), n_ctx=4, batch_size=3)
        >>> batch = next(tokens)
        >>> batch.tokens.tolist()
        [[0, 1, 2, 3], [4, 9, 0, 0], [5, 6, 7, 8]]
        >>> batch.segments.tolist()
        [[0, 0, 0, 0], [0, 1, -1, -1], [0, 0, 0, 0]]
    """
    shard = (jax.process_index(), jax.process_count()) if shard is None else (int(shard[0]), int(shard[1]))
    if not 0 <= shard[0] < shard[1]:
        raise InputError(f"shard={shard}: give (i, n) with i from 0 to n - 1.")
    if batch_size < 1 or batch_size % shard[1]:
        raise InputError(f"batch_size={batch_size}: give a multiple of the {shard[1]} shards that read, 1 or more.")
    if epochs is not None and epochs < 1:
        raise InputError(f"epochs={epochs}: give 1 or more, or None for no end.")
    pad_id = _padding(tokenizer) if pad_id is None else pad_id
    documents = open_documents(source, tokenizer, separator=separator, field=field, pad_id=pad_id)
    is_text = documents.description["kind"] != "array"
    front, back = _around(tokenizer, prepend_bos if is_text or prepend_bos is not None else False)
    if n_ctx <= len(front) + len(back):
        raise InputError(f"n_ctx={n_ctx} leaves no room for text beside {len(front) + len(back)} special tokens.")
    how = dict(pack=pack, seed=seed, epochs=epochs, batch_size=batch_size, shard=shard)
    about = {
        "source": documents.description, "tokenizer": _describe(tokenizer), "n_ctx": n_ctx, "batch_size": batch_size,
        "pack": pack, "seed": seed, "epochs": epochs, "front": front, "back": back,
    }  # fmt: skip
    return Tokens(_Pieces(documents, n_ctx, front, back, epochs != 1), how, _special(tokenizer, pad_id), about)


def _special(tokenizer: Any, pad_id: int | None) -> tuple[int, ...] | None:
    """The special tokens of a tokenizer, of which a class of the caller's own may say as much as it knows."""
    if tokenizer is None:
        return None
    ids = {getattr(tokenizer, name, None) for name in ("bos_id", "eos_id", "pad_id", "mask_id")} | {pad_id}
    ids |= {*getattr(tokenizer, "special_ids", ()), *getattr(tokenizer, "suffix_ids", ())}
    return tuple(sorted(i for i in ids if i is not None and i >= 0))


def _padding(tokenizer: Any) -> int | None:
    """The token that is padding and nothing else."""
    pad_id = getattr(tokenizer, "pad_id", None)
    return None if pad_id in (getattr(tokenizer, "bos_id", None), getattr(tokenizer, "eos_id", None)) else pad_id


def _around(tokenizer: Any, prepend_bos: bool | None) -> tuple[list[int], list[int]]:
    """The tokens before and behind each piece."""
    wanted = getattr(tokenizer, "prepend_bos", False) if prepend_bos is None else prepend_bos
    if not wanted:
        return [], []
    bos = getattr(tokenizer, "bos_id", None)
    if bos is None:
        raise TokenError("prepend_bos is True, and there is no BOS token (or no tokenizer). Pass prepend_bos=False.")
    return [int(bos)], [int(i) for i in getattr(tokenizer, "suffix_ids", ())]


def _describe(tokenizer: Any) -> Any:
    files = getattr(tokenizer, "files", None)
    if not files:
        return None if tokenizer is None else type(tokenizer).__name__
    return {"d_vocab": tokenizer.d_vocab, "crc32": zlib.crc32(files.get("tokenizer.json", b""))}
