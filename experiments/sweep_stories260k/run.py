"""Where a model of 260 K parameters keeps "girl or boy".

    python -m experiments.sweep_stories260k.run --model ../shared/data/stories260k

Head, residual-stream and MLP sweeps on real prompts, each compared with a loop over whole forward passes; figures, results.json.
"""

import argparse
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxinterp as ji

ENDINGS = (
    "One day,",
    "Then,",
    "Every day,",
    "In the morning,",
    "At night,",
    "Today,",
    "After lunch,",
    "One sunny day,",
)
CLEAN = "Once upon a time, there was a little girl named Lily. "
CORRUPT = "Once upon a time, there was a little boy named Tim. "
SWEEPS = {
    "heads": dict(site="attn.z", over="layer,head"),
    "stream": dict(site="resid_pre", over="layer,position"),
    "mlps": dict(site="mlp.out", over="layer,position"),
}


def make_pairs(lm, endings):
    """Clean, corrupt [B, T], a mask, the last positions, the ids of " she" and " he"; pairs that do not align are left out."""
    rows = [(lm.encode(CLEAN + end)[0].tolist(), lm.encode(CORRUPT + end)[0].tolist()) for end in endings]
    rows = [(a, b) for a, b in rows if len(a) == len(b)]
    lengths = np.array([len(a) for a, _ in rows])
    pad = lambda row: row + [0] * (lengths.max() - len(row))
    clean, corrupt = (jnp.array([pad(pair[i]) for pair in rows]) for i in (0, 1))
    mask = jnp.asarray(np.arange(lengths.max())[None] < lengths[:, None])
    she, he = (lm.answer_token(CLEAN + ENDINGS[0], answer) for answer in (" she", " he"))
    return clean, corrupt, mask, lengths - 1, she, he


def loop_effects(lm, pairs, site, over):
    """Effects by prompt [layers, heads or positions, B], one whole forward pass a cell."""
    clean, corrupt, mask, last, she, he = pairs
    forward = lambda *handlers: ji.run(lm.model.forward, *handlers)
    acts = forward(ji.capture(site))(lm.params, clean, mask=mask)[1][site]
    axis = over.split(",")[1]
    sizes = (lm.config.n_layers, lm.config.n_heads if axis == "head" else clean.shape[1])
    rows = np.arange(len(last))

    @jax.jit
    def one(layer, i):
        i = i if axis == "head" else jnp.minimum(i, last)[:, None]  # a prompt without the position is not looked at
        logits = forward(ji.patch(site, per_layer=acts, layer=layer, **{axis: i}))(lm.params, corrupt, mask=mask)[0][
            rows, last
        ]
        return logits[:, she] - logits[:, he]

    plain = forward()(lm.params, corrupt, mask=mask)[0][rows, last]
    out = np.stack([one(jnp.int32(layer), jnp.int32(i)) for layer, i in itertools.product(*map(range, sizes))])
    out = out.reshape(*sizes, -1) - np.asarray(plain[:, she] - plain[:, he])
    there = np.ones((sizes[1], len(last)), bool) if axis == "head" else np.arange(sizes[1])[:, None] <= last
    return np.where(there, out, np.nan)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="the folder stories260k")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--smoke", action="store_true", help="two prompts")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lm = ji.load(options.model)
    pairs = make_pairs(lm, ENDINGS[:2] if options.smoke else ENDINGS)
    clean, corrupt, mask, last, she, he = pairs
    metric = ji.patching.logit_difference([she] * len(last), [he] * len(last), last)
    results = {"prompts": len(last)}
    for name, what in SWEEPS.items():
        effects = ji.patching.sweep(
            lm.model, lm.params, base=corrupt, source=clean, mask=mask, metric=metric, **what, tokenizer=lm.tokenizer,
            provenance=lm.source, keep=("prompts", "interval"), null="directions", progress=False,
        )  # fmt: skip
        want = loop_effects(lm, pairs, **what)
        got = effects.effect_by_prompt.values
        error = np.nanmax(np.abs(got - want)) / np.nanmax(np.abs(want))
        assert np.array_equal(np.isnan(got), np.isnan(want)) and error < 1e-5, error
        strongest = effects.normalized.argmax(...)
        results |= {
            "base": round(float(effects.base), 3),
            "source": round(float(effects.source), 3),
            name: {
                "strongest": {axis: int(i) for axis, i in strongest.items()},
                "normalized": round(float(effects.normalized.max()), 3),
                "largest null": round(float(np.nanmax(np.abs(effects.null)) / abs(effects.source - effects.base)), 3),
                "difference from the loop": float(f"{error:.1e}"),
            },
        }
        ji.viz.plot(effects).savefig(options.out / f"{name}.png", dpi=110)
        print(name, json.dumps(results[name]))
        print(effects.normalized.round(2).values)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
