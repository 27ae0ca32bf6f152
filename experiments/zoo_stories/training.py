"""The training run of `stories`: rows of 128 tokens first, rows of the whole context at the end."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import jaxinterp as ji
from experiments.zoo_stories import data
from jaxinterp import training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides the outcome, beside the data."""

    d_vocab: int = 1536
    n_layers: int = 6
    d_model: int = 128
    n_heads: int = 8
    n_key_value_heads: int = 4
    d_mlp: int = 320
    n_ctx: int = 256
    initializer_range: float = 0.05
    steps: int = 2000
    row: int = 128
    batch: int = 16
    long_steps: int = 400
    long_batch: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    warmup: int = 100
    dropout: float = 0.1
    head_dropout: float = 0.2
    seed: int = 0


SMOKE = Settings(
    d_vocab=640, n_layers=2, d_model=32, n_heads=4, n_key_value_heads=2, d_mlp=64, n_ctx=64, steps=30, row=32, batch=4,
    long_steps=5, long_batch=2, warmup=5,
)  # fmt: skip
"""So small that a test can run it: nothing is learned."""


def make_model(settings: Settings) -> ji.Model:
    """A Llama: RMSNorm, RoPE, grouped-query attention, gated SiLU MLP, tied embeddings, no biases."""
    return ji.Model(
        config=ji.TransformerConfig(
            n_layers=settings.n_layers,
            d_model=settings.d_model,
            n_ctx=settings.n_ctx,
            n_heads=settings.n_heads,
            n_key_value_heads=settings.n_key_value_heads,
            d_head=settings.d_model // settings.n_heads,
            d_mlp=settings.d_mlp,
            d_vocab=settings.d_vocab,
            act_fn="silu",
            gated_mlp=True,
            normalization_type="RMS",
            positional_embedding_type="rotary",
            attention_bias=False,
            attention_output_bias=False,
            mlp_bias=False,
            tie_word_embeddings=True,
            initializer_range=settings.initializer_range,
        )
    )


def make_loss(model: ji.Model, settings: Settings) -> training.Loss:
    """The cost of the next token under dropout: of features at embedding and MLP writes, of whole heads in attention."""

    def loss(params, batch, key):
        keys = jax.random.split(key, 3)
        handlers = [
            training.dropout("embed", settings.dropout, key=keys[0]),
            training.dropout("attn.z", settings.head_dropout, key=keys[1], share="TE"),
            training.dropout("mlp.out", settings.dropout, key=keys[2]),
        ]
        return training.next_token_loss(model, params, batch, handlers=handlers)

    return loss


def train(
    settings: Settings,
    stories: list[np.ndarray],
    report: Callable[[training.TrainState, dict], None],
    *,
    every: int = 100,
) -> tuple[ji.Model, dict, list[dict]]:
    """Trains from random weights.

    Args:
        settings: of the run.
        stories: token ids of the training part.
        report: see `training.fit`.
        every: steps between two reports.

    Returns:
        The model, its parameters and the history.
    """
    model = make_model(settings)
    init_key, run_key = jax.random.split(jax.random.key(settings.seed))
    total = settings.steps + settings.long_steps
    rate = training.warmup_cosine(settings.learning_rate, steps=total, warmup=settings.warmup)
    optimizer = training.adamw(rate, weight_decay=settings.weight_decay)
    step = training.train_step(make_loss(model, settings), optimizer)
    state = training.init_state(model.init(init_key), optimizer)
    history = []
    for n_ctx, batch, steps in (
        (settings.row, settings.batch, settings.steps),
        (settings.n_ctx, settings.long_batch, settings.long_steps),
    ):
        rows = data.batches(stories, n_ctx=n_ctx, batch=batch, steps=steps, seed=settings.seed + n_ctx)
        state, part = training.fit(step, state, rows, key=run_key, every=every, report=report)
        history += part
    return model, state.params, history


def nats_per_byte(model: ji.Model, params: dict, stories: list[np.ndarray], n_bytes: int, *, chunk: int = 16) -> float:
    """The cost of whole stories, their ends included, over the bytes of their text."""
    rows, weights = data.scoring_windows(stories, model.config.n_ctx)
    cost = jax.jit(lambda p, r, w: (training.token_nats(model.forward(p, r[:, :-1]), r[:, 1:]) * w).sum())
    total = 0.0
    for start in range(0, len(rows), chunk):
        missing = max(0, start + chunk - len(rows))
        r, w = (np.pad(a[start : start + chunk], ((0, missing), (0, 0))) for a in (rows, weights))
        total += float(cost(params, r, w))
    return total / n_bytes


def _names(tree: dict) -> list[str]:
    """The path of each leaf, such as `blocks.0.attn.W_Q`."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return [".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path in paths]


def save_checkpoint(params: dict, path: Path) -> None:
    """Raw parameters by their path."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.asarray(x) for name, x in zip(_names(params), jax.tree.leaves(params), strict=True)}, path)


def load_checkpoint(model: ji.Model, path: Path) -> dict:
    """The inverse of `save_checkpoint`."""
    from safetensors.numpy import load_file

    shapes, tensors = model.param_shapes(), load_file(path)
    return jax.tree.unflatten(jax.tree.structure(shapes), [jax.numpy.asarray(tensors[name]) for name in _names(shapes)])
