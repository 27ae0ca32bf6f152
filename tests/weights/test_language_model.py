import dataclasses
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp._errors import InputError, TokenError
from jaxinterp.weights import LanguageModel
from jaxinterp.weights._prediction import top_rows
from tests.tiny import make_model, make_params

START = "Once upon a time"


@pytest.fixture(scope="module")
def lm(shared):
    return ji.load(shared / "stories260k")


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads((shared / "stories260k" / "golden.json").read_text())


def test_generate_text(lm, golden):
    text = lm.generate(START, 20)
    assert text == lm.decode(golden["ids"][:25])
    assert text.startswith(START)
    assert lm.generate(golden["ids"][:5], 20) == text
    assert lm.generate("<s>", 3) == lm.decode(golden["ids"][:4])


def test_an_edit_out_of_range_and_nan_are_told_and_never_decoded(lm):
    with pytest.raises(ji.SiteIndexError, match="legal are 0 to 4"):
        lm.generate(START, 3, handlers=[ji.zero("attn.z", layer=5)])
    with pytest.raises(ji.SiteIndexError, match="legal are 0 to 7"):
        lm.run_with_cache(START, handlers=[ji.zero("attn.z", head=8)])
    poison = ji.edit("resid_post", lambda x: x * jnp.float32(jnp.nan), layer=1)
    with pytest.raises(InputError, match="logits were NaN"):
        lm.generate(START, 3, handlers=[poison])


def test_sampling_follows_the_seed(lm):
    a, b, c = (lm.generate(START, 10, temperature=1.5, seed=seed) for seed in (0, 0, 1))
    assert a == b != c
    assert lm.generate(START, 10, temperature=1.5, key=jax.random.key(0)) == a
    assert lm.generate(START, 10, temperature=1e-4) == lm.generate(START, 10)
    assert lm.generate(START, 10, temperature=1.5) == a  # seed 0


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(temperature=-1.0), "temperature=-1.0 is not legal"),
        (dict(temperature=float("nan")), "temperature=nan is not legal"),
        (dict(temperature="hot"), "temperature='hot' is not legal"),
        (dict(seed=0), "seed=0 with temperature=0, which takes the most probable"),
        (dict(seed=3), "seed=3 with temperature=0, which takes the most probable"),
        (dict(key=jax.random.key(0)), "key with temperature=0, which takes the most probable"),
        (dict(temperature=1.0, key=jax.random.key(0), seed=3), "key and seed=3 were both given"),
        (dict(temperature=1.0, seed=0.5), "seed=0.5 is not legal"),
        (dict(max_new_tokens=0), "max_new_tokens=0 is not legal"),
        (dict(max_new_tokens=2.0), "max_new_tokens=2.0 is not legal"),
        (dict(max_new_tokens="3"), "max_new_tokens='3' is not legal"),
        (dict(top_k=5), "top_k=5 with temperature=0, which takes the most probable"),
        (dict(top_k=5, top_p=0.5), "top_k=5, top_p=0.5 with temperature=0"),
        (dict(max_new_tokens=0, seed=0.5), "max_new_tokens=0 is .*; seed=0.5 is .*; seed=0.5 with temperature=0"),
        (dict(temperature=1.0, top_k=0), "top_k=0 is not legal"),
        (dict(temperature=1.0, top_k=513), "top_k=513 is not legal.*512"),
        (dict(temperature=1.0, top_k=2.0), "top_k=2.0 is not legal"),
        (dict(temperature=1.0, top_p=0), "top_p=0 is not legal"),
        (dict(temperature=1.0, top_p=1.01), "top_p=1.01 is not legal"),
        (dict(temperature=1.0, top_p="most"), "top_p='most' is not legal"),
    ],
)
def test_settings_of_generation_that_are_refused(lm, how, message):
    given = {"max_new_tokens": 3, "temperature": 0.0, "key": None, "seed": None} | how
    with pytest.raises(InputError, match=message):
        untyped("generate")(lm, START, **given)


def untyped(method):
    """A method as it is without the type checker of this session, which would be the first to object."""
    return inspect.unwrap(getattr(LanguageModel, method))


@pytest.mark.parametrize("prompt", [5, None, 0.5, b"abc", {"a": 1}, [[1, 2], [3]], [1, None], True, [True, False]])
def test_what_is_no_prompt(lm, prompt):
    with pytest.raises(InputError, match="A prompt is text, or integer ids"):
        untyped("tokens")(lm, prompt)


def test_text_and_numbers_of_the_wrong_type(lm):
    with pytest.raises(InputError, match="A text was expected, and None came"):
        untyped("encode")(lm, ["Once", None])
    for k in (2.5, "3", True):
        with pytest.raises(InputError, match=f"k = {k!r} is not legal"):
            untyped("predict")(lm, START, k=k)
    assert len(untyped("predict")(lm, START, k=np.int64(3))) == 3
    assert untyped("generate")(lm, START, np.int64(3)) == lm.generate(START, 3)


def test_generation_ends_at_the_end_token(lm, golden):
    sixth = golden["ids"][8]
    short = dataclasses.replace(lm, tokenizer=dataclasses.replace(lm.tokenizer, eos_id=sixth))
    assert short.generate(START, 20) == lm.decode(golden["ids"][:8])


def test_generation_ends_at_stop_texts_and_ids(lm, golden):
    text, ids = lm.generate(START, 20), golden["ids"]
    end = len(lm.decode(ids[:12]))
    assert (
        lm.generate(START, 20, stop=text[end - 1 : end + 2]) == text[: text.index(text[end - 1 : end + 2], len(START))]
    )
    assert lm.generate(START, 20, stop=["Once", "nowhere"]) == text  # the prompt's own do not count
    assert lm.generate(START, 20, stop=[ids[9], ids[8]]) == lm.decode(ids[:8])
    assert (
        lm.generate(START, 20, stop=[ids[12], text[end - 2 : end]])
        == text[: text.index(text[end - 2 : end], len(START))]
    )
    for wrong, kind in (([""], InputError), ([2.5], InputError), (512, TokenError), ([-1], TokenError)):
        with pytest.raises(kind, match="stop has"):
            untyped("generate")(lm, START, 3, stop=wrong)


def test_sampling_among_few(lm):
    greedy = lm.generate(START, 10)
    assert lm.generate(START, 10, temperature=2.0, top_k=1) == greedy
    assert lm.generate(START, 10, temperature=2.0, top_p=1e-4) == greedy
    assert lm.generate(START, 10, temperature=2.0, top_p=1.0) == lm.generate(START, 10, temperature=2.0)


def test_edits_are_active_in_generation(lm):
    assert lm.generate(START, 10, handlers=[ji.zero("mlp.out", layer=0)]) != lm.generate(START, 10)
    assert lm.generate(START, 10, handlers=[ji.scale("attn.z", 1.0)]) == lm.generate(START, 10)


def test_predict(lm, golden):
    prediction = lm.predict(START, k=3)
    assert prediction[0].id == golden["ids"][5] and prediction[0].token == ","
    assert prediction.prompt == ("<s>", " Once", " upon", " a", " time")
    logits = np.asarray(lm.model.forward(lm.params, lm.encode(START))[0, -1], np.float64)
    assert [row.id for row in prediction] == np.argsort(-logits)[:3].tolist()
    assert len(prediction) == 3
    for row in prediction:
        assert row.logit == pytest.approx(logits[row.id], abs=1e-4)
        assert row.probability == pytest.approx(
            float(jax.nn.softmax(jnp.asarray(logits, jnp.float32))[row.id]), rel=1e-4
        )
    lines = str(prediction).splitlines()
    assert lines[0] == "after 5 tokens: ...'<s> Once upon a time'" and lines[1].split() == [
        "rank",
        "token",
        "id",
        "logit",
        "probability",
    ]
    assert lines[2].split()[:3] == ["0", "','", str(prediction[0].id)]
    edited = lm.predict(START, k=1, handlers=[ji.zero("attn.z")])
    assert edited[0].probability != prediction[0].probability
    for k in (0, 513):
        with pytest.raises(InputError, match=f"k = {k} is not legal.*from 1 to 512"):
            lm.predict(START, k=k)
    assert len(lm.predict(START)) == 10 and len(lm.predict(START, k=512)) == 512


def test_a_small_vocabulary_is_listed_whole():
    model = make_model(d_vocab=7)
    small = LanguageModel(model=model, params=make_params(model))
    assert len(small.predict([1, 2])) == 7
    with pytest.raises(InputError, match="from 1 to 7"):
        small.predict([1, 2], k=10)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_no_prediction(lm, value):
    with pytest.raises(InputError, match="after 5 tokens 512 of 512 logits are not finite"):
        lm.predict(START, handlers=[ji.edit("logits", lambda x: x * 0 + jnp.float32(value))])
    one = ji.edit("logits", lambda x: x.at[..., 3].set(value))
    with pytest.raises(InputError, match="1 of 512 logits are not finite"):
        lm.predict(START, handlers=[one])
    norm = {"w": lm.params["ln_final"]["w"].at[0].set(value)}
    broken = dataclasses.replace(lm, params=lm.params | {"ln_final": norm})
    with pytest.raises(InputError, match="NaN or infinity in the weights"):
        broken.predict(START)
    assert not np.isfinite(broken.run_with_cache(START, "logits")[0]).all()  # which shows what it found


def test_top_rows_break_ties_by_id():
    assert [row[0] for row in top_rows(np.array([1.0, 3.0, 3.0, 0.0], np.float32), 3)] == [1, 2, 0]
    assert sum(row[2] for row in top_rows(np.array([1e4, 0.0], np.float32), 2)) == pytest.approx(1)


def test_run_with_cache(lm):
    logits, acts = lm.run_with_cache(START)
    assert np.allclose(logits, lm.model.forward(lm.params, lm.encode(START)), atol=1e-4)
    assert acts["resid_pre"].shape == (5, 1, 5, 64) and "attn.pattern" not in acts
    _, chosen = lm.run_with_cache(START, "attn.pattern", "mlp.*")
    assert set(chosen) == {"attn.pattern", "mlp.in", "mlp.pre", "mlp.post", "mlp.out"}
    assert np.allclose(chosen["attn.pattern"].sum(-1), 1, atol=1e-5)
    _, edited = lm.run_with_cache(START, "attn.z", handlers=[ji.zero("attn.z", layer=2)])
    assert not edited["attn.z"][2].any() and edited["attn.z"][1].any()


def test_one_compile_for_a_shape(lm, count_compiles):
    lm.predict(START)
    lm.predict(START, handlers=[ji.zero("attn.z", layer=0, head=1)])
    with count_compiles() as compiles:
        other = dataclasses.replace(lm, params=jax.tree.map(lambda x: 1 * x, lm.params))
        other.predict("Once upon a day")
        lm.predict("Once upon a day", handlers=[ji.zero("attn.z", layer=3, head=2)])
    assert lm.encode("Once upon a day").shape == lm.encode(START).shape
    assert compiles.count("_forward_impl") == 0


def test_sites(lm):
    table = lm.sites(START)
    assert table["attn.z"].stacked_shape == (5, 1, 5, 8, 8)
    assert {row.name for row in lm.sites()} == {row.name for row in table}


def test_encode_one_and_several(lm, golden):
    ids = lm.encode(START)
    assert ids.dtype == jnp.int32 and ids.tolist() == [golden["ids"][:5]]
    assert lm.encode(START, prepend_bos=False).tolist() == [golden["ids"][1:5]]
    assert lm.encode([START, "Once upon a day"]).shape == (2, 5)
    with pytest.raises(
        TokenError, match=r"(?s)equally many tokens.*5 tokens: \['<s>', ' Once'.*2 tokens: \['<s>', ' Once'\]"
    ):
        lm.encode([START, "Once"])
    with pytest.raises(TokenError, match="there are none"):
        lm.encode([])


def test_padding_changes_nothing(lm):
    ids, mask = lm.encode_padded([START, "Once"])
    assert mask.tolist() == [[True] * 5, [False] * 3 + [True] * 2]
    assert all(np.array_equal(a, b) for a, b in zip(lm.encode_padded(START), lm.encode_padded([START]), strict=True))
    logits = lm.model.forward(lm.params, ids, mask=mask)
    assert np.allclose(logits[1, 3:], lm.model.forward(lm.params, lm.encode("Once"))[0], atol=1e-4)


def test_bad_prompts(lm):
    with pytest.raises(TokenError, match="prompt is empty.*'<s>'"):
        lm.predict("")
    with pytest.raises(TokenError, match="empty"):
        lm.generate("")
    with pytest.raises(TokenError, match="empty"):
        lm.predict([])
    with pytest.raises(TokenError, match=r"token ids \[512, 600\] are outside the vocabulary of 512"):
        lm.predict([1, 512, 600])
    with pytest.raises(TokenError, match=r"\[-1\]"):
        lm.run_with_cache(np.array([[1, -1]]))
    with pytest.raises(TokenError, match=r"513 tokens are more than the model's context of 512"):
        lm.predict([5] * 513)
    with pytest.raises(TokenError, match="more than the model's context"):
        lm.predict("a cat " * 300)
    with pytest.raises(TokenError, match="500 tokens and 20 new ones"):
        lm.generate([5] * 500, 20)
    with pytest.raises(InputError, match="integer ids"):
        lm.predict(np.array([0.5, 1.0]))
    with pytest.raises(InputError, match=r"one prompt, and got 2"):
        lm.predict([START, "Once upon a day"])
    with pytest.raises(InputError, match=r"one prompt, and got 2"):
        lm.generate([[1, 2], [1, 3]])


def test_decode_and_names(lm, golden):
    assert lm.decode(lm.encode(START)) == START
    assert lm.str_tokens(START)[1:3] == [" Once", " upon"]
    assert lm.str_tokens([403]) == [" Once"]
    assert lm.str_tokens([lm.answer_token("Lily ran.", " She")]) == [" She"]
    with pytest.raises(InputError, match=r"shape \(2, 5\)"):
        lm.decode(lm.encode([START, "Once upon a day"]))


def test_without_a_tokenizer(lm):
    bare = LanguageModel(model=lm.model, params=lm.params)
    assert bare.predict([1, 403], k=1)[0] == lm.predict([1, 403], k=1)[0]._replace(
        token=f"<{bare.predict([1, 403], k=1)[0].id}>"
    )
    with pytest.raises(TokenError, match=r"no tokenizer.*Tokenizer\.from_folder"):
        bare.predict(START)
    assert "no tokenizer" in repr(bare) and "unnamed" in repr(bare)


def test_a_vocabulary_larger_than_the_tokenizer(lm):
    wide = dataclasses.replace(lm, tokenizer=dataclasses.replace(lm.tokenizer))
    object.__setattr__(wide.tokenizer, "d_vocab", 100)
    assert wide._names([403, 5]) == ["<403>", lm.str_tokens([5])[0]]


def test_repr_is_short(lm):
    assert (
        repr(lm).startswith("LanguageModel('stories260k', 260,032 parameters, 5 layers, 8 heads")
        and len(repr(lm)) < 200
    )


def test_another_prompt_edit_or_load_compiles_nothing(lm, shared, count_compiles):
    again = ji.load(shared / "stories260k")
    for method in (lm.predict, lambda text, **how: lm.generate(text, 3, **how)):
        method("One day", handlers=[ji.zero("attn.z", layer=1, head=2)])
    with count_compiles() as compiles:
        lm.predict([1, 403, 407], handlers=[ji.zero("attn.z", layer=3, head=0)])
        again.predict("One day", handlers=[ji.zero("attn.z", layer=2, head=0)])
        again.generate([1, 403, 407], 3, handlers=[ji.zero("attn.z", layer=2, head=0)])
    assert compiles.count("_forward_impl") == compiles.count("_generate_impl") == 0
