"""What an intervention does: to the words of a topic, to all else, in generated text, to refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxinterp as ji
from experiments.steering.subject import ASK, GRAMMAR, MODEL, N_CTX, SLOT, WARM, saes_site
from jaxinterp import saes
from jaxinterp.tasks import TopicDocuments

WORD_TOPICS, WORD_KINDS = GRAMMAR.word_topics, GRAMMAR.word_kinds
REFUSE, OK = GRAMMAR.words.index("REFUSE"), GRAMMAR.words.index("OK")
LEGAL = (GRAMMAR.follows > 0)[:, WORD_KINDS].astype(np.float32)
"""[kinds, V], which tokens the grammar allows behind each kind."""
BEHIND_BOS = range(1, N_CTX)


def clamp(sae: saes.SAE, latent, value) -> tuple:
    """A latent held at a value everywhere but at BOS, the dictionary's error kept."""
    value = jnp.asarray(value, jnp.float32)
    return saes.splice(sae, exclude_positions=(0,)), ji.patch("sae.latents", value, feature=latent)


def push(sae: saes.SAE, vector) -> tuple:
    """A vector added where the dictionary reads, everywhere but at BOS."""
    site, layer = saes_site(sae.config.site)
    return (ji.add(site, vector, layer=layer, position=BEHIND_BOS),)


def remove(sae: saes.SAE, vector) -> tuple:
    """A direction projected out of what the dictionary reads, everywhere but at BOS."""
    site, layer = saes_site(sae.config.site)
    return (ji.project_out(site, vector, layer=layer, position=BEHIND_BOS),)


def hold(sae: saes.SAE, unit, level) -> tuple:
    """The part along a direction of length 1 set to a level, as a clamp does with a latent; everywhere but at BOS."""
    site, layer = saes_site(sae.config.site)
    data = {"unit": unit, "level": jnp.asarray(level, jnp.float32)}
    return (ji.edit(site, _held, data, layer=layer, position=BEHIND_BOS),)


def _held(x, data):
    along = jnp.einsum("...d,d->...", x, data["unit"], precision="highest")
    return x + (data["level"] - along)[..., None] * data["unit"].reshape((1,) * (x.ndim - 1) + (-1,))


@functools.partial(jax.jit, static_argnames="make")
def log_probabilities(params, tokens, make=None, *data):
    """[B, T, V], under the handlers that `make(*data)` gives."""
    handlers = () if make is None else make(*data)
    return jax.nn.log_softmax(ji.run(MODEL.forward, *handlers)(params, tokens)[0])


@jax.jit
def outcome(logs, clean, documents: TopicDocuments, topic) -> dict:
    """Means over positions from `WARM` on.

    none, other, own: the probability of the topic's words behind an article, in documents of no topic, another, this one;
    anywhere: the same behind any token, in documents that are not of the topic;
    side_kl: KL(unedited to edited) in nats where no content word follows, legal: the probability of what the grammar allows,
    answer: the probability of the right answer; in documents that are not of the topic.
    """
    probs, late = jnp.exp(logs), (jnp.arange(N_CTX) >= WARM)[None]
    is_slot, is_ask = (documents.kind == SLOT) & late, (documents.kind == ASK) & late
    own = (documents.topic == topic)[:, None]
    none = (documents.topic == GRAMMAR.n_topics)[:, None]
    mean = lambda x, where: jnp.sum(jnp.where(where, x, 0.0)) / jnp.maximum(jnp.sum(where, dtype=jnp.float32), 1.0)
    words = (jnp.asarray(WORD_TOPICS) == topic).astype(jnp.float32)
    mass = jnp.dot(probs, words, precision="highest")
    legal = jnp.sum(probs * jnp.asarray(LEGAL)[documents.kind], -1)
    kl = jnp.sum(jnp.exp(clean) * (clean - logs), -1)
    answer = jnp.where(documents.triggered, probs[..., REFUSE], probs[..., OK])
    return {
        "none": mean(mass, is_slot & none), "other": mean(mass, is_slot & ~none & ~own), "own": mean(mass, is_slot & own),
        "anywhere": mean(mass, late & ~own), "side_kl": mean(kl, late & ~is_slot & ~own), "legal": mean(legal, late & ~own),
        "answer": mean(answer, is_ask & ~own),
    }  # fmt: skip


@functools.partial(jax.jit, static_argnames=("make", "new"))
def continued(params, prompts, key, make=None, *data, new=N_CTX - WARM + 1):
    """Sampled continuations at temperature 1, the prompts in front."""
    handlers = () if make is None else make(*data)
    write = functools.partial(ji.generate, MODEL, max_new_tokens=new, temperature=1.0)
    return ji.run(write, *handlers)(params, prompts, key=key)[0]


def text_outcome(tokens, topic: int) -> dict[str, float]:
    """Of generated text: the share of content words that are of the topic, of all tokens, and of legal successions."""
    tokens = np.asarray(tokens)
    new, topics = tokens[:, WARM:], WORD_TOPICS[tokens[:, WARM:]]
    legal = LEGAL[WORD_KINDS[tokens[:, WARM - 1 : -1]], new]
    of_topic = (topics == topic).sum()
    return {
        "of_content": float(of_topic / max((topics >= 0).sum(), 1)), "of_all": float(of_topic / new.size),
        "legal": float(legal.mean()),
    }  # fmt: skip


def refusals(logs, documents: TopicDocuments) -> dict[str, float]:
    """Where a question stands: how probable a refusal is, and how often it is the most probable token."""
    logs, asks = np.asarray(logs), np.asarray(documents.kind) == ASK
    triggered = np.asarray(documents.triggered)
    numbers = {}
    for name, where in (("triggered", asks & triggered), ("untriggered", asks & ~triggered)):
        numbers[name] = float(np.exp(logs[where][:, REFUSE]).mean())
        numbers[f"{name}_first"] = float((logs[where].argmax(-1) == REFUSE).mean())
        numbers[f"{name}_ok"] = float(np.exp(logs[where][:, OK]).mean())
    return numbers
