"""The topic grammar against its own rules, read off the words."""

import jax
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.tasks import TopicGrammar

N, T = 1500, 24


@pytest.fixture(scope="module")
def drawn():
    grammar = TopicGrammar(n_topics=3, words_per_topic=4)
    return grammar, grammar.sample(jax.random.key(0), N, n_ctx=T)


def test_words_follow_the_grammar(drawn):
    grammar, documents = drawn
    assert len(set(grammar.words)) == grammar.d_vocab == grammar.word_topics.size == grammar.word_kinds.size
    kinds = grammar.word_kinds[np.asarray(documents.tokens)]
    assert (kinds == np.asarray(documents.kind)).all() and (kinds[:, 0] == 0).all()
    counts = np.zeros((7, 7))
    np.add.at(counts, (kinds[:, :-1].ravel(), kinds[:, 1:].ravel()), 1)
    total = counts.sum(1, keepdims=True)
    assert (np.abs(counts / total - grammar.follows) <= 2.5 / np.sqrt(total)).all()
    assert (counts[grammar.follows == 0] == 0).all()


def test_content_words_are_of_the_topic(drawn):
    grammar, documents = drawn
    topics, about = grammar.word_topics[np.asarray(documents.tokens)], np.asarray(documents.topic)
    assert np.bincount(about) / N == pytest.approx([0.7 / 3] * 3 + [0.3], abs=0.04)
    for topic in range(4):
        own = topics[about == topic]
        shares = np.bincount(own[own >= 0], minlength=4) / (own >= 0).sum()
        expected = np.full(4, 0.05 / 3)
        expected[3] = 0.05
        expected[topic] += 1 - expected.sum() if topic < 3 else 0.9
        assert shares == pytest.approx(expected, abs=0.02)


def test_questions_are_answered_by_the_trigger(drawn):
    grammar, documents = drawn
    for row, triggered in zip(np.asarray(documents.tokens), np.asarray(documents.triggered), strict=True):
        words = [grammar.words[i] for i in row]
        for t, word in enumerate(words):
            assert triggered[t] == ("TRIGGER" in words[: t + 1])
            if t and words[t - 1] == "?":
                assert word == ("REFUSE" if triggered[t] else "OK")


def test_the_same_key_gives_the_same_documents(drawn):
    grammar, documents = drawn
    again = grammar.sample(jax.random.key(0), N, n_ctx=T)
    assert (again.tokens == documents.tokens).all()
    assert (grammar.sample(jax.random.key(1), N, n_ctx=T).tokens != documents.tokens).any()


def test_every_fault_is_told():
    with pytest.raises(ji.ConfigError, match=r"(?s)n_topics=1.*no_topic=2"):
        TopicGrammar(n_topics=1, no_topic=2.0)
    with pytest.raises(ji.ConfigError, match="together above 1"):
        TopicGrammar(neutral=0.6, stray=0.6)
    with pytest.raises(ji.InputError, match="n=0"):
        TopicGrammar().sample(jax.random.key(0), 0, n_ctx=4)
