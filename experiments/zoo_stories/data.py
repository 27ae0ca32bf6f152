"""The stories: their split, a tokenizer, rows to train on and windows to score."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

END = "<|endoftext|>"
END_ID = 0

SHE_NAMES = (
    "Lily", "Anna", "Sara", "Mia", "Lucy", "Lila", "Sarah", "Jane", "Molly", "Sue", "Daisy", "Sally", "Amy", "Mary",
    "Emma", "Jill",
)  # fmt: skip
HE_NAMES = (
    "Ben", "Tom", "Tim", "Timmy", "Jack", "Sam", "John", "Max", "Joe", "Bob", "Spot", "Tommy", "Billy", "Jimmy",
)  # fmt: skip
"""The commonest names of the training part; the tokenizer keeps each whole, with and without a space before it."""


def read_stories(path: Path) -> list[str]:
    """All whole stories; the file's last one is cut short and left out."""
    stories = [story.strip() for story in path.read_text(encoding="utf-8").split(END)]
    return [story for story in stories if story][:-1]


def split(stories: Sequence[str]) -> tuple[list[str], list[str]]:
    """(training, held-out): every tenth story is held out."""
    return [s for i, s in enumerate(stories) if i % 10 != 9], [s for i, s in enumerate(stories) if i % 10 == 9]


def count_bytes(stories: Sequence[str]) -> int:
    """UTF-8 bytes of the texts, without separators."""
    return sum(len(story.encode()) for story in stories)


def train_tokenizer(stories: Sequence[str], d_vocab: int):
    """A byte-level BPE in GPT-2's manner: a word's token holds the space before it, and any text can be written.

    The names are repeated until a merge for each is worth its place, so that they are ordinary tokens. The end-of-text token
    stands before each text (that is the policy about BOS) and after it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=d_vocab, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    names = [form for name in SHE_NAMES + HE_NAMES for form in [f" {name}"] * 3000 + [name] * 1500]
    tokenizer.train_from_iterator([*stories, *names], trainer)
    before = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, END_ID)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), before])
    return tokenizer


def encode(tokenizer, stories: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each story, without the end-of-text tokens around it."""
    return [np.asarray(e.ids, np.int32) for e in tokenizer.encode_batch(list(stories), add_special_tokens=False)]


def training_rows(stories: Sequence[np.ndarray], n_ctx: int, rng: np.random.Generator) -> np.ndarray:
    """One pass over the stories: shuffled, joined, and cut at a random offset into rows of n_ctx + 1 tokens."""
    order = rng.permutation(len(stories))
    stream = np.concatenate([np.concatenate([[END_ID], stories[i]]) for i in order]).astype(np.int32)
    stream = stream[rng.integers(min(n_ctx, len(stream) - n_ctx - 1)) :]
    rows = np.stack([stream[i : i + n_ctx + 1] for i in range(0, len(stream) - n_ctx, n_ctx)])
    return rows[rng.permutation(len(rows))]


def batches(stories: Sequence[np.ndarray], *, n_ctx: int, batch: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """`steps` batches of rows, [batch, n_ctx + 1], over as many passes as it takes."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((0, n_ctx + 1), np.int32)
    for _ in range(steps):
        while len(rows) < batch:
            rows = np.concatenate([rows, training_rows(stories, n_ctx, rng)])
        yield rows[:batch]
        rows = rows[batch:]


def scoring_windows(stories: Sequence[np.ndarray], n_ctx: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows that score every token of every story once, its end included.

    A story begins after one end-of-text token. Where it does not fit, the next window starts so that what it scores still has
    at least half a window before it.

    Returns:
        Rows [n, n_ctx + 1] of tokens and weights [n, n_ctx], 1 where a prediction counts.
    """
    rows, weights = [], []
    for story in stories:
        text = np.concatenate([[END_ID], story, [END_ID]])
        done = 1
        while done < len(text):
            start = 0 if done == 1 else max(0, min(done - n_ctx // 2, len(text) - n_ctx - 1))
            part = text[start : start + n_ctx + 1]
            row, weight = np.zeros(n_ctx + 1, np.int32), np.zeros(n_ctx, np.float32)
            row[: len(part)] = part
            weight[done - 1 - start : len(part) - 1] = 1.0
            rows.append(row)
            weights.append(weight)
            done = start + len(part)
    return np.stack(rows), np.stack(weights)
