"""A tokenizer of letters, texts for it, a stream of them, and the rows of activations by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import jaxinterp as ji
from jaxinterp.activations import ActivationStream, read_tokens
from tests.tiny import FAMILIES, make_model, make_params


class Letters:
    """ "a" is 0, ..., "i" is 8; 9 is EOS, 10 BOS."""

    bos_id, eos_id, pad_id, prepend_bos, d_vocab = 10, 9, None, True, 11

    def encode(self, text, *, prepend_bos=None):
        return [ord(letter) - ord("a") for letter in text]


LETTERS = Letters()
N_CTX = 12
RNG = np.random.default_rng(3)
TEXTS = ["".join("abcdefghi"[i] for i in RNG.integers(0, 9, RNG.integers(1, 31))) for _ in range(40)]


@pytest.fixture(scope="session")
def model():
    return make_model(**FAMILIES["llama"])


@pytest.fixture(scope="session")
def params(model):
    return make_params(model)


@pytest.fixture(scope="session")
def brute(model, params):
    """By site the rows of all tokens but BOS, and their documents: each piece in a row of its own, one forward pass for all."""
    pieces = [
        (d, [10, *ids[i : i + 11]])
        for d, t in enumerate(TEXTS)
        for ids in [LETTERS.encode(t)]
        for i in range(0, len(ids), 11)
    ]
    tokens = np.array([piece + [0] * (N_CTX - len(piece)) for _, piece in pieces], np.int32)
    mask = np.arange(N_CTX)[None] < np.array([[len(piece)] for _, piece in pieces])
    names = ("embed", "resid_post", "mlp.out", "attn.z")
    _, acts, _ = jax.jit(ji.run(model.forward, ji.capture(*names)))(params, jnp.asarray(tokens), mask=jnp.asarray(mask))
    kept = mask & (tokens != 10)
    acts = {"embed": acts["embed"], "resid_post.1": acts["resid_post"][1], "mlp.out.0": acts["mlp.out"][0],
            "attn.z.1": acts["attn.z"][1].reshape(*mask.shape, -1)}  # fmt: skip
    rows = {name: np.asarray(x)[kept] for name, x in acts.items()}
    return rows, np.repeat([document for document, _ in pieces], kept.sum(1))


SITES = [("resid_post", 1), "embed", ("mlp.out", 0), "blocks.1.attn.hook_z"]


def make(model, params, *, devices=1, texts=TEXTS, sites=SITES, seed=0, tokens=None, **more):
    tokens = dict(n_ctx=N_CTX, batch_size=8) | (tokens or {})
    tokens = read_tokens(texts, LETTERS, **tokens)
    more = dict(batch_size=16, buffer_size=240, key=jax.random.key(seed)) | more
    more = more if "mesh" in more else more | dict(mesh=ji.mesh.make_mesh(data=devices))
    return ActivationStream(model, params, tokens, sites, **more)


def served(stream, limit=None):
    """What a stream serves, and what is left in the end."""
    batches, documents = [], []
    for batch in stream:
        batches.append(jax.tree.map(np.asarray, batch))
        documents.append(np.asarray(stream.documents()))
        if len(batches) == limit:
            return batches, documents
    rest, left = stream.remainder()
    return [*batches, rest], [*documents, left]


def joined(batches, documents):
    return jax.tree.map(lambda *x: np.concatenate(x), *batches), np.concatenate(documents)


def check_rows(got, documents, want, wanted_documents, tolerance=1e-5):
    """The same rows of the same documents, in whatever order, each as often."""
    assert sorted(documents) == sorted(wanted_documents)
    both = np.concatenate([want[name] for name in got], axis=1)
    mine = np.concatenate([np.asarray(got[name], np.float32) for name in got], axis=1)
    for document in sorted(set(documents)):
        a, b = mine[documents == document], both[wanted_documents == document]
        distance = np.abs(a[:, None] - b[None]).max(-1)
        i, j = linear_sum_assignment(distance)
        assert distance[i, j].max() <= tolerance * np.abs(both).max(), document
