"""What carries the pronoun: every head patched from a she-name's run into a he-name's run, and the other way."""

import dataclasses

import jax
import numpy as np

import jaxinterp as ji
from jaxinterp import patching
from jaxinterp.tasks import pronouns


def head_table(lm, pairs, *, to_she: bool) -> np.ndarray:
    """The fraction of the gap in logit difference that each head's `attn.z` carries alone, [L, H]."""
    base, source = (pairs.corrupt, pairs.clean) if to_she else (pairs.clean, pairs.corrupt)
    result = patching.sweep(
        lm.model,
        lm.params,
        base=base,
        source=source,
        site="attn.z",
        over="layer,head",
        metric=patching.logit_difference(pairs.correct, pairs.wrong, pairs.answer_position),
        mask=pairs.mask,
        progress=False,
    )
    return np.asarray(result["normalized"])


def role_table(lm, pairs, site: str) -> dict[str, list[float]]:
    """The same for another site, by layer: at the first and last mention of the name, and at the end of the prompt."""
    result = patching.sweep(
        lm.model,
        lm.params,
        base=pairs.corrupt,
        source=pairs.clean,
        site=site,
        over="layer,role",
        roles={role: pairs.roles[role] for role in ("name", "last_name", "end")},
        metric=patching.logit_difference(pairs.correct, pairs.wrong, pairs.answer_position),
        mask=pairs.mask,
        progress=False,
    )
    return {
        str(role): np.asarray(result["normalized"].sel(role=role)).round(3).tolist() for role in result["role"].values
    }


def _gap(lm, pairs, tokens, *handlers) -> np.ndarray:
    """Logit of " She" minus logit of " He" at the end of each prompt."""
    logits = ji.run(lm.model.forward, *handlers)(lm.params, tokens, mask=pairs.mask)[0]
    rows = np.arange(len(tokens))
    last = np.asarray(logits)[rows, np.asarray(pairs.answer_position)]
    return last[rows, np.asarray(pairs.correct)[:, 0]] - last[rows, np.asarray(pairs.wrong)[:, 0]]


@dataclasses.dataclass(frozen=True)
class Gaps:
    """The gap of every prompt in the two runs without edits."""

    clean: np.ndarray
    corrupt: np.ndarray


def _effect(lm, pairs, gaps: Gaps, *handlers) -> dict:
    """He-runs under edits: the fraction of the gap that they carry, and how many he-prompts turn to "She"."""
    patched = _gap(lm, pairs, pairs.corrupt, *handlers)
    turned = (gaps.corrupt < 0) & (gaps.clean > 0)
    fraction = float((patched - gaps.corrupt).mean() / (gaps.clean - gaps.corrupt).mean())
    return {"fraction": round(fraction, 4), "turned": int((patched[turned] > 0).sum()), "of": int(turned.sum())}


def patch_heads(lm, pairs, gaps: Gaps, acts, heads) -> dict:
    """All of `heads` at once, with their values in the she-run, `acts` [L, B, T, H, E]."""
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)
    edits = [ji.patch("attn.z", acts[i], layer=i, head=sorted(chosen)) for i, chosen in sorted(by_layer.items())]
    return _effect(lm, pairs, gaps, *edits)


def lookup(lm, pairs, gaps: Gaps) -> dict:
    """Is it the name's embedding that later layers read, or what the first layer makes of it?

    `embedding_alone`: the she-name at the embedding, while layer 0 writes at the name what it wrote for the he-name.
    `first_mlp_alone`: the he-name's embedding, while the MLP of layer 0 writes at the name what it writes for the she-name.
    """
    sites = ("embed", "attn.out", "mlp.out")
    she, he = (
        ji.run(lm.model.forward, ji.capture(*sites))(lm.params, tokens, mask=pairs.mask)[1]
        for tokens in (pairs.clean, pairs.corrupt)
    )
    at = dict(position=np.stack([np.asarray(pairs.roles[role]) for role in ("name", "last_name")], axis=1))
    held = [ji.patch(site, he[site][0], layer=0, **at) for site in ("attn.out", "mlp.out")]
    return {
        "embedding_alone": _effect(lm, pairs, gaps, ji.patch("embed", she["embed"], **at), *held),
        "first_mlp_alone": _effect(lm, pairs, gaps, ji.patch("mlp.out", she["mlp.out"][0], layer=0, **at)),
    }


def study(lm, *, n: int = 48, seed: int = 0, counts=(1, 2, 3, 5, 8), controls: int = 5) -> dict:
    """The circuit's shape: the strongest heads alone and together, by layer, and how many it takes.

    Args:
        lm: a language model whose tokenizer keeps names whole.
        n: pairs of openings.
        seed: of pairs and controls.
        counts: how many of the strongest heads are patched together.
        controls: how many draws of five other heads.
    """
    pairs = pronouns(jax.random.key(seed), n, lm.tokenizer)
    gaps = Gaps(_gap(lm, pairs, pairs.clean), _gap(lm, pairs, pairs.corrupt))
    she, he = head_table(lm, pairs, to_she=True), head_table(lm, pairs, to_she=False)
    mean = (she + he) / 2
    order = np.dstack(np.unravel_index(np.argsort(-mean, axis=None), mean.shape))[0]
    top = [(int(layer), int(head)) for layer, head in order]
    most, rng = max(counts), np.random.default_rng(seed)
    others = top[most:]
    acts = ji.run(lm.model.forward, ji.capture("attn.z"))(lm.params, pairs.clean, mask=pairs.mask)[1]["attn.z"]
    together = lambda heads: patch_heads(lm, pairs, gaps, acts, heads)
    random = [[others[i] for i in rng.permutation(len(others))[:5]] for _ in range(controls)]
    return {
        "pairs": n,
        "heads": [
            {"head": f"{a}.{b}", "to_she": round(float(she[a, b]), 4), "to_he": round(float(he[a, b]), 4)}
            for a, b in top[:most]
        ],
        "by_layer": mean.clip(min=0).sum(axis=1).round(4).tolist(),
        "together": {str(k): together(top[:k]) for k in counts},
        "all_of_layer_0": together([head for head in top if head[0] == 0]),
        "all_but_layer_0": together([head for head in top if head[0] > 0]),
        "five_random_others": [together(heads)["fraction"] for heads in random],
        "heads_above_0.1": int((mean > 0.1).sum()),
        "residual": role_table(lm, pairs, "resid_pre"),
        "mlp_writes": role_table(lm, pairs, "mlp.out"),
        "lookup_of_the_name": lookup(lm, pairs, gaps),
    }
