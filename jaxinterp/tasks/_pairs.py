"""Prompt pairs: two prompts that differ in one thing, and the answers that tell them apart."""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._tree import is_traced, pytree, static
from jaxinterp._typing import Bool, Int


@pytree
class PromptPairs:
    """A batch of clean and corrupt prompts, token by token beside each other.

    Both prompts of a pair have the same number of tokens, so that a position means the same in both. Shorter pairs are
    padded on the right; `mask` is False there. Positions count from a prompt's first token, BOS included where there is one.
    `A` is the largest number of answers of a prompt, in `correct` and in `wrong` by itself: 1 in most tasks, more where a set of
    tokens is right.

    Everything but the arrays is part of the tree's structure. So hand the arrays to a jitted function
    (`f(pairs.clean, pairs.mask)`), not the pairs: with other texts a jitted function of the pairs compiles again.

    Attributes:
        clean: int32 [B, T], the prompts that call for `correct`.
        corrupt: int32 [B, T], the same prompts with what matters exchanged.
        mask: bool [B, T], True on real tokens, False on padding.
        correct: int32 [B, A], token ids of the right answers to the clean prompt; -1 fills short sets.
        wrong: int32 [B, A], token ids of the answers to weigh against them; -1 fills short sets.
        answer_position: int32 [B], the row whose logits predict the answer, the last real token.
        roles: int32 [B] each: for each role its position in every pair, such as `{"name": ..., "end": ...}`.
        clean_text: the clean prompts as text; empty where there is no text.
        corrupt_text: the corrupt prompts as text; empty where there is no text.
        template: for every pair the id of the template that it was made from, "" where there is none.
            `np.unique(pairs.template, return_inverse=True)` numbers them.
        prepend_bos: whether every prompt begins with BOS.
        refused: what the task had to leave out because the tokenizer splits it (names, years).
    """

    clean: Any
    corrupt: Any
    mask: Any
    correct: Any
    wrong: Any
    answer_position: Any
    roles: dict[str, Any]
    clean_text: tuple[str, ...] = static(default=())
    corrupt_text: tuple[str, ...] = static(default=())
    template: tuple[str, ...] = static(default=())
    prepend_bos: bool = static(default=False)
    refused: tuple[str, ...] = static(default=())

    def __len__(self) -> int:
        return int(self.clean.shape[0])

    @property
    def lengths(self) -> Int[np.ndarray, " B"]:
        """Number of real tokens of every pair."""
        return _concrete(self.mask).sum(axis=1, dtype=np.int32)

    @property
    def is_padded(self) -> bool:
        """Whether any pair has padding; where none has, a model needs no mask."""
        return not bool(_concrete(self.mask).all())

    def differs(self) -> Bool[np.ndarray, "B T"]:
        """True at the positions where the clean and the corrupt token differ."""
        return (_concrete(self.clean) != _concrete(self.corrupt)) & _concrete(self.mask)

    def take(self, rows: int | slice | Sequence[int] | Sequence[bool] | Any) -> "PromptPairs":
        """The chosen pairs, in the given order, with columns that are padding everywhere cut off.

        Args:
            rows: an index, a slice, a sequence or array of indices, or one Boolean for each pair.

        Returns:
            `PromptPairs` of as many pairs as were chosen.

        Raises:
            InputError: no pair is chosen, or an index is out of range.

        Example:
            >>> from jaxinterp.tasks import pairs_from_tokens
            >>> pairs = pairs_from_tokens(clean=[[5, 6], [7, 8]], corrupt=[[5, 9], [7, 9]], correct=[1, 2], wrong=[3, 3])
            >>> pairs.take([1]).clean.tolist()
            [[7, 8]]
        """
        index = self._row_index(rows)
        width = int(self.lengths[index].max())
        pick = lambda x, *cut: jnp.asarray(np.asarray(x)[(index, *cut)])
        columns = slice(0, width)
        text = lambda items: tuple(items[i] for i in index) if items else ()
        return dataclasses.replace(
            self,
            clean=pick(self.clean, columns),
            corrupt=pick(self.corrupt, columns),
            mask=pick(self.mask, columns),
            correct=pick(self.correct),
            wrong=pick(self.wrong),
            answer_position=pick(self.answer_position),
            roles={name: pick(position) for name, position in self.roles.items()},
            clean_text=text(self.clean_text),
            corrupt_text=text(self.corrupt_text),
            template=text(self.template),
        )

    def by_length(self) -> list["PromptPairs"]:
        """The pairs grouped by their number of tokens, shortest first: no group is padded.

        Returns:
            One `PromptPairs` for each length that occurs. Within a group the order is kept.

        Example:
            >>> from jaxinterp.tasks import pairs_from_tokens
            >>> pairs = pairs_from_tokens(clean=[[5, 6], [7]], corrupt=[[5, 9], [8]], correct=[1, 2], wrong=[3, 3])
            >>> [group.clean.tolist() for group in pairs.by_length()]
            [[[7]], [[5, 6]]]
        """
        return [self.take(np.flatnonzero(self.lengths == length)) for length in np.unique(self.lengths)]

    def summary(self) -> str:
        """A few lines for a person: how many pairs, how long, which roles, an example, what was refused.

        Example:
            >>> from jaxinterp.tasks import pairs_from_tokens
            >>> pairs = pairs_from_tokens(clean=[[5, 6], [7, 8]], corrupt=[[5, 9], [7, 9]], correct=[1, 2], wrong=[3, 3])
            >>> print(pairs.summary())
            2 prompt pairs of 2 tokens, without BOS; roles: end
        """
        low, high = int(self.lengths.min()), int(self.lengths.max())
        tokens = f"{low} token{'s' * (low != 1)}" if low == high else f"{low} to {high} tokens"
        bos = "with BOS" if self.prepend_bos else "without BOS"
        lines = [
            f"{len(self)} prompt {'pair' if len(self) == 1 else 'pairs'} of {tokens}, {bos}; roles: {', '.join(self.roles)}"
        ]
        if any(self.template):
            lines[0] += f"; templates: {len(set(self.template))}"
        if self.clean_text:
            lines += [f"  clean:   {self.clean_text[0]!r}", f"  corrupt: {self.corrupt_text[0]!r}"]
        if self.refused:
            lines.append(f"  left out, not single tokens here ({len(self.refused)}): {', '.join(self.refused)}")
        return "\n".join(lines)

    def _row_index(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            index = np.arange(len(self))[rows]
        else:
            index = np.atleast_1d(np.asarray(rows))
            if index.dtype == bool:
                if index.shape != (len(self),):
                    raise InputError(
                        f"`rows` has {index.size} Booleans, the batch has {len(self)} pairs: give one for each pair."
                    )
                index = np.flatnonzero(index)
        if index.size == 0:
            raise InputError(f"No pair is chosen by rows={rows!r}: choose at least one of the {len(self)} pairs.")
        if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
            raise InputError(f"`rows` must be an index, a slice, indices or Booleans; got {rows!r}.")
        index = np.asarray([operator.index(i) for i in index])
        if (index < 0).any() or (index >= len(self)).any():
            raise InputError(f"rows={rows!r} reaches outside the {len(self)} pairs: legal are 0 to {len(self) - 1}.")
        return index


def _concrete(x: Any) -> np.ndarray:
    if is_traced(x):
        raise InputError(
            "Prompt pairs were looked at inside a JAX transformation, where their values are not known yet: "
            "choose and group pairs before, and hand the arrays (pairs.clean, pairs.mask) to the transformed function."
        )
    return np.asarray(x)
