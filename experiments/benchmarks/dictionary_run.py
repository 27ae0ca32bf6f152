"""A run from tokens to a dictionary on stories260k, on one core: forward passes, shuffling and steps; TopK, k 32, float32.

Ours against SAELens's own store and trainer, on the same weights (its HookedTransformer), tokens and settings, 10 steps of each
turn by turn. With `--ensemble` instead 8 small dictionaries on one stream against 8 runs one after the other; with `--shares`
what our run spends on reading, forward passes, shuffling and steps.

    make parity            # makes .venv-parity
    taskset -c 0 .venv-parity/bin/python -m experiments.benchmarks.dictionary_run
    taskset -c 0 .venv-parity/bin/python -m experiments.benchmarks.dictionary_run --ensemble
    taskset -c 0 .venv-parity/bin/python -m experiments.benchmarks.dictionary_run --shares
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import numpy as np

from jaxinterp import activations, saes, weights

N_CTX, ROWS, LATENTS, K, RATE, CHUNK = 128, 2_048, 4_096, 32, 1e-3, 10
PROMPTS = 16
MEMBERS, SMALL, SMALL_K = 8, 512, 8
SITE = "resid_post.2"


def read(folder, n):
    """The model, and the first n contexts of the stories, each with its BOS in front."""
    lm = weights.load(folder / "stories260k")
    tokens = activations.read_tokens(folder / "tinystories.txt", lm.tokenizer, n_ctx=N_CTX, batch_size=64, pack=False)
    pieces = []
    while len(pieces) < n:
        pieces += [row for row, real in zip(*next(tokens)[:2], strict=True) if (np.asarray(real) >= 0).all()]
    return lm, np.stack(pieces[:n]).astype(np.int32)


def stream_of(lm, ids, **more):
    """Activations of the model."""
    tokens = activations.read_tokens(ids, n_ctx=N_CTX, batch_size=PROMPTS, pack=False, seed=0, epochs=None)
    return activations.ActivationStream(
        lm.model, lm.params, tokens, [SITE], batch_size=ROWS, key=jax.random.key(0), exclude=(), **more
    )


def ours(lm, ids, configs):
    """`saes.train_ensemble` with a stream of the model, a step at a time."""
    stream = stream_of(lm, ids)
    program = saes.make_program(configs, stacked=len(configs) > 1)
    state = None

    def steps(n):
        nonlocal state
        for _ in range(n):
            x = next(stream)[SITE]
            state = program.first(x, x) if state is None else state
            state, metrics = program.step(state, x, x)
        return float(np.mean(jax.block_until_ready((state, metrics))[1]["fvu"]))

    return steps


def config_of(architecture, n_latents, seed=0):
    sae = saes.SAEConfig(architecture=architecture, d_in=64, n_latents=n_latents, site=SITE)
    return saes.TrainConfig(sae=sae, steps=10**6, learning_rate=RATE, clip=1.0, seed=seed)


def hooked(lm):
    """TransformerLens's model with the same weights."""
    import torch
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    c = lm.config
    config = HookedTransformerConfig(
        n_layers=c.n_layers, d_model=c.d_model, n_ctx=c.n_ctx, n_heads=c.n_heads, d_head=c.d_head, d_mlp=c.d_mlp,
        d_vocab=c.d_vocab, n_key_value_heads=c.n_key_value_heads, act_fn="silu", normalization_type="RMS", gated_mlp=True,
        positional_embedding_type="rotary", rotary_dim=c.d_head, rotary_base=10_000, eps=c.eps, device="cpu",
    )  # fmt: skip
    model = HookedTransformer(config).eval()
    state = {name: torch.tensor(np.asarray(value)) for name, value in weights.to_transformer_lens(lm.params, c).items()}
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    return model


def check(lm, model, ids):
    """Both give the same logits."""
    import torch

    with torch.inference_mode():
        theirs = model(torch.tensor(ids[:2]).long()).numpy()
    own = np.asarray(lm.model.forward(lm.params, ids[:2]))
    error = float(np.abs(own - theirs).max() / np.abs(theirs).max())
    assert error < 1e-4, f"the models differ by {error}"
    return error


def sae_lens(model, ids):
    """SAELens's store of activations and its trainer, a step at a time."""
    import torch
    from datasets import Dataset
    from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.set_num_threads(1)
    config = LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(d_in=64, d_sae=LATENTS, k=K), model_name="stories260k", hook_name="blocks.2.hook_resid_post",
        dataset_path="given", is_dataset_tokenized=True, streaming=False, context_size=N_CTX, prepend_bos=False,
        n_batches_in_buffer=32, training_tokens=10**9, store_batch_size_prompts=PROMPTS, train_batch_size_tokens=ROWS, lr=RATE,
        lr_scheduler_name="constant", device="cpu", logger=LoggingConfig(log_to_wandb=False), checkpoint_path=None, verbose=False,
    )  # fmt: skip
    data = Dataset.from_dict({"tokens": ids.tolist()}).with_format("torch")
    runner = LanguageModelSAETrainingRunner(config, override_dataset=data, override_model=model)
    trainer = SAETrainer(
        cfg=config.to_sae_trainer_config(), sae=runner.sae, data_provider=runner.activations_store
    )  # fmt: skip

    def steps(n):
        for _ in range(n):
            trainer.n_training_steps += 1
            loss = trainer.step(next(trainer.data_provider)).loss.item()
        return loss

    return steps


def turns(calls, rounds):
    """Seconds of each call, turn by turn, after two rounds that do not count."""
    seconds = {name: [] for name in calls}
    for i in range(rounds + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if i >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def against_saelens(lm, ids, rounds):
    """One dictionary of 4,096 latents."""
    model = hooked(lm)
    error = check(lm, model, ids)
    calls = {"jaxinterp": ours(lm, ids, [config_of(saes.TopK(k=K), LATENTS)]), "SAELens": sae_lens(model, ids)}
    seconds = turns({name: lambda run=run: run(CHUNK) for name, run in calls.items()}, rounds)
    total = {name: sum(s) for name, s in seconds.items()}
    return {
        "work": f"TopK, {LATENTS} latents, k {K}, {ROWS} rows, contexts of {N_CTX}, {rounds} x {CHUNK} steps each, one core",
        "largest difference of logits": error,
        "median seconds of a step": {name: round(statistics.median(s) / CHUNK, 4) for name, s in seconds.items()},
        "SAELens / ours": round(total["SAELens"] / total["jaxinterp"], 2),
    }


def ensemble(lm, ids, rounds):
    """Eight small dictionaries; refills are part of the sums, so these are compared, not medians."""
    configs = [config_of(saes.TopK(k=SMALL_K), SMALL, seed) for seed in range(MEMBERS)]
    together, single = ours(lm, ids, configs), ours(lm, ids, configs[:1])
    seconds = turns({"together": lambda: together(CHUNK), "one": lambda: single(CHUNK)}, rounds)
    ratio = MEMBERS * sum(seconds["one"]) / sum(seconds["together"])
    return {
        "work": f"{MEMBERS} TopK dictionaries, {SMALL} latents, k {SMALL_K}, {ROWS} rows, {rounds} x {CHUNK} steps, one core",
        "seconds": {name: round(sum(s), 2) for name, s in seconds.items()},
        "eight runs in turn / together": round(ratio, 2),
    }


def shares(lm, ids, rounds):
    """Seconds of each part of our run; steps and batches are what refills leave of the whole."""
    stream, config = stream_of(lm, ids, timed=True), config_of(saes.TopK(k=K), LATENTS)
    program = saes.make_program([config])
    x = next(stream)[SITE]
    state, _ = program.step(program.first(x, x), x, x)  # compiles
    jax.block_until_ready(state)
    before, start = dict(stream.timings), time.perf_counter()
    for _ in range(rounds * CHUNK):
        x = next(stream)[SITE]
        state, _ = program.step(state, x, x)
        jax.block_until_ready(state)  # so that no step is counted with the refill behind it
    total = time.perf_counter() - start
    seconds = {name: value - before[name] for name, value in stream.timings.items()}
    seconds["step"] = total - sum(seconds.values())
    return {
        "work": f"TopK, {LATENTS} latents, k {K}, {ROWS} rows, {rounds * CHUNK} steps, one core",
        "shares": {name: round(value / total, 4) for name, value in seconds.items()},
    }


def main():
    """Prints the ratio, and adds it to the result beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--ensemble", action="store_true")
    parser.add_argument("--shares", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("dictionary_run.json"))
    arguments = parser.parse_args()
    lm, ids = read(arguments.data, 2_000)
    name, work = ("shares", shares) if arguments.shares else ("end to end", against_saelens)
    name, work = ("ensemble", ensemble) if arguments.ensemble else (name, work)
    result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    result[name] = work(lm, ids, arguments.rounds)
    print(json.dumps(result, indent=2))
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
