"""Documents with random access: texts, a text file, a JSONL file, an array of token ids."""

from __future__ import annotations

import json
import mmap
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxinterp._errors import InputError, MissingFileError, TokenError


class Documents(NamedTuple):
    """A number of documents.

    Attributes:
        count: how many there are.
        ids: token ids of one of them by its number, without BOS; empty where it holds nothing.
        description: what they are, for JSON.
        size: bytes of all of them, about.
    """

    count: int
    ids: Callable[[int], Any]
    description: dict[str, Any]
    size: int


def open_documents(source: Any, tokenizer: Any, *, separator: str, field: str, pad_id: int | None) -> Documents:
    """The documents of any source that `read_tokens` takes."""
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        if not path.is_file():
            raise MissingFileError(
                f"{path} is not there. Give a file: .npy (token ids [n, T]), .jsonl, or text; or the texts in a list."
            )
        if path.suffix == ".npy":
            documents = _array(_load(path), pad_id, path.name)
        else:
            if path.stat().st_size == 0:
                raise InputError(f"{path} is empty: there is nothing to read.")
            documents = _jsonl(path, field) if path.suffix == ".jsonl" else _file(path, separator)
    elif hasattr(source, "ndim"):
        documents = _array(np.asarray(source), pad_id, None)
    else:
        documents = _texts(source)
    if documents.count == 0:
        raise InputError(f"{source!r:.200} holds no document.")
    if documents.description["kind"] == "array":
        return documents
    if tokenizer is None:
        raise TokenError(
            "Texts need a tokenizer: read_tokens(source, lm.tokenizer, ...). Token ids [n, T] are read without."
        )
    encode = lambda text: tokenizer.encode(text, prepend_bos=False)
    return documents._replace(ids=lambda i: encode(documents.ids(i)))


def _texts(source: Any) -> Documents:
    texts = [source] if isinstance(source, str) else list(source)
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise InputError(
            f"document {wrong} is a {type(texts[wrong]).__name__}: give a list of texts, the path of a file, or an array of "
            "token ids [n, T]."
        )
    check = size = 0
    for text in texts:
        content = text.encode() + b"\0"
        check, size = zlib.crc32(content, check), size + len(content)
    return Documents(len(texts), lambda i: texts[i], {"kind": "texts", "documents": len(texts), "crc32": check}, size)


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _file(path: Path, separator: str) -> Documents:
    content, mark = _map(path), separator.encode()
    if not mark:
        raise InputError("separator is empty: give the text that stands between two documents.")
    spans, start = [], 0
    while start <= len(content):
        end = content.find(mark, start)
        end = len(content) if end < 0 else end
        if content[start:end].strip():
            spans.append((start, end))
        start = end + len(mark)
    told: list[int] = []  # the document of which a warning told

    def read(i: int) -> str:
        try:
            return content[slice(*spans[i])].decode().strip()
        except UnicodeDecodeError as error:
            if not told:
                told.append(i)
                warnings.warn(
                    f"{path}, document {i}: byte {spans[i][0] + error.start} of the file is not valid UTF-8 ({error.reason}). "
                    "Such bytes are read as U+FFFD, here and in other documents. If the text is in another encoding, convert "
                    "it: iconv -f latin1 -t utf-8.",
                    UnicodeWarning,
                    stacklevel=2,
                )
            return content[slice(*spans[i])].decode("utf-8", "replace").strip()

    about = _about("text", path, content, len(spans)) | {"separator": separator}
    return Documents(len(spans), read, about, len(content))


def _jsonl(path: Path, field: str) -> Documents:
    content = _map(path)
    lines, start = [], 0  # (number of the line, start, end)
    for number in range(1, len(content) + 1):
        if start >= len(content):
            break
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        if content[start:end].strip():
            lines.append((number, start, end))
        start = end + 1

    def read(i: int) -> str:
        number, start, end = lines[i]
        try:
            text = json.loads(content[start:end])[field]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}, line {number}: no JSON object with the field {field!r} ({type(error).__name__}: {error}). Mend the "
                "line, or name the field: read_tokens(..., field=...)."
            ) from error
        if not isinstance(text, str):
            raise InputError(
                f"{path}, line {number}: the field {field!r} is a {type(text).__name__}, and should be a text."
            )
        return text

    about = _about("jsonl", path, content, len(lines)) | {"field": field}
    return Documents(len(lines), read, about, len(content))


def _about(kind: str, path: Path, content: mmap.mmap, count: int) -> dict[str, Any]:
    return {
        "kind": kind, "name": path.name, "documents": count, "bytes": len(content), "crc32": zlib.crc32(content[: 1 << 20]),
    }  # fmt: skip


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is no whole .npy file ({error}). Write it again with numpy.save.") from error


def _array(rows: np.ndarray, pad_id: int | None, name: str | None) -> Documents:
    if rows.ndim != 2 or rows.dtype.kind not in "iu":
        raise InputError(f"token ids are {rows.dtype}{list(rows.shape)}; give integers of shape [document, position].")

    def ids(i: int) -> list[int]:
        row = np.asarray(rows[i])
        if pad_id is None:
            return row.tolist()
        real = np.flatnonzero(row != pad_id)
        return row[real[0] : real[-1] + 1].tolist() if real.size else []

    check = zlib.crc32(np.ascontiguousarray(rows[:1024]).tobytes())
    about = {"kind": "array", "documents": len(rows), "width": rows.shape[1], "pad_id": pad_id, "crc32": check}
    return Documents(len(rows), ids, about | ({} if name is None else {"name": name}), 4 * rows.size)
