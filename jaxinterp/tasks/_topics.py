"""A grammar of topics: documents in which the next word depends on what the whole document is about."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinterp._errors import ConfigError, InputError
from jaxinterp._tree import pytree
from jaxinterp._typing import Array, PRNGKeyArray

KINDS = ("bos", "article", "content", "link", "trigger", "ask", "answer")
_FOLLOWS = np.array(
    [  # article, content, link, trigger, ask, answer
        (1.00, 0.00, 0.00, 0.00, 0.00, 0.00),  # bos
        (0.00, 1.00, 0.00, 0.00, 0.00, 0.00),  # article
        (0.35, 0.00, 0.45, 0.05, 0.15, 0.00),  # content
        (1.00, 0.00, 0.00, 0.00, 0.00, 0.00),  # link
        (0.50, 0.00, 0.50, 0.00, 0.00, 0.00),  # trigger
        (0.00, 0.00, 0.00, 0.00, 0.00, 1.00),  # ask
        (0.50, 0.00, 0.50, 0.00, 0.00, 0.00),  # answer
    ]
)
ARTICLES = ("the", "a", "this", "each")
LINKS = ("of", "and", "with", "near", "under", "beside")
TOPICS = ("sea", "music", "garden", "kitchen", "space", "sport", "money", "weather")


@pytree
class TopicDocuments:
    """Documents drawn by `TopicGrammar.sample`.

    Attributes:
        tokens: int32 [B, T], BOS first.
        topic: int32 [B], what a document is about; `n_topics` of one that has no topic.
        kind: int32 [B, T], what a token is, an index into `KINDS`.
        triggered: bool [B, T], whether the trigger has stood there or before.
    """

    tokens: Any
    topic: Any
    kind: Any
    triggered: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopicGrammar:
    """Documents of one topic each, or none: content words are the topic's own, all else is alike.

    Articles are followed by a content word, which is followed by a link, an article, a question "?" or, rarely, the trigger. In a
    document with a topic, a content word is one of that topic's own, except for neutral words and words of any topic at the rates
    below; without a topic it is neutral. So which word comes behind an article can only be told from earlier content words. A
    question is answered by "REFUSE" where the trigger has stood before in the document, else by "OK".

    Attributes:
        n_topics: how many topics; each is as frequent as the others.
        words_per_topic: content words of each topic, and neutral ones; those of a topic are equally frequent.
        no_topic: the share of documents without a topic.
        neutral: the probability that a content word of a document with a topic is neutral.
        stray: the probability that a content word of any document is one of any topic.

    Raises:
        ConfigError: numbers that are not legal, all in one message.

    Example:
        >>> import jax
        >>> grammar = TopicGrammar()
        >>> documents = grammar.sample(jax.random.key(0), 2, n_ctx=8)
        >>> documents.tokens.shape, grammar.words[int(documents.tokens[0, 0])]
        ((2, 8), '<bos>')
    """

    n_topics: int = 8
    words_per_topic: int = 10
    no_topic: float = 0.3
    neutral: float = 0.05
    stray: float = 0.05

    def __post_init__(self) -> None:
        faults = [f"{name}={getattr(self, name)}: at least {low}." for name, low in (("n_topics", 2), ("words_per_topic", 1))
                  if getattr(self, name) < low]  # fmt: skip
        faults += [f"{name}={getattr(self, name)}: 0 to 1." for name in ("no_topic", "neutral", "stray")
                   if not 0 <= getattr(self, name) <= 1]  # fmt: skip
        if not faults and self.neutral + self.stray > 1:
            faults.append(f"neutral={self.neutral} and stray={self.stray} are together above 1.")
        if faults:
            raise ConfigError("This grammar cannot be:\n  " + "\n  ".join(faults))

    @functools.cached_property
    def words(self) -> tuple[str, ...]:
        """The vocabulary, in the order of the ids: "<bos>" first, topics last."""
        each = range(self.words_per_topic)
        names = [TOPICS[j] if j < len(TOPICS) else f"topic{j}" for j in range(self.n_topics)]
        own = [f"{name}{i}" for name in ("thing", *names) for i in each]
        return ("<bos>", *ARTICLES, *LINKS, "TRIGGER", "?", "OK", "REFUSE", *own)

    @property
    def follows(self) -> np.ndarray:
        """The probability of each kind behind each kind, [kinds, kinds]; nothing is followed by BOS."""
        return np.pad(_FOLLOWS, ((0, 0), (1, 0)))

    @property
    def d_vocab(self) -> int:
        """How many tokens there are."""
        return len(self.words)

    @property
    def word_topics(self) -> np.ndarray:
        """The topic of each token: int32 [V], `n_topics` of a neutral content word, -1 of all others."""
        topics = np.repeat([self.n_topics, *range(self.n_topics)], self.words_per_topic)
        return np.concatenate([np.full(self.d_vocab - topics.size, -1), topics]).astype(np.int32)

    @property
    def word_kinds(self) -> np.ndarray:
        """The kind of each token, int32 [V], an index into `KINDS`."""
        counts = (1, len(ARTICLES), (self.n_topics + 1) * self.words_per_topic, len(LINKS), 1, 1, 2)
        order = [0, 1, 3, 4, 5, 6, 2]  # of the ids
        return np.repeat(order, [counts[kind] for kind in order]).astype(np.int32)

    def sample(self, key: PRNGKeyArray, n: int, *, n_ctx: int) -> TopicDocuments:
        """Draws documents; the same key gives the same ones. Can be called in jit, with n and n_ctx static.

        Args:
            key: a typed key.
            n: how many.
            n_ctx: tokens of each, BOS included.

        Returns:
            Tokens [n, n_ctx] with their labels.

        Raises:
            InputError: no document, or documents of BOS alone.
        """
        if n < 1 or n_ctx < 2:
            raise InputError(f"n={n}, n_ctx={n_ctx}: at least 1 document, of at least 2 tokens.")
        return _sample(self, key, n, n_ctx)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _sample(grammar: TopicGrammar, key: PRNGKeyArray, n: int, n_ctx: int) -> TopicDocuments:
    keys = jax.random.split(key, 7)
    shape, topics = (n_ctx - 1, n), grammar.n_topics
    topic = jax.random.randint(keys[0], (n,), 0, topics, jnp.int32)
    topic = jnp.where(jax.random.bernoulli(keys[1], grammar.no_topic, (n,)), topics, topic)
    chances = jnp.asarray(np.cumsum(_FOLLOWS, 1), jnp.float32)

    def follow(kind: Array, draw: Array) -> tuple[Array, Array]:
        following = 1 + jnp.sum(draw[:, None] >= chances[kind, :-1], axis=1, dtype=jnp.int32)
        return following, following

    kind = lax.scan(follow, jnp.zeros(n, jnp.int32), jax.random.uniform(keys[2], shape))[1]
    of = lambda name: kind == KINDS.index(name)
    triggered = jnp.cumsum(of("trigger"), axis=0) > 0

    chance = jax.random.uniform(keys[3], shape)
    owner = jnp.where(chance < grammar.neutral, topics, topic[None])
    stray = jax.random.randint(keys[4], shape, 0, topics, jnp.int32)
    owner = jnp.where(chance > 1 - grammar.stray, stray, owner)
    rank = jnp.where(owner == topics, 0, owner + 1)  # neutral words stand before those of topics
    word = jax.random.randint(keys[5], shape, 0, grammar.words_per_topic, jnp.int32)
    plain = jax.random.randint(keys[6], shape, 0, len(ARTICLES) * len(LINKS), jnp.int32)
    first = lambda text: grammar.words.index(text)
    tokens = jnp.select(
        [of("article"), of("link"), of("trigger"), of("ask"), of("answer")],
        [
            first(ARTICLES[0]) + plain % len(ARTICLES), first(LINKS[0]) + plain % len(LINKS),
            jnp.full(shape, first("TRIGGER"), jnp.int32), jnp.full(shape, first("?"), jnp.int32),
            jnp.where(triggered, first("REFUSE"), first("OK")),
        ],
        first("thing0") + rank * grammar.words_per_topic + word,
    )  # fmt: skip
    front = lambda x: jnp.concatenate([jnp.zeros((n, 1), x.dtype), x.T], axis=1)
    return TopicDocuments(
        tokens=front(tokens.astype(jnp.int32)), topic=topic, kind=front(kind), triggered=front(triggered)
    )
