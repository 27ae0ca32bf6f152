"""How the vocabulary of a tokenizer reads to a person: pieces with markers for spaces and bytes, as plain text."""

import functools
import re
from collections.abc import Mapping
from typing import Any

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies, such as "Ġ" for a space.

    Bytes that print stand for themselves; the others, in order, get the characters from 256 on.

    Example:
        >>> byte_alphabet()["Ġ"], byte_alphabet()["A"]
        (32, 65)
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def decoder_kinds(tokenizer_json: Mapping[str, Any]) -> frozenset[str]:
    """What the decoder of a tokenizer.json undoes: the types of its steps, such as "ByteLevel" or "ByteFallback"."""
    decoder = tokenizer_json.get("decoder") or {}
    steps = decoder.get("decoders", [decoder])
    return frozenset(step["type"] for step in steps if "type" in step)


def readable(piece: str, kinds: frozenset[str]) -> str:
    """One piece of a vocabulary as the text that it stands for.

    A piece that is part of a character only, so has no text of its own, is shown byte by byte, as in "<0xE2><0x80>".

    Args:
        piece: as it stands in the vocabulary. Special tokens are not for here: they stand for themselves.
        kinds: see `decoder_kinds`.

    Example:
        >>> readable("ĠMary", frozenset({"ByteLevel"})), readable("▁Mary", frozenset({"Replace"}))
        (' Mary', ' Mary')
    """
    if "ByteLevel" in kinds:
        alphabet = byte_alphabet()
        return _show(bytes(alphabet[c] for c in piece)) if all(c in alphabet for c in piece) else piece
    if "ByteFallback" in kinds and (match := _BYTE_PIECE.fullmatch(piece)):
        return _show(bytes([int(match[1], 16)]))
    if kinds & {"Metaspace", "Replace"}:
        return piece.replace("▁", " ")
    return piece


def _show(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in raw)
