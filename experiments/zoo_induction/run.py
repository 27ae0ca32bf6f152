"""Makes the zoo's models `induction` and `induction-1l` again: `python -m experiments.zoo_induction.run --out FOLDER`."""

import argparse
import itertools
import json
import time
from pathlib import Path

import jax
import numpy as np

import jaxinterp as ji
from experiments.zoo_induction import measure
from jaxinterp import training
from jaxinterp.tasks import repeated_tokens

KEPT = (0, 500, 750, 1000, 1050, 1100, 1150, 1200, 1250, 1500, 2000)
"""Steps whose parameters are kept, beside the last: dense where the change happens."""


def make_model(n_layers: int) -> ji.Model:
    """Attention only, no norm, no biases, learned positions."""
    return ji.Model(
        config=ji.TransformerConfig(
            n_layers=n_layers, d_model=64, n_ctx=48, n_heads=4, d_head=16, d_vocab=64, attn_only=True, normalization_type=None,
            attention_bias=False, attention_output_bias=False, initializer_range=0.25,
        )
    )  # fmt: skip


def train(n_layers: int, *, steps: int, seed: int, every: int, keep) -> tuple[ji.Model, dict, list[dict]]:
    """Trains on repeated random tokens with a period that differs by sequence.

    Args:
        n_layers: 2, or 1 for the control.
        steps: of the run.
        seed: of weights and data.
        every: steps between two measurements.
        keep: called with (step, params) at every measurement.

    Returns:
        The model, its parameters, and the measurements.
    """
    model = make_model(n_layers)
    c = model.config
    batch = measure.fixed_batch(c, 256)
    scores = jax.jit(lambda p: training.token_nats(model.forward(p, batch.tokens)[:, :-1], batch.tokens[:, 1:]))

    def loss(params, _, key):
        data = repeated_tokens(key, 64, d_vocab=c.d_vocab, n_ctx=c.n_ctx, period=measure.PERIODS)
        return training.next_token_loss(model, params, data.tokens)

    def report(state, row):
        known = np.asarray(batch.predictable[:, :-1])
        row["repeat_loss"] = float(np.asarray(scores(state.params))[known].mean())
        row["prefix_matching"] = float(head_scores(state.params)["prefix_matching"].max())
        keep(int(row["step"]), state.params)
        print(json.dumps({k: round(v, 4) for k, v in row.items()}), flush=True)

    def head_scores(params):
        return measure.head_scores(model, params, batch.tokens)

    init_key, run_key = jax.random.split(jax.random.key(seed))
    params = model.init(init_key)
    optimizer = training.adamw(1e-3, b2=0.999, weight_decay=0.01)
    keep(0, params)
    state, history = training.fit(
        training.train_step(loss, optimizer),
        training.init_state(params, optimizer),
        itertools.repeat((), steps),
        key=run_key,
        every=every,
        report=report,
    )
    return model, state.params, history


def describe(model: ji.Model, params: dict, history: list[dict], n: int) -> dict:
    """Every figure of the card."""
    batch = measure.fixed_batch(model.config, n, seed=20_000)
    scores = measure.head_scores(model, params, batch.tokens)
    whole = measure.copying(model, params, batch=batch)
    prefix, previous = scores["prefix_matching"], scores["previous_token"]
    best = np.unravel_index(prefix.argmax(), prefix.shape)
    layers, heads = prefix.shape
    without = lambda *handlers: measure.copying(model, params, *handlers, batch=batch)["repeat_loss"]
    induction = [np.flatnonzero(row > 0.5) for row in prefix]
    together = [ji.mean("attn.z", layer=i, head=row) for i, row in enumerate(induction) if row.size]
    return {
        **whole,
        "prefix_matching": prefix.round(4).tolist(),
        "previous_token": previous.round(4).tolist(),
        "best_prefix_matching": float(prefix.max()),
        "best_head": ".".join(str(int(i)) for i in best),
        "repeat_loss_without_head": {
            f"{i}.{j}": without(ji.mean("attn.z", layer=i, head=j)) for i in range(layers) for j in range(heads)
        },
        "induction_heads": [f"{i}.{j}" for i, row in enumerate(induction) for j in row],
        "repeat_loss_without_induction_heads": without(*together),
        **measure.phase_change(history),
        "seconds": history[-1]["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the models and results.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--smoke", action="store_true", help="a run of seconds that learns nothing, to test the script")
    arguments = parser.parse_args()
    steps, every, n = (20, 10, 16) if arguments.smoke else (arguments.steps, 50, 1024)
    results: dict = {"seed": arguments.seed, "steps": steps}
    for name, n_layers in (("induction", 2), ("induction-1l", 1)):
        start, kept = time.perf_counter(), {}

        def keep(step, params, kept=kept):
            if step in KEPT:
                kept[step] = jax.tree.map(np.asarray, params)

        model, params, history = train(n_layers, steps=steps, seed=arguments.seed, every=every, keep=keep)
        results[name] = {**describe(model, params, history, n), "history": history}
        folder = arguments.out / name
        ji.save(ji.LanguageModel(model=model, params=params), folder)
        if n_layers == 2:
            for step, earlier in kept.items():
                ji.save(ji.LanguageModel(model=model, params=earlier), folder / "steps" / f"{step:04}")
        shown = {k: v for k, v in results[name].items() if k != "history"}
        print(name, json.dumps(shown), f"{time.perf_counter() - start:.0f} s", flush=True)
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
