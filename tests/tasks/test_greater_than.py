import collections
import re

import jax
import pytest

from jaxinterp import InputError, TokenError
from jaxinterp.tasks import GREATER_THAN_TEMPLATES, PromptPairs, greater_than
from jaxinterp.tasks._greater_than import NOUNS
from jaxinterp.weights import Tokenizer


def splits(gpt2: Tokenizer, year: str) -> bool:
    return gpt2.backend.encode(f"the year {year}").tokens[2:] == [f"Ġ{year[:2]}", year[2:]]


@pytest.fixture(scope="module")
def pairs(gpt2: Tokenizer) -> PromptPairs:
    return greater_than(jax.random.key(0), 400, gpt2)


def test_lists() -> None:
    assert len(set(GREATER_THAN_TEMPLATES)) == 8 and len(set(NOUNS)) == len(NOUNS) == 40
    for template in GREATER_THAN_TEMPLATES:
        assert template.count(" {start}") == template.count(" {century}") == 1 and template.endswith(" {century}")


def test_answers_are_the_years_above_and_up_to_the_start(gpt2: Tokenizer, pairs: PromptPairs) -> None:
    known = [y for y in range(100) if any(splits(gpt2, f"{c}{y:02}") for c in range(11, 18))]
    assert known == list(range(1, 100))  # GPT-2 keeps " 1100" to " 1700" whole
    pairs = jax.device_get(pairs)
    for i in range(len(pairs)):
        century, suffix = re.search(r" (\d\d)(\d\d)", pairs.clean_text[i]).groups()
        above, upto = (
            sorted(int(gpt2.decode([t])) for t in ids[i].tolist() if t >= 0) for ids in (pairs.correct, pairs.wrong)
        )
        assert above == list(range(int(suffix) + 1, 100)) and upto == list(range(1, int(suffix) + 1))
        strings = gpt2.str_tokens(pairs.clean[i, : pairs.lengths[i]])
        at = {name: strings[int(position[i])] for name, position in pairs.roles.items()}
        assert at["century"] == at["end"] == f" {century}" and at["year"] == suffix
        assert pairs.roles["year"][i] == pairs.roles["century"][i] + 1
        noun = next(noun for noun in NOUNS if f" {noun} " in pairs.clean_text[i] or f" {noun}, " in pairs.clean_text[i])
        assert f" {noun}".endswith(at["noun"])


def test_corrupt_differs_in_the_year_alone(pairs: PromptPairs, gpt2: Tokenizer) -> None:
    pairs = jax.device_get(pairs)
    differs = pairs.differs()
    assert (differs.sum(axis=1) == 1).all()
    assert (differs.argmax(axis=1) == pairs.roles["year"]).all()
    assert {gpt2.decode([pairs.corrupt[i, p]]) for i, p in enumerate(pairs.roles["year"])} == {"01"}


def test_years_are_balanced_and_the_split_ones_are_said(pairs: PromptPairs, gpt2: Tokenizer) -> None:
    starts = [re.search(r"\d{4}", text)[0] for text in pairs.clean_text]
    counts = collections.Counter(starts)
    assert set(counts.values()) <= {0, 1} or max(counts.values()) - min(counts.values()) <= 1
    assert not set(starts) & set(pairs.refused)
    for year in range(1102, 1800):
        if 2 <= year % 100 <= 98:
            assert (str(year) in pairs.refused) != splits(gpt2, str(year)), year


def test_nouns_may_be_several_tokens(gpt2: Tokenizer, key: jax.Array) -> None:
    pairs = greater_than(key, 4, gpt2, nouns=["long zweckverband quarrel", "xylography"], centuries=[17], templates=[0])
    pairs = jax.device_get(pairs)
    words = {gpt2.decode([pairs.clean[i, p]]) for i, p in enumerate(pairs.roles["noun"])}
    assert words <= {" quarrel", "raphy", "ography"} and len(pairs) == 4


def test_same_key_same_pairs_and_refusals(gpt2: Tokenizer, stories: Tokenizer, key: jax.Array) -> None:
    assert greater_than(key, 9, gpt2).clean_text == greater_than(key, 9, gpt2).clean_text
    with pytest.raises(TokenError, match=r'No year .*"The 1132" is .*\'1\', \'1\', \'3\', \'2\''):
        greater_than(key, 4, stories)
    with pytest.raises(InputError, match="two digits, such as 17"):
        greater_than(key, 4, gpt2, centuries=[1700])
    with pytest.raises(InputError, match="at least one, without spaces"):
        greater_than(key, 4, gpt2, nouns=[" war"])
    with pytest.raises(TokenError, match="' year' occurs 3 times"):
        greater_than(key, 4, gpt2, nouns=["year"], templates=[0], centuries=[17])
