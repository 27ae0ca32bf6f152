"""Finding and loading shipped models; what every card says; how much they weigh."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji

EVERY = [(name, step) for name in ji.zoo.names() for step in (None, *ji.zoo.steps(name))]


def test_what_is_shipped():
    assert ji.zoo.names() == ("induction", "induction-1l", "stories")
    assert ji.zoo.steps("stories") == () and ji.zoo.steps("induction-1l") == ()
    steps = ji.zoo.steps("induction")
    assert steps[0] == 0 and len(steps) >= 5 and list(steps) == sorted(steps)


@pytest.mark.parametrize(("name", "step"), EVERY)
def test_every_model_loads_as_a_folder_does_and_runs(name, step):
    lm = ji.zoo.load(name, step=step)
    other = ji.load(ji.zoo.path(name, step=step))
    jax.tree.map(np.testing.assert_array_equal, lm.params, other.params)
    logits = lm.model.forward(lm.params, jnp.arange(12, dtype=jnp.int32).reshape(2, 6))
    assert logits.shape == (2, 6, lm.config.d_vocab) and np.isfinite(np.asarray(logits)).all()


def test_steps_are_different_moments_of_one_run():
    tables = [
        np.asarray(ji.zoo.load("induction", step=step).params["embed"]["W_E"]) for step in ji.zoo.steps("induction")
    ]
    assert all(not np.array_equal(a, b) for i, a in enumerate(tables) for b in tables[:i])
    assert len({ji.zoo.load("induction", step=step).config for step in (None, 0)}) == 1


def test_a_name_or_step_that_is_not_there_is_an_error():
    with pytest.raises(ji.InputError, match="'stories'"):
        ji.zoo.load("storys")
    with pytest.raises(ji.InputError, match="Kept: 0, "):
        ji.zoo.path("induction", step=7)
    with pytest.raises(ji.InputError, match="leave step out"):
        ji.zoo.load("stories", step=0)


@pytest.mark.parametrize("name", ji.zoo.names())
def test_every_card_says_what_one_must_know(name):
    card = ji.zoo.card(name)
    assert card.startswith(f"# {name}\n")
    for section in ("## Data", "## Training", "## What it can do", "## Where it fails", "## License"):
        assert f"\n{section}\n" in card, f"the card of {name} lacks {section!r}"
    assert "python -m experiments.zoo_" in card and "seed 0" in card


def test_the_zoo_stays_small():
    files = [file for name in ji.zoo.names() for file in ji.zoo.path(name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 8e6
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".md"}


def test_stories_is_a_hugging_face_llama_folder():
    folder = ji.zoo.path("stories")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["tie_word_embeddings"] is True
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["bos_token"] == tokenizer["eos_token"] == "<|endoftext|>" and tokenizer["add_bos_token"] is True


def test_the_tokenizer_keeps_names_and_pronouns_whole():
    from experiments.zoo_stories.data import HE_NAMES, SHE_NAMES

    lm = ji.zoo.load("stories")
    for name in SHE_NAMES + HE_NAMES:
        assert lm.str_tokens(f"One day, {name} ran", prepend_bos=False)[-2] == f" {name}"
        assert lm.str_tokens(f"{name} ran", prepend_bos=False)[0] == name
    assert lm.answer_token("Lily was sad.", " She") != lm.answer_token("Lily was sad.", " He")
    assert (
        lm.tokenizer.prepend_bos and lm.encode("One").tolist()[0][0] == lm.tokenizer.bos_id == lm.tokenizer.eos_id == 0
    )
    text = 'Mom said, "Ünïcode’s fine: 你好 🙂\n\n\ttoo."'
    assert lm.decode(lm.encode(text)) == text
