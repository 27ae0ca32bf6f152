"""`predict`, `generate`, `sites`."""

import numpy as np
import pytest

import jaxinterp as ji


@pytest.fixture(scope="module")
def lm(shared):
    return ji.load(shared / "stories260k")


def test_predict_is_the_api_as_a_table_and_as_json(cli, stories, lm):
    expected = lm.predict("Once upon a", k=3)
    done = cli("predict", "Once upon a", "--k", 3, "--model", stories, "--json")
    assert done.code == 0 and done.err == ""
    result = done.json()
    assert [row["token"] for row in result["predictions"]] == [row.token for row in expected]
    np.testing.assert_allclose(
        [row["logit"] for row in result["predictions"]], [row.logit for row in expected], rtol=1e-6
    )
    assert result["tokens"] == ["<s>", " Once", " upon", " a"] and result["prepend_bos"] is True
    text = cli("predict", "Once upon a", "--k", 3, "--model", stories).out
    assert "BOS '<s>' is prepended" in text and str(expected) in text
    assert result["revision"] is None


def test_ten_candidates_are_listed_unless_another_number_is_asked_for(cli, stories):
    assert len(cli("predict", "Once upon a", "--model", stories, "--json").json()["predictions"]) == 10
    assert len(cli("predict", "Once upon a", "--k", 512, "--model", stories, "--json").json()["predictions"]) == 512


def test_the_bos_policy_can_be_set_and_is_said(cli, stories):
    done = cli("predict", "Once upon a", "--model", stories, "--bos", "no")
    assert "BOS is not prepended" in done.out and "<s>" not in done.out
    assert cli("predict", "Once upon a", "--model", stories, "--bos", "no", "--json").json()["prepend_bos"] is False


def test_generate_greedy_and_sampled(cli, stories, lm):
    greedy = cli("generate", "One day, Tim", "--max-new-tokens", 8, "--model", stories, "--json").json()
    assert greedy["text"] == lm.generate("One day, Tim", 8)
    sampled = [
        cli(
            "generate",
            "One day, Tim",
            "--max-new-tokens",
            8,
            "--temperature",
            2.0,
            "--seed",
            seed,
            "--model",
            stories,
            "--json",
        )
        for seed in (1, 1, 2)
    ]
    texts = [done.json()["text"] for done in sampled]
    assert greedy["seed"] is None and sampled[2].json()["seed"] == 2
    assert texts[0] == texts[1] != texts[2]
    assert "is prepended" in cli("generate", "One day, Tim", "--max-new-tokens", 8, "--model", stories).out


def test_generate_among_few_tokens_up_to_a_text(cli, stories, lm):
    how = "generate", "One day, Tim", "--max-new-tokens", 8, "--model", stories, "--json"
    greedy = lm.generate("One day, Tim", 8)
    few = cli(*how, "--temperature", 2.0, "--top-k", 1, "--top-p", 0.9).json()
    assert few["text"] == greedy and few["top_k"] == 1 and few["top_p"] == 0.9
    end = greedy[-4:]
    done = cli(*how, "--stop", end, "nowhere").json()
    assert done["text"] == lm.generate("One day, Tim", 8, stop=[end, "nowhere"]) and done["stop"] == [end, "nowhere"]
    assert len(done["text"]) < len(greedy)


def test_sites_lists_what_the_api_lists(cli, stories, lm):
    result = cli("sites", "--model", stories, "--prompt", "Once upon a time", "--json").json()
    table = lm.sites("Once upon a time")
    assert [site["name"] for site in result["sites"]] == [row.name for row in table]
    z = next(site for site in result["sites"] if site["name"] == "attn.z")
    assert z["shape"] == [5, 1, 5, 8, 8] and z["layered"] and not z["on_demand"]
    text = cli("sites", "--model", stories).out
    assert str(table) in text and "is prepended" in text and "'Once upon a time'" in text


def test_sites_of_a_model_without_a_tokenizer(cli):
    done = cli("sites", "--model", "induction")
    assert done.code == 0, done.err
    induction = ji.zoo.load("induction")
    assert "no tokenizer" in done.out and "prompt of 5 tokens\n" in done.out
    assert str(induction.sites((0,) * 5)) in done.out
    result = cli("sites", "--model", "induction", "--json").json()
    assert result["prompt"] is None and result["n_tokens"] == 5 and result["sites"][0]["shape"] == [1, 5, 64]


def test_generated_text_that_is_piped_is_what_the_model_wrote(cli, stories, monkeypatch):
    written = "One day,\t" + "word " * 60 + "\n\n  and  [bold]so[/bold] on   "
    monkeypatch.setattr(ji.LanguageModel, "generate", lambda *args, **options: written)
    assert cli("generate", "One day,", "--model", stories).out.endswith(f"\n\n{written}\n")
    assert cli("generate", "One day,", "--model", stories, "--json").json()["text"] == written


def test_a_model_that_comes_with_jaxinterp_is_the_default(cli):
    result = cli("predict", "Once upon a", "--k", 1, "--json").json()
    assert result["model"] == "stories" and result["predictions"][0]["token"] == " time"
    refused = cli("predict", "Once upon a", "--revision", "main")
    assert refused.code == 1 and "has no revisions" in refused.err
