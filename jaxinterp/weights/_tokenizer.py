"""Text to token ids and back, with an explicit policy for the token that begins a sequence (BOS)."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp._errors import ConfigError, MissingFileError, TokenError, WeightsError
from jaxinterp.weights._token_text import decoder_kinds, readable

TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
FILES = (
    TOKENIZER,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS,
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
"""The files of a tokenizer that are kept, so that they can be written back as they were; the first three are read."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """A tokenizer of the `tokenizers` library with its special tokens and its BOS policy.

    Made by `from_folder` or `from_json`. Nothing is ever added to a text but BOS, never twice, and what the tokenizer's own
    files put behind every text (BERT's `[SEP]`).

    Attributes:
        backend: the `tokenizers.Tokenizer`.
        files: the files that it came from, byte for byte.
        bos_id: the token that begins a sequence, or None.
        eos_id: the token that ends a text, or None.
        pad_id: the token for empty places in a batch, or None.
        mask_id: the token that stands for a word to be found, or None.
        prepend_bos: whether `encode` puts BOS in front unless it is told otherwise.
        suffix_ids: the tokens that stand behind a text wherever BOS stands before it; mostly none.
    """

    backend: Any
    files: Mapping[str, bytes]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    mask_id: int | None
    prepend_bos: bool
    suffix_ids: tuple[int, ...] = ()

    @classmethod
    def from_folder(cls, folder: str | Path, *, prepend_bos: bool | None = None) -> "Tokenizer":
        """The tokenizer whose tokenizer.json is in `folder` (or is `folder` itself).

        Args:
            folder: holds tokenizer.json and usually tokenizer_config.json.
            prepend_bos: the BOS policy; None follows the tokenizer's own files: `add_bos_token` of
                tokenizer_config.json where it is there, else whether the post-processor of tokenizer.json begins with
                a special token.

        Raises:
            MissingFileError: there is no tokenizer.json.
            WeightsError: a file is broken.
            ConfigError: the policy asks for a BOS that the tokenizer does not have.

        Example:
            >>> Tokenizer.from_folder("../shared/data/gpt2-tokenizer").str_tokens("Mary gave")
            ['Mary', ' gave']
        """
        folder = Path(folder)
        folder = folder.parent if folder.is_file() else folder
        if not (folder / TOKENIZER).is_file():
            raise MissingFileError(_missing(folder))
        files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
        return cls._from_files(files, str(folder / TOKENIZER), prepend_bos)

    @classmethod
    def from_json(
        cls,
        tokenizer_json: str,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        prepend_bos: bool | None = None,
    ) -> "Tokenizer":
        """A tokenizer from the text of a tokenizer.json, such as `tokenizers.Tokenizer.to_str()` gives.

        Args:
            tokenizer_json: the text.
            bos_token: the token that begins a sequence, as text.
            eos_token: the token that ends one, as text.
            prepend_bos: as in `from_folder`. What is given is kept in the saved tokenizer_config.json.
        """
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos_token,
            "eos_token": eos_token,
            "add_bos_token": prepend_bos,
        }
        text = json.dumps({key: value for key, value in config.items() if value is not None}, indent=1)
        files = {TOKENIZER: tokenizer_json.encode(), TOKENIZER_CONFIG: text.encode()}
        return cls._from_files(files, TOKENIZER, prepend_bos)

    @classmethod
    def _from_files(cls, files: dict[str, bytes], where: str, prepend_bos: bool | None) -> "Tokenizer":
        backend = _backend(files[TOKENIZER], where)
        config = _table(files, TOKENIZER_CONFIG)
        special = _table(files, SPECIAL_TOKENS)
        ids = {
            role: _special_id(backend, config.get(role) or special.get(role))
            for role in ("bos_token", "eos_token", "pad_token", "mask_token")
        }
        leading, suffix = _around(backend)
        bos_id = ids["bos_token"] if leading is None else leading
        policy = leading is not None
        for choice in (config.get("add_bos_token"), prepend_bos):
            policy = policy if choice is None else bool(choice)
        if policy and bos_id is None:
            raise ConfigError(
                f"{where} should prepend BOS (add_bos_token or prepend_bos is true), and names no bos_token. Name "
                "one in tokenizer_config.json, or pass prepend_bos=False."
            )
        return cls(
            backend=backend,
            files=files,
            bos_id=bos_id,
            eos_id=ids["eos_token"],
            pad_id=ids["pad_token"],
            mask_id=ids["mask_token"],
            prepend_bos=policy,
            suffix_ids=suffix,
        )

    def __repr__(self) -> str:
        return f"Tokenizer(d_vocab={self.d_vocab}, bos_id={self.bos_id}, eos_id={self.eos_id}, prepend_bos={self.prepend_bos})"

    @functools.cached_property
    def d_vocab(self) -> int:
        """One more than the largest id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @functools.cached_property
    def special_ids(self) -> tuple[int, ...]:
        """All special tokens: those that the files mark as special, such as `<|im_start|>`, and those that have a name here."""
        marked = {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}
        named = {self.bos_id, self.eos_id, self.pad_id, self.mask_id, *self.suffix_ids}
        return tuple(sorted(i for i in marked | named if i is not None))

    @functools.cached_property
    def _kinds(self) -> frozenset[str]:
        return decoder_kinds(json.loads(self.backend.to_str()))

    @functools.cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self.backend.get_added_tokens_decoder())

    def encode(self, text: str, *, prepend_bos: bool | None = None) -> list[int]:
        """The token ids of a text.

        Args:
            text: any text; the names of special tokens in it become those tokens.
            prepend_bos: whether BOS stands in front, and `suffix_ids` behind; None follows the policy. A text that
                begins with BOS gets no second one.

        Raises:
            TokenError: BOS is asked for, and the tokenizer has none.
        """
        ids = self._before_suffix(text, prepend_bos)
        if not (self.prepend_bos if prepend_bos is None else prepend_bos):
            return ids
        return ids if ids[-len(self.suffix_ids) :] == list(self.suffix_ids) else [*ids, *self.suffix_ids]

    def _before_suffix(self, text: str, prepend_bos: bool | None) -> list[int]:
        ids = list(self.backend.encode(text, add_special_tokens=False).ids)
        if not (self.prepend_bos if prepend_bos is None else prepend_bos):
            return ids
        if self.bos_id is None:
            raise TokenError("prepend_bos is True, and this tokenizer has no BOS token. Pass prepend_bos=False.")
        return ids if ids[:1] == [self.bos_id] else [self.bos_id, *ids]

    def decode(self, ids: Iterable[Any]) -> str:
        """The text of token ids: the inverse of `encode`.

        One BOS in front, and `suffix_ids` behind, are dropped, since they are no text; other special tokens are written by
        their names.

        Raises:
            TokenError: an id is not in the vocabulary.
        """
        listed = self._checked(ids)
        if listed and listed[0] == self.bos_id:
            end = len(self.suffix_ids)
            listed = listed[1 : len(listed) - end if end and tuple(listed[-end:]) == self.suffix_ids else None]
        return self.backend.decode(listed, skip_special_tokens=False)

    def str_tokens(self, text_or_ids: str | Iterable[Any], *, prepend_bos: bool | None = None) -> list[str]:
        """Each token as readable text, with real spaces and line breaks in place of a vocabulary's markers.

        Args:
            text_or_ids: a text, or token ids.
            prepend_bos: as in `encode`, for a text.

        Returns:
            One string a token. A token that is part of a character only is shown as its bytes, "<0xE2>".
        """
        is_text = isinstance(text_or_ids, str)
        ids = self.encode(text_or_ids, prepend_bos=prepend_bos) if is_text else self._checked(text_or_ids)
        return [self._token(i) for i in ids]

    def answer_token(self, prompt: str, answer: str, *, prepend_bos: bool | None = None) -> int:
        """The one token by which `answer` continues `prompt`: encode(prompt + answer) minus encode(prompt).

        Args:
            prompt: the text before.
            answer: the text after, with its space: " She".
            prepend_bos: as in `encode`.

        Raises:
            TokenError: the answer is not one token there, or changes the tokens of the prompt. The message shows the
                tokens.
        """
        before = self._before_suffix(prompt, prepend_bos)
        both = self._before_suffix(prompt + answer, prepend_bos)
        if both[: len(before)] != before:
            first = next((i for i, (a, b) in enumerate(zip(before, both, strict=False)) if a != b), len(both))
            raise TokenError(
                f"The answer {answer!r} changes how the prompt before it is tokenized, from token {first} on: "
                f"{self.str_tokens(before[first:])} alone, {self.str_tokens(both[first:])} with the answer. End the "
                "prompt at the end of a word, and begin the answer with the space that follows it."
            )
        added = both[len(before) :]
        if len(added) != 1:
            raise TokenError(
                f"The answer {answer!r} is {len(added)} tokens after this prompt, and must be one: "
                f"{self.str_tokens(added)}. Choose an answer that is a single token, often a common word with its "
                "leading space."
            )
        return added[0]

    def _token(self, i: int) -> str:
        piece = self.backend.id_to_token(i)
        if piece is None:
            return f"<{i}>"
        return piece if i in self._added else readable(piece, self._kinds)

    def _checked(self, ids: Iterable[Any]) -> list[int]:
        listed = [int(i) for i in np.asarray(ids if hasattr(ids, "__array__") else list(ids)).reshape(-1)]
        wrong = sorted({i for i in listed if not 0 <= i < self.d_vocab})
        if wrong:
            raise TokenError(f"Token ids {wrong} are outside of the vocabulary: legal ids are 0 to {self.d_vocab - 1}.")
        return listed


def _backend(text: bytes, where: str) -> Any:
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_str(text.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise WeightsError(f"{where} is not a legal tokenizer ({error}). Download or copy the file again.") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _table(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        table = json.loads(files.get(name, b"{}"))
    except ValueError as error:
        raise WeightsError(f"{name} is not legal JSON ({error}). Download or copy the file again.") from error
    return table if isinstance(table, dict) else {}


def _special_id(backend: Any, token: Any) -> int | None:
    """The id of a special token given as text or as a table with its text; None where there is none."""
    content = token.get("content") if isinstance(token, dict) else token
    return backend.token_to_id(content) if isinstance(content, str) else None


def _around(backend: Any) -> tuple[int | None, tuple[int, ...]]:
    """The token that the post-processor puts before every text, or None, and those that it puts behind."""
    plain, full = (backend.encode("a", add_special_tokens=flag).ids for flag in (False, True))
    starts = [i for i in range(len(full) - len(plain) + 1) if plain and full[i : i + len(plain)] == plain]
    start = starts[0] if starts else 0
    return (full[0] if start == 1 else None), tuple(full[start + len(plain) :]) if starts else ()


def _missing(folder: Path) -> str:
    return (
        f"{folder} has no tokenizer.json, so text cannot be turned into tokens. Copy it from the model's page on the "
        "hub; or make it from older files (vocab.json, merges.txt, tokenizer.model) in an environment with "
        f"transformers: AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}'). Or load with "
        "tokenizer='FOLDER' to take another folder's tokenizer, or with tokenizer=None to work with token ids "
        "alone."
    )
