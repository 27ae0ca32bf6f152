"""The parts of the experiment on a few stories, and the whole script at its smallest."""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.zoo_stories import data, ngram, pronouns

ROOT = Path(__file__).resolve().parents[2]
STORIES = [f"Once upon a time, {name} saw a dog. {name} was happy." for name in data.SHE_NAMES + data.HE_NAMES]


def test_the_split_holds_out_every_tenth_and_drops_the_last(tmp_path):
    file = tmp_path / "stories.txt"
    file.write_text("\n<|endoftext|>\n".join([f"story {i}" for i in range(25)] + ["cut sh"]))
    stories = data.read_stories(file)
    train, held_out = data.split(stories)
    assert len(stories) == 25 and held_out == ["story 9", "story 19"] and len(train) == 23


def test_rows_hold_the_stories_in_order_and_batches_go_round():
    stories = [np.arange(10 * i + 1, 10 * i + 8, dtype=np.int32) for i in range(6)]
    rows = data.training_rows(stories, 5, np.random.default_rng(0))
    assert rows.shape[1] == 6
    for row in rows:
        follow = [(a, b) for a, b in itertools.pairwise(row) if a and b]
        assert all(b == a + 1 for a, b in follow)
    many = list(data.batches(stories, n_ctx=5, batch=4, steps=9, seed=0))
    assert len(many) == 9 and all(batch.shape == (4, 6) for batch in many)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 20, 61])
def test_windows_score_each_token_once_with_half_a_window_before(length):
    story = np.arange(1, length + 1, dtype=np.int32)
    rows, weights = data.scoring_windows([story], 8)
    scored = [int(row[1:][i]) for row, weight in zip(rows, weights, strict=True) for i in np.flatnonzero(weight)]
    assert scored == [*range(1, length + 1), data.END_ID]
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        assert np.flatnonzero(weight)[0] >= 3 and row[0] != data.END_ID


def test_names_are_whole_tokens_and_any_text_survives():
    tokenizer = data.train_tokenizer(STORIES, 500)
    for name in data.SHE_NAMES + data.HE_NAMES:
        assert len(tokenizer.encode(f" {name}", add_special_tokens=False).ids) == 1
        assert len(tokenizer.encode(name, add_special_tokens=False).ids) == 1
    ids = tokenizer.encode("Zoë said: 你好!").ids
    assert ids[0] == data.END_ID and tokenizer.decode(ids[1:]) == "Zoë said: 你好!"


def test_ngrams_are_distributions_and_give_the_formula():
    counts = ngram.train(["abab", "abb"], 3)
    root = counts[0][""]
    assert root == {"a": 3, "b": 4, ngram.END: 2}
    p1 = (4 + 3 / 257) / (9 + 3)
    p2 = (3 + 1 * p1) / (3 + 1)
    cost = ngram.nats_per_byte(counts[:2], ["ab"])[2]
    p_a = (2 + 1 * (3 + 3 / 257) / 12) / (2 + 1)
    p_end = (2 + 3 * (2 + 3 / 257) / 12) / (4 + 3)
    assert math.isclose(cost * 2, -math.log(p_a) - math.log(p2) - math.log(p_end), rel_tol=1e-9)


def test_templates_do_not_tell_girls_from_boys():
    words = {word.strip('.,"').lower() for template in pronouns.TEMPLATES for word in template.split()}
    assert not words & {
        "she",
        "he",
        "her",
        "his",
        "him",
        "girl",
        "boy",
        "mommy",
        "son",
        "daughter",
        "sister",
        "brother",
    }
    assert len(set(pronouns.TEMPLATES)) == 20 and all(text.endswith(".") for text in pronouns.TEMPLATES)


@pytest.mark.slow
def test_the_script_runs(shared, tmp_path):
    command = [sys.executable, "-m", "experiments.zoo_stories.run", "--smoke", "--out", str(tmp_path)]
    command += ["--data", str(shared / "tinystories.txt")]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert first.returncode == 0, first.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["held_out_nats_per_byte"] > results["ngram_nats_per_byte"]["3"] > 1
    assert (tmp_path / "stories" / "model.safetensors").is_file()
