import collections
import re

import jax
import numpy as np
import pytest

from jaxinterp import InputError, TokenError
from jaxinterp.tasks import INDIRECT_OBJECT_TEMPLATES, PromptPairs, indirect_objects
from jaxinterp.tasks._indirect_objects import NAMES, OBJECTS, PLACES
from jaxinterp.weights import Tokenizer

CAPITAL = re.compile(r"(?<= )[A-Z]\w+")


def people(text: str) -> list[str]:
    """The names of a prompt in order, by another rule than the generator's: capitals within the sentence."""
    return [word for word in CAPITAL.findall(text) if word != "Friday"]


@pytest.fixture(scope="module")
def pairs(gpt2: Tokenizer) -> PromptPairs:
    return indirect_objects(jax.random.key(0), 180, gpt2)


def test_lists_and_templates() -> None:
    assert len(set(INDIRECT_OBJECT_TEMPLATES)) == len(INDIRECT_OBJECT_TEMPLATES) == 18
    assert len(set(NAMES)) == len(NAMES) == 100
    assert len(set(PLACES)) >= 8 <= len(set(OBJECTS))
    for template in INDIRECT_OBJECT_TEMPLATES:
        assert re.findall(r" \{(first|second|giver)\}", template) == ["first", "second", "giver"]
        assert template.endswith((" to", " for")) and "{place}" in template and "{object}" in template
    assert not any(thing[0] in "aeiou" for thing in OBJECTS)  # they follow "a"


def test_every_default_name_and_word_is_one_token_of_gpt2(gpt2: Tokenizer, pairs: PromptPairs) -> None:
    assert pairs.refused == ()
    assert all(len(gpt2.encode(f" {word}")) == 1 for word in PLACES + OBJECTS)


def test_names_orders_answers_and_roles(gpt2: Tokenizer, pairs: PromptPairs) -> None:
    pairs = jax.device_get(pairs)
    for i in range(len(pairs)):
        first, second, giver = people(pairs.clean_text[i])
        subject = giver
        indirect = second if first == giver else first
        assert {first, second} == {subject, indirect} and subject != indirect
        assert pairs.template[i].endswith("ABBA" if first == indirect else "BABA")
        strings = gpt2.str_tokens(pairs.clean[i, : pairs.lengths[i]])
        at = {name: strings[int(position[i])] for name, position in pairs.roles.items()}
        assert at["IO"] == f" {indirect}" and at["S1"] == at["S2"] == f" {subject}" and at["end"] in (" to", " for")
        positions = {name: int(position[i]) for name, position in pairs.roles.items()}
        assert positions["S1"] < positions["S1+1"] == positions["S1"] + 1 < positions["S2"] < positions["end"]
        assert positions["IO"] < positions["S2"]
        assert gpt2.str_tokens(pairs.correct[i]) == [f" {indirect}"] and gpt2.str_tokens(pairs.wrong[i]) == [
            f" {subject}"
        ]


def test_abc_has_three_other_names_and_nothing_else_changes(pairs: PromptPairs) -> None:
    pairs = jax.device_get(pairs)
    for i in range(len(pairs)):
        clean, corrupt = people(pairs.clean_text[i]), people(pairs.corrupt_text[i])
        assert len(set(corrupt)) == 3 and not set(corrupt) & set(clean)
        back = pairs.corrupt_text[i]
        for new, old in zip(corrupt, clean, strict=True):
            back = back.replace(f" {new}", f" {old}", 1)
        assert back == pairs.clean_text[i]
        roles = sorted(int(pairs.roles[name][i]) for name in ("IO", "S1", "S2"))
        assert np.flatnonzero(pairs.differs()[i]).tolist() == roles


def test_swap_changes_the_giver_alone_and_exchanges_the_answers(gpt2: Tokenizer, key: jax.Array) -> None:
    pairs = indirect_objects(key, 60, gpt2, corruption="swap")
    pairs = jax.device_get(pairs)
    for i in range(len(pairs)):
        assert np.flatnonzero(pairs.differs()[i]).tolist() == [int(pairs.roles["S2"][i])]
        assert int(pairs.corrupt[i, pairs.roles["S2"][i]]) == int(pairs.correct[i, 0])
        assert int(pairs.clean[i, pairs.roles["S2"][i]]) == int(pairs.wrong[i, 0])


def test_orders_and_templates_are_balanced(gpt2: Tokenizer, pairs: PromptPairs, key: jax.Array) -> None:
    assert set(collections.Counter(pairs.template).values()) == {5} and len(set(pairs.template)) == 36
    odd = collections.Counter(t[-4:] for t in indirect_objects(key, 21, gpt2).template)
    assert odd == {"ABBA": 11, "BABA": 10}
    only = indirect_objects(key, 7, gpt2, orders=["BABA"], templates="held_out")
    assert {t[-4:] for t in only.template} == {"BABA"} and {int(t[17:19]) for t in only.template} == set(range(12, 18))
    assert len(indirect_objects(key, 1, gpt2)) == 1
    order = [t[-4:] for t in pairs.template]
    assert order != sorted(order)  # not one order after the other


def test_one_template_and_order_has_one_length_so_that_means_over_it_line_up(pairs: PromptPairs) -> None:
    lengths = collections.defaultdict(set)
    for template, length in zip(pairs.template, pairs.lengths.tolist(), strict=True):
        lengths[template].add(length)
    assert all(len(these) == 1 for these in lengths.values())


def test_what_the_docstring_says_of_naive_rules_is_so(pairs: PromptPairs) -> None:
    counts = collections.Counter()
    for text in pairs.clean_text:
        names = people(text)
        subject = names[-1]
        guesses = {
            "first": names[0],
            "most recent": names[-1],
            "most frequent": collections.Counter(names).most_common(1)[0][0],
            "not the most recent": next(name for name in names if name != subject),
        }
        indirect = next(name for name in names[:2] if name != subject)
        counts.update(rule for rule, guess in guesses.items() if guess == indirect)
    assert counts == {"first": 90, "not the most recent": 180}


def test_same_key_same_pairs(gpt2: Tokenizer) -> None:
    one, again, other = (indirect_objects(jax.random.key(seed), 12, gpt2) for seed in (3, 3, 4))
    assert (one.clean_text, one.corrupt_text) == (again.clean_text, again.corrupt_text)
    assert one.clean_text != other.clean_text


def test_refusals(gpt2: Tokenizer, stories: Tokenizer, key: jax.Array) -> None:
    with pytest.raises(TokenError, match=r"100 of 100 names .*\(Aaron, .*Simon\); 0 remain, 5 or more"):
        indirect_objects(key, 4, stories)
    with pytest.raises(TokenError, match=r"1 of 6 names .*\(Xavierina\); 5 remain.*' Xavier' \+ 'ina'"):
        indirect_objects(key, 4, gpt2, names=["Mary", "Xavierina", "John", "Bob", "Paul", "Anna"])
    with pytest.raises(TokenError, match="4 remain .* 5 or more are needed"):
        indirect_objects(key, 4, gpt2, names=["Mary", "John", "Bob", "Paul"])
    assert len(indirect_objects(key, 4, stories, names=["Lily", "Tim"], corruption="swap")) == 4
    with pytest.raises(InputError, match="each once"):
        indirect_objects(key, 4, gpt2, orders=["ABBA", "ABBA"])
    few = dict(names=["Mary", "John"], corruption="swap", templates=[0], orders=["ABBA"])
    with pytest.raises(InputError, match="only 240 different ones exist for each template and order"):
        indirect_objects(key, 241, gpt2, **few)
    every = indirect_objects(key, 240, gpt2, **few)
    assert len(set(every.clean_text)) == 240
