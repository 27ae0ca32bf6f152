"""Sampling's filters and stop tokens against Hugging Face's `generate`."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.models import generate
from jaxinterp.models._sampling import likely

pytestmark = pytest.mark.parity

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other libraries' own
    torch = pytest.importorskip("torch", reason="the oracle needs torch (make parity)")
    transformers = pytest.importorskip("transformers", reason="the oracle needs transformers (make parity)")


@pytest.mark.parametrize("top_k", [None, 1, 5, 40])
@pytest.mark.parametrize("top_p", [None, 0.1, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_the_tokens_that_may_be_drawn(top_k, top_p, temperature):
    logits = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32) * 3
    process = transformers.LogitsProcessorList([transformers.TemperatureLogitsWarper(temperature)])
    process += [] if top_k is None else [transformers.TopKLogitsWarper(top_k)]
    process += [] if top_p in (None, 1.0) else [transformers.TopPLogitsWarper(top_p)]  # as its generate does
    want = torch.isfinite(process(None, torch.tensor(logits))).numpy()
    got = likely(jnp.asarray(logits), temperature=temperature, top_k=top_k, top_p=top_p)
    np.testing.assert_array_equal(got, want)
    assert want.sum(1).min() >= 1


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A tiny random GPT-2 of Hugging Face, and ours."""
    sizes = dict(vocab_size=23, n_positions=40, n_embd=24, n_layer=2, n_head=4, tie_word_embeddings=False)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            draw = torch.randn(value.shape, generator=generator)
            norm = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
            large = any(part in name for part in ("wte", "wpe", "lm_head"))
            value.copy_(0.3 * draw + norm if value.ndim == 1 else draw if large else draw * 2 / value.shape[0] ** 0.5)
    folder = tmp_path_factory.mktemp("gpt2")
    theirs.save_pretrained(folder)
    return theirs, ji.load(folder, tokenizer=None)


def test_stop_tokens_fill_the_row(pair):
    theirs, lm = pair
    tokens = np.random.default_rng(1).integers(0, 23, (6, 5))
    ours = jax.jit(
        lambda **how: generate(lm.model, lm.params, jnp.asarray(tokens, jnp.int32), max_new_tokens=12, **how)
    )
    plain = np.asarray(ours())
    some = [i for i in range(23) if (plain[:, 6:15] == i).any() and not (plain[:, 5:] == i).any(1).all()]
    stop = some[0]  # of some rows, not of all

    def reference(**how):
        mask = torch.ones(tokens.shape, dtype=torch.long)
        kwargs = dict(attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=stop)
        return theirs.generate(torch.tensor(tokens), **kwargs, **how).numpy()

    np.testing.assert_array_equal(plain, reference())
    want = reference(eos_token_id=stop)
    want = np.pad(want, ((0, 0), (0, 17 - want.shape[1])), constant_values=stop)  # it ends where all are finished
    np.testing.assert_array_equal(ours(stop=jnp.array([stop])), want)
    assert (want != plain).any(1).any() and not (want[:, -1] == stop).all()
