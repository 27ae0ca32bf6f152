import functools

import jax
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp import InputError, SiteIndexError
from jaxinterp.audit import flips, random_sets


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, ids, edits):
    return ji.run(model.forward, *edits)(params, ids)[0]


def next_token(lm, ids, source=None, heads=()):
    """By a plain loop: no padding, one prompt at a time, one full forward, one edit for each head."""
    edits = []
    if heads:
        acts = lm.run_with_cache(source, "attn.z")[1]["attn.z"]
        edits = [ji.patch("attn.z", per_layer=acts, layer=layer, head=head) for layer, head in heads]
    return int(logits(lm.model, lm.params, ids, edits)[0, -1].argmax())


def test_it_equals_a_loop_over_prompts_sets_and_directions(lm, pairs):
    sets = [[(4, 2)], [(0, 0), (1, 1)], [(4, 2), (2, 6), (4, 0)]]
    result = flips(lm.model, lm.params, pairs, sets)
    assert result.flipped.shape == (3, 2, 4)
    for b, length in enumerate(pairs.lengths):
        clean, corrupt = pairs.clean[b : b + 1, :length], pairs.corrupt[b : b + 1, :length]
        right, wrong = int(pairs.correct[b, 0]), int(pairs.wrong[b, 0])
        for direction, (base, source, own, other) in enumerate(
            ((corrupt, clean, wrong, right), (clean, corrupt, right, wrong))
        ):
            says = next_token(lm, base) == own
            assert result.says[direction, b] == says
            for s, heads in enumerate(sets):
                assert result.flipped[s, direction, b] == (says and next_token(lm, base, source, heads) == other), (
                    s,
                    b,
                )
    assert result.rate()[2] == 1.0 and result.rate()[1] == 0.0  # both outcomes occur


def test_one_program_serves_other_sets(lm, pairs, count_compiles):
    flips(lm.model, lm.params, pairs, [[(0, 0)], [(1, 1)]])
    with count_compiles() as again:
        flips(lm.model, lm.params, pairs, [[(3, 7)], [(2, 2)]])
    assert again.count("_next_tokens") == 0


def test_sets_that_are_not_there_are_errors(lm, pairs):
    with pytest.raises(SiteIndexError, match="heads 0 to 7"):
        flips(lm.model, lm.params, pairs, [[(0, 8)]])
    for sets in ([], [[]]):
        with pytest.raises(InputError, match="at least one"):
            flips(lm.model, lm.params, pairs, sets)


def test_random_sets_are_different_exclude_the_found_and_repeat(lm):
    found = [(4, 2), (2, 6)]
    sets = random_sets(lm.model, 3, 50, without=found)
    assert len(sets) == 50 == len({tuple(one) for one in sets})
    assert all(len(set(one)) == 3 and not set(one) & set(found) for one in sets)
    assert sets == random_sets(lm.model, 3, 50, without=found) != random_sets(lm.model, 3, 50, without=found, seed=1)
    every = {cell for one in random_sets(lm.model, 3, 400) for cell in one}
    assert len(every) == 40


def test_where_few_sets_exist_all_of_them_are_taken(lm):
    assert len(random_sets(lm.model, 1, 100, without=[(0, 0)])) == 39
    assert random_sets(lm.model, 41, 10) == [] and random_sets(lm.model, 0, 10) == []
    assert np.shape(random_sets(lm.model, 40, 10)) == (1, 40, 2)
