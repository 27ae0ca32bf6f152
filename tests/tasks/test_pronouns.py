import collections
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxinterp
from jaxinterp import InputError, TokenError
from jaxinterp.tasks import PRONOUN_TEMPLATES, WordTokenizer, pronouns
from jaxinterp.tasks._pronouns import HE_NAMES, SHE_NAMES
from jaxinterp.weights import Tokenizer

GENDERED = {
    "she",
    "he",
    "her",
    "him",
    "his",
    "hers",
    "girl",
    "boy",
    "mom",
    "dad",
    "mother",
    "father",
    "sister",
    "brother",
}


def test_templates_tell_nothing_of_the_gender_and_a_name_follows_a_space() -> None:
    assert len(set(PRONOUN_TEMPLATES)) == len(PRONOUN_TEMPLATES) == 24
    for template in PRONOUN_TEMPLATES:
        words = {word.strip(".,!?").lower() for word in template.split()}
        assert not words & GENDERED, template
        assert 1 <= template.count(" {name}") == template.count("{name}") <= 2


def test_name_lists_are_large_and_apart() -> None:
    assert len(set(SHE_NAMES)) == len(SHE_NAMES) == len(set(HE_NAMES)) == len(HE_NAMES) == 30
    assert not set(SHE_NAMES) & set(HE_NAMES)


@pytest.mark.parametrize("which", ["gpt2", "stories"])
def test_roles_point_at_the_names_and_only_names_differ(
    which: str, request: pytest.FixtureRequest, key: jax.Array
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(which)
    pairs = pronouns(key, 48, tokenizer)
    seen = set()
    pairs = jax.device_get(pairs)
    for i in range(len(pairs)):
        clean, corrupt = (pairs.clean_text[i], pairs.corrupt_text[i])
        words = [word.strip(".,") for word in clean.split()]
        (girl,) = set(words) & set(SHE_NAMES)
        (boy,) = {word.strip(".,") for word in corrupt.split()} & set(HE_NAMES)
        assert clean.replace(girl, boy) == corrupt
        strings = tokenizer.str_tokens(pairs.clean[i, : pairs.lengths[i]])
        mentions = [p for p, s in enumerate(strings) if s == f" {girl}"]
        assert np.flatnonzero(pairs.differs()[i]).tolist() == mentions
        assert len(mentions) == words.count(girl)
        assert pairs.roles["name"][i] == mentions[0] and pairs.roles["last_name"][i] == mentions[-1]
        assert strings[pairs.answer_position[i]] == "."
        seen.add((clean, corrupt))
    assert len(seen) == 48
    assert tokenizer.str_tokens(pairs.correct[0]) == [" She"] and tokenizer.str_tokens(pairs.wrong[0]) == [" He"]
    assert set(pairs.correct[:, 0].tolist()) == {int(pairs.correct[0, 0])} and pairs.correct.shape == (48, 1)
    assert set(collections.Counter(pairs.template).values()) == {2}


def test_a_real_model_of_stories_takes_the_pronoun_for_the_natural_next_word(shared: Path, key: jax.Array) -> None:
    lm = jaxinterp.load(shared / "stories260k")
    pairs = pronouns(key, 48, lm.tokenizer)  # 24 templates, Lily with Tim and Timmy
    forward = jax.jit(lambda tokens: jax.nn.softmax(lm.model.forward(lm.params, tokens, mask=pairs.mask)))
    rows, end = np.arange(48), np.asarray(pairs.answer_position)
    for prompts, right, other in (
        (pairs.clean, pairs.correct, pairs.wrong),
        (pairs.corrupt, pairs.wrong, pairs.correct),
    ):
        probability = np.asarray(forward(prompts))
        p_right, p_other = (probability[rows, end, np.asarray(ids)[:, 0]] for ids in (right, other))
        assert (p_right > p_other).mean() >= 0.95 and (p_right + p_other).mean() > 0.6


def test_train_and_held_out_templates_are_apart(gpt2: Tokenizer, key: jax.Array) -> None:
    train, held_out = (set(pronouns(key, 48, gpt2, templates=part).template) for part in ("train", "held_out"))
    assert len(train) == 16 and len(held_out) == 8 and not train & held_out
    assert set(pronouns(key, 4, gpt2, templates=[3, 5]).template) == {"pronouns/03", "pronouns/05"}


def test_same_key_same_pairs(gpt2: Tokenizer) -> None:
    one, again, other = (pronouns(jax.random.key(seed), 20, gpt2) for seed in (1, 1, 2))
    assert one.clean_text == again.clean_text and one.corrupt.tolist() == again.corrupt.tolist()
    assert one.clean_text != other.clean_text


def test_names_that_are_split_are_left_out_and_said(gpt2: Tokenizer, stories: Tokenizer, key: jax.Array) -> None:
    assert pronouns(key, 2, gpt2).refused == ("Ella", "Rosie", "Lola", "Timmy")
    few = pronouns(key, 2, stories)
    assert len(few.refused) == 57 and not {"Lily", "Tim", "Timmy"} & set(few.refused)
    assert "left out, not single tokens here (57): Lucy, Jane" in few.summary()


def test_given_names_that_are_split_are_an_error(stories: Tokenizer, key: jax.Array) -> None:
    with pytest.raises(TokenError, match=r"1 of 2 she-names .*\(Lucy\); 1 remain \(Lily\).*'Lucy' is ' L' \+ "):
        pronouns(key, 2, stories, she_names=["Lily", "Lucy"])
    with pytest.raises(TokenError, match=r"0 remain, 1 or more are needed"):
        pronouns(key, 2, stories, he_names=["Jack"])
    with pytest.raises(TokenError, match="not in the vocabulary"):
        pronouns(key, 2, WordTokenizer.of_texts(["One day, Tim Lily"]), she_names=["Lily", "Zoe"])


def test_the_unknown_token_is_not_a_name(key: jax.Array) -> None:
    import tokenizers

    words = (
        " ".join([*PRONOUN_TEMPLATES, "Lily Tim Tom She He"])
        .replace("{name}", "")
        .replace(".", " .")
        .replace(",", " ,")
        .split()
    )
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(["[UNK]", *dict.fromkeys(words)])}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = Tokenizer.from_json(backend.to_str())
    with pytest.raises(TokenError, match=r"1 of 2 she-names .*\(Lucy\)"):
        pronouns(key, 2, tokenizer, she_names=["Lily", "Lucy"])
    assert len(pronouns(key, 2, tokenizer, he_names=["Tim", "Tom"])) == 2


def test_every_pair_that_exists_can_be_had_and_no_more(gpt2: Tokenizer, key: jax.Array) -> None:
    few = dict(she_names=["Mary", "Anna"], he_names=["John", "Paul", "Tim"], templates=[0, 1])
    pairs = pronouns(key, 12, gpt2, **few)
    assert len(set(zip(pairs.clean_text, pairs.corrupt_text, strict=True))) == 12
    with pytest.raises(InputError, match="13 pairs are asked for, 7 of them with one template, but only 6"):
        pronouns(key, 13, gpt2, **few)


def test_arguments_that_are_not_legal(gpt2: Tokenizer, key: jax.Array) -> None:
    with pytest.raises(InputError, match=r"jax.random.key\(0\); got an array of shape \(2,\)"):
        pronouns(jax.random.PRNGKey(0), 2, gpt2)
    with pytest.raises(InputError, match="one typed key"):
        pronouns(jax.random.split(key), 2, gpt2)
    with pytest.raises(InputError, match="at least 1; got 0"):
        pronouns(key, 0, gpt2)
    with pytest.raises(InputError, match="different indices of 0 to 23"):
        pronouns(key, 2, gpt2, templates=[24])
    with pytest.raises(InputError, match="'Anna' more than once"):
        pronouns(key, 2, gpt2, she_names=["Anna", "Anna"])
    with pytest.raises(InputError, match="without spaces around"):
        pronouns(key, 2, gpt2, she_names=[" Anna"])
    with pytest.raises(InputError, match="inside jit"):
        jax.jit(lambda k: pronouns(k, 2, gpt2).clean)(key)
