"""A tokenizer with one token a word, for symbolic tasks and examples."""

import re
from collections.abc import Iterable
from typing import Any

from jaxinterp._errors import TokenError

_PIECE = re.compile(r" ?\d{1,2}| ?[^\W\d]+| ?[^\w\s]|\s")


class WordTokenizer:
    """One token for every word and every sign, the space before it included; a fixed vocabulary.

    It needs no files, and a text comes back from its tokens exactly. Numbers are cut into two digits at a time. A word
    outside the vocabulary is an error.

    Args:
        words: the vocabulary, in the order of the ids, such as ["One", " day", ","].
        bos: the text of a BOS token, which then has id 0; None for none.

    Example:
        >>> words = WordTokenizer.of_texts(["One day, Tim ran.", " Lily"])
        >>> words.encode("One day, Lily ran.")
        [6, 2, 4, 0, 3, 5]
        >>> words.str_tokens("One day, Tim")
        ['One', ' day', ',', ' Tim']
    """

    def __init__(self, words: Iterable[str], *, bos: str | None = None):
        vocabulary = [*([] if bos is None else [bos]), *words]
        self.words = tuple(dict.fromkeys(vocabulary))
        self.d_vocab = len(self.words)
        self.bos_id = None if bos is None else 0
        self.pad_id: int | None = None
        self.prepend_bos = bos is not None
        self._ids = {word: i for i, word in enumerate(self.words)}

    @classmethod
    def of_texts(cls, texts: Iterable[str], *, bos: str | None = None) -> "WordTokenizer":
        """The tokenizer whose vocabulary is every word of `texts`, with and without a space before it."""
        pieces = [piece for text in texts for piece in _PIECE.findall(text)]
        return cls(sorted(set(pieces)), bos=bos)

    def encode(self, text: str, *, prepend_bos: bool | None = None) -> list[int]:
        """Token ids of a text; `prepend_bos` None follows the policy of the tokenizer."""
        pieces = _PIECE.findall(text)
        unknown = [piece for piece in pieces if piece not in self._ids]
        if unknown:
            raise TokenError(
                f"{unknown[0]!r} in {text!r} is not in the vocabulary of {self.d_vocab} words: use its words."
            )
        front = (
            []
            if self.bos_id is None or not (self.prepend_bos if prepend_bos is None else prepend_bos)
            else [self.bos_id]
        )
        return front + [self._ids[piece] for piece in pieces]

    def decode(self, ids: Iterable[Any]) -> str:
        """The text of token ids."""
        return "".join(self.words[int(i)] for i in ids)

    def str_tokens(self, text_or_ids: Any) -> list[str]:
        """One string for each token."""
        ids = self.encode(text_or_ids) if isinstance(text_or_ids, str) else text_or_ids
        return [self.words[int(i)] for i in ids]

    def answer_token(self, prompt: str, answer: str) -> int:
        """The one token that `answer` adds to `prompt`."""
        before, after = self.encode(prompt), self.encode(prompt + answer)
        if len(after) != len(before) + 1 or after[:-1] != before:
            raise TokenError(
                f"{answer!r} adds {self.str_tokens(after[len(before) :])} to the prompt: one token is needed."
            )
        return after[-1]
