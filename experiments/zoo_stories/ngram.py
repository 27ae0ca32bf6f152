"""The baseline: interpolated byte n-grams with Witten-Bell weights.

P_k(c | context of k-1 bytes) = (count(context, c) + distinct(context) P_{k-1}(c)) / (count(context) + distinct(context)),
down to the uniform distribution over the 256 bytes and the end of a story.

Source: Witten and Bell 1991 (IEEE Transactions on Information Theory 37), method C.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

END = "\0"


def _symbols(story: str, order: int) -> str:
    """The bytes of a story as one character each, with context before it and an end after it."""
    return END * (order - 1) + story.encode().decode("latin-1") + END


def train(stories: Sequence[str], order: int) -> list[dict[str, dict[str, int]]]:
    """For each context length 0 .. order-1, the counts of what follows each context."""
    counts: list[dict[str, dict[str, int]]] = [defaultdict(dict) for _ in range(order)]
    for story in stories:
        text = _symbols(story, order)
        for i in range(order - 1, len(text)):
            symbol = text[i]
            for k in range(order):
                follow = counts[k][text[i - k : i]]
                follow[symbol] = follow.get(symbol, 0) + 1
    return counts


def nats_per_byte(counts: list[dict[str, dict[str, int]]], stories: Sequence[str]) -> dict[int, float]:
    """The cost of the stories, their ends included, by order, for all orders up to the trained one."""
    order = len(counts)
    totals = [0.0] * order
    n_bytes = 0
    for story in stories:
        text = _symbols(story, order)
        n_bytes += len(text) - order
        for i in range(order - 1, len(text)):
            symbol, p = text[i], 1.0 / 257.0
            for k in range(order):
                follow = counts[k].get(text[i - k : i])
                if follow is not None:
                    p = (follow.get(symbol, 0) + len(follow) * p) / (sum(follow.values()) + len(follow))
                totals[k] -= math.log(p)
    return {k + 1: total / n_bytes for k, total in enumerate(totals)}
