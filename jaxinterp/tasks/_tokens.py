"""What tasks ask of a tokenizer, and the words that a tokenizer keeps whole."""

import difflib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxinterp._errors import InputError, TokenError

_MAX_ROWS = 60


@runtime_checkable
class TokenizerLike(Protocol):
    """What a task needs of a tokenizer; `jaxinterp.weights.Tokenizer` has it all."""

    @property
    def prepend_bos(self) -> bool:
        """Whether a BOS token is put first."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The BOS token, if there is one."""
        ...

    @property
    def pad_id(self) -> int | None:
        """The padding token, if there is one."""
        ...

    def encode(self, text: str, *, prepend_bos: bool | None = None) -> list[int]:
        """Token ids of a text."""
        ...

    def decode(self, ids: Iterable[Any]) -> str:
        """Text of token ids."""
        ...

    def str_tokens(self, text_or_ids: Any) -> list[str]:
        """One string for each token."""
        ...

    def answer_token(self, prompt: str, answer: str) -> int:
        """The one token that `answer` adds to `prompt`."""
        ...


def check_tokenizer(tokenizer: Any) -> None:
    """Raises `InputError` if `tokenizer` lacks a part that tasks need."""
    needed = ("encode", "decode", "str_tokens", "answer_token", "prepend_bos", "bos_id", "pad_id")
    missing = [name for name in needed if not hasattr(tokenizer, name)]
    if missing:
        raise InputError(
            f"The tokenizer, a {type(tokenizer).__name__}, lacks {', '.join(missing)}. "
            "Pass the tokenizer of a loaded model, such as `lm.tokenizer`."
        )


def resolve_bos(tokenizer: TokenizerLike, prepend_bos: bool | None) -> bool:
    """The tokenizer's own policy unless the caller says otherwise."""
    resolved = bool(tokenizer.prepend_bos if prepend_bos is None else prepend_bos)
    if resolved and tokenizer.bos_id is None:
        raise TokenError("prepend_bos is True, but this tokenizer has no BOS token: pass prepend_bos=False.")
    return resolved


def single_token(tokenizer: TokenizerLike, word: str, *, after_text: str) -> int | None:
    """The token id of `word` after `after_text` and a space, or None if it is not one token.

    A token that does not decode to the word (the unknown token) does not count.
    """
    before = tokenizer.encode(after_text, prepend_bos=False)
    try:
        after = tokenizer.encode(f"{after_text} {word}", prepend_bos=False)
    except TokenError:  # a tokenizer with a closed vocabulary
        return None
    if len(after) != len(before) + 1 or after[:-1] != before:
        return None
    return after[-1] if tokenizer.decode([after[-1]]).strip() == word else None


def single_token_names(
    tokenizer: TokenizerLike, names: Sequence[str], *, template: str, needed: int, what: str, given: bool
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Names that are one token, with their ids, and the refused ones.

    Args:
        tokenizer: the tokenizer that decides.
        names: candidates.
        template: a text with "{" where names go; its beginning is the context in which they are tokenized.
        needed: how many names the task cannot do without.
        what: what the names are, for the error, such as "she-names".
        given: whether the caller gave these names; then any that is split is an error, not left out.

    Raises:
        TokenError: too few names remain, or a given one is split. The message says which.
        InputError: a name twice, or not a plain word.
    """
    names = list(names)
    odd = [name for name in names if not isinstance(name, str) or not name or name != name.strip()]
    repeated = sorted({name for name in names if names.count(name) > 1}) if not odd else []
    if odd or repeated:
        raise InputError(
            f"{what} must be different words without spaces around them; got "
            + ", ".join(repr(n) for n in odd or repeated)
            + (" more than once." if repeated else ".")
        )
    context = template.split("{")[0].rstrip()
    ids = {name: single_token(tokenizer, name, after_text=context) for name in names}
    kept = {name: token for name, token in ids.items() if token is not None}
    refused = tuple(name for name in names if ids[name] is None)
    if len(kept) < needed or (given and refused):
        split = "; ".join(f"{name!r} is {_pieces(tokenizer, name, context)}" for name in refused[:5])
        raise TokenError(
            f"{len(refused)} of {len(names)} {what} are not single tokens of this tokenizer"
            + (f" ({', '.join(refused)})" if refused else "")
            + f"; {len(kept)} remain{' (' + ', '.join(kept) + ')' if kept else ''}, {needed} or more are needed. "
            + (f"For instance {split}. " if split else "")
            + f"Pass {what} that the tokenizer keeps whole after a space."
        )
    return kept, refused


def side_by_side(tokenizer: TokenizerLike, clean: Sequence[int], corrupt: Sequence[int]) -> str:
    """Both tokenizations as a table, equal stretches on equal lines, `>` where they differ.

    Args:
        tokenizer: turns ids into strings.
        clean: ids of the clean prompt.
        corrupt: ids of the corrupt prompt.

    Returns:
        A table of at most 60 rows, as text.
    """
    left, right = tokenizer.str_tokens(list(clean)), tokenizer.str_tokens(list(corrupt))
    rows: list[tuple[str, str, str, str, str]] = []
    for tag, i, i_end, j, j_end in difflib.SequenceMatcher(a=left, b=right, autojunk=False).get_opcodes():
        for a, b in itertools.zip_longest(range(i, i_end), range(j, j_end)):
            rows.append(
                (
                    " " if tag == "equal" else ">",
                    "" if a is None else str(a),
                    "" if a is None else repr(left[a]),
                    "" if b is None else str(b),
                    "" if b is None else repr(right[b]),
                )
            )
    hidden = len(rows) - _MAX_ROWS
    table = [("", "", f"clean ({len(left)})", "", f"corrupt ({len(right)})"), *rows[:_MAX_ROWS]]
    width = [max(len(row[k]) for row in table) for k in range(5)]
    lines = [f"{mark:1} {a:>{width[1]}} {x:<{width[2]}}  {b:>{width[3]}} {y}".rstrip() for mark, a, x, b, y in table]
    if hidden > 0:
        lines.append(f"  ... and {hidden} more rows")
    return "\n".join(lines)


def _pieces(tokenizer: TokenizerLike, word: str, context: str) -> str:
    before = len(tokenizer.encode(context, prepend_bos=False))
    try:
        ids = tokenizer.encode(f"{context} {word}", prepend_bos=False)
    except TokenError:
        return "not in the vocabulary"
    return " + ".join(repr(piece) for piece in tokenizer.str_tokens(ids)[before:])
