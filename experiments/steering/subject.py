"""The subject of the experiment: a small transformer trained on the topic grammar, and dictionaries of its residual stream."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

import jaxinterp as ji
from jaxinterp import saes, training
from jaxinterp.activations import ActivationStream, read_tokens
from jaxinterp.tasks import TopicGrammar

GRAMMAR = TopicGrammar()
N_CTX, WARM = 32, 8
"""Tokens of a document; positions from which a document has shown its topic."""
MODEL = ji.Model(
    config=ji.TransformerConfig(
        n_layers=2,
        d_model=64,
        n_ctx=N_CTX + 1,
        n_heads=4,
        d_head=16,
        d_vocab=GRAMMAR.d_vocab,
        d_mlp=128,
        normalization_type="RMS",
        positional_embedding_type="rotary",
    )
)
SLOT, ASK = 1, 5
"""The kinds behind which a content word and an answer stand."""


def train_model(seed: int, *, steps: int) -> tuple[dict, float]:
    """The parameters, and the last cross-entropy of the next token in nats."""

    def loss(params, _, key):
        return training.next_token_loss(MODEL, params, GRAMMAR.sample(key, 64, n_ctx=N_CTX).tokens)

    init_key, run_key = jax.random.split(jax.random.key(seed))
    optimizer = training.adamw(training.warmup_cosine(3e-3, steps=steps, warmup=steps // 10), weight_decay=0.01)
    state = training.init_state(MODEL.init(init_key), optimizer)
    step = training.train_step(loss, optimizer)
    state, history = training.fit(step, state, itertools.repeat((), steps), key=run_key, every=max(1, steps // 10))
    return state.params, history[-1]["loss"]


def train_dictionaries(
    params: dict, seed: int, sites: list[str], *, steps: int, n_latents: int, architecture: saes.Architecture
) -> list[saes.SAE]:
    """One dictionary for each site, from one stream; BOS is left out."""
    documents = GRAMMAR.sample(jax.random.key(1_000 + seed), 8192, n_ctx=N_CTX)
    tokens = read_tokens(np.asarray(documents.tokens), n_ctx=N_CTX, batch_size=128, seed=seed, epochs=None)
    places = [saes_site(site) for site in sites]
    stream = ActivationStream(MODEL, params, tokens, places, batch_size=1024, key=jax.random.key(seed), exclude=(0,))
    configs = [
        saes.TrainConfig(
            sae=saes.SAEConfig(
                architecture=architecture, d_in=MODEL.config.d_model, n_latents=n_latents, site=site
            ),
            steps=steps, learning_rate=2e-3, warmup_steps=steps // 20, decay_steps=steps // 2,
            sparsity_warmup_steps=steps // 20, seed=seed, log_every=steps,
        )
        for site in sites
    ]  # fmt: skip
    return saes.train_ensemble(configs, stream, progress=False)


def saes_site(site: str) -> tuple[str, int]:
    """A dictionary's site as a stream takes it."""
    name, _, layer = site.rpartition(".")
    return name, int(layer)


@functools.partial(jax.jit, static_argnames=("site", "layer"))
def rows_at(params: dict, tokens, *, site: str, layer: int):
    """The residual stream [B, T, D]."""
    return ji.run(MODEL.forward, ji.capture(site, layers=(layer,)))(params, tokens)[1][site][0]


def residuals(params: dict, sae: saes.SAE, tokens):
    """What a dictionary reads, [B, T, D]."""
    site, layer = saes_site(sae.config.site)
    return rows_at(params, tokens, site=site, layer=layer)


def auroc(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The area under the ROC curve of each score for each label: [n, N], bool [n, K] -> [N, K]; ties count half."""
    ranks, labels = rankdata(scores, axis=0), labels.astype(np.float64)
    positive = labels.sum(0)
    negative = len(labels) - positive
    return (ranks.T @ labels - positive * (positive + 1) / 2) / np.maximum(positive * negative, 1.0)


def find(
    acts: np.ndarray, labels: np.ndarray, held_acts: np.ndarray, held_labels: np.ndarray
) -> tuple[list[int], list[float]]:
    """One latent for each label, chosen on the first rows, and its AUROC on the others.

    Of the latents whose AUROC is above .95 it is the one whose mean activation differs most; where there is none, the one of
    the largest AUROC.
    """
    area = auroc(acts, labels)
    with_it = acts.T @ (labels / np.maximum(labels.sum(0), 1))
    without = acts.T @ (~labels / np.maximum((~labels).sum(0), 1))
    best = np.where(area > 0.95, 1.0 + np.maximum(with_it - without, 0.0), area).argmax(0)
    held = auroc(held_acts, held_labels)
    return best.tolist(), [float(held[latent, j]) for j, latent in enumerate(best)]


def encoded(params: dict, sae: saes.SAE, documents) -> np.ndarray:
    """Latents of all tokens, [B, T, N]."""
    return np.asarray(jax.jit(sae.encode)(residuals(params, sae, documents.tokens)))


def topic_rows(acts: np.ndarray, documents, *, slots: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows from `WARM` on (behind articles alone, if so asked) and the topics of their documents, one column each."""
    kind = np.asarray(documents.kind)
    kept = (np.arange(N_CTX) >= WARM)[None] & ((kind == SLOT) | (not slots))
    topic = np.broadcast_to(np.asarray(documents.topic)[:, None], kept.shape)[kept]
    return acts[kept], topic[:, None] == np.arange(GRAMMAR.n_topics)


def mean_differences(rows, labels) -> jnp.ndarray:
    """For each label the mean of the rows that have it less the mean of those that have it not, [K, D]."""
    rows, labels = np.asarray(rows, np.float64), np.asarray(labels, np.float64)
    with_it = labels.T @ rows / labels.sum(0)[:, None]
    without = (1 - labels).T @ rows / (1 - labels).sum(0)[:, None]
    return jnp.asarray(with_it - without, jnp.float32)
