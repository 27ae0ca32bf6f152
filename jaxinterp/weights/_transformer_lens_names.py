"""What TransformerLens calls our parameters, and what its state dicts hold beside them: a table.

Most names are the same, since ours follow TransformerLens's; `RENAMED` lists the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxinterp.models import Model, TransformerConfig
from jaxinterp.weights._mapping import flatten

Shape = tuple[int, ...]


class Tensor(NamedTuple):
    """One tensor of a state dict.

    Attributes:
        path: our parameter; None: we have none.
        layer: which layer of it; None: it is in no layer.
        shape: the tensor's.
        same_as: where it has no parameter, the tensor that it is a copy of; None: it is zero.
        transposed: whether it is the copy's transpose.
    """

    path: str | None
    layer: int | None
    shape: Shape
    same_as: str | None = None
    transposed: bool = False


def is_encoder(c: TransformerConfig) -> bool:
    """Whether TransformerLens has the model as a HookedEncoder."""
    return c.norm_position == "post"


def _is_output(c: TransformerConfig) -> bool:
    return c.norm_position == "output"


def _always(c: TransformerConfig) -> bool:
    return True


RENAMED: tuple[tuple[str, str, Callable[[TransformerConfig], bool]], ...] = (
    ("embed.W_E", "embed.embed.W_E", is_encoder),
    ("embed.W_pos", "embed.pos_embed.W_pos", is_encoder),
    ("embed.W_pos", "pos_embed.W_pos", _always),
    ("embed.W_token_type", "embed.token_type_embed.W_token_type", is_encoder),
    ("blocks.ln1_post.", "blocks.ln1.", _is_output),
    ("blocks.ln2_post.", "blocks.ln2.", _is_output),
)
"""The beginning of our path, that of TransformerLens's name, and for which configs; the first that fits."""

GROUPED = {f"blocks.attn.{name}": f"blocks.attn._{name}" for name in ("W_K", "W_V", "b_K", "b_V")}
"""Names in its models with grouped queries: those with fewer key/value heads, and some with as many (Gemma 7B's)."""

BUFFERS = ("attn.mask", "attn.IGNORE", "attn.rotary_sin", "attn.rotary_cos")
"""In each block, what is not learned: it follows from the config. Those of RoPE are compared with it."""

OTHER_HEADS = ("pooler.W", "pooler.b", "nsp_head.W", "nsp_head.b")
"""Of HookedEncoder: heads that no logits depend on, and that our models do not have."""


def name_of(path: str, config: TransformerConfig, layer: int | None = None, grouped: bool = False) -> str:
    """TransformerLens's name for one of our parameters, in one layer."""
    name = GROUPED.get(path, path) if grouped else path
    for ours, theirs, fits in RENAMED:
        if path.startswith(ours) and fits(config):
            name = theirs + path[len(ours) :]
            break
    return name if layer is None else name.replace("blocks.", f"blocks.{layer}.", 1)


def tensors(config: TransformerConfig, grouped: bool) -> dict[str, Tensor]:
    """Every tensor of a state dict by name, without buffers and other heads; `grouped` says which names keys and values have.

    With a parameter of ours, or without: biases that TransformerLens always has, the unembedding of a model that ties it to the
    embedding, the second norm of a block that has one for both (GPT-J's).
    """
    c, found = config, {}
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(Model(config=c).param_shapes()).items()}
    for path, shape in shapes.items():
        if path == "blocks.mlp.b_gate":  # TransformerLens has none
            continue
        for layer in range(c.n_layers) if path.startswith("blocks.") else [None]:
            own = shape if layer is None else shape[1:]
            own = (own[0] * own[1],) if c.qk_norm == "all" and path.endswith("_norm.w") else own
            found[name_of(path, c, layer, grouped)] = Tensor(path, layer, own)
    for path, shape in _biases(c).items():
        for layer in range(c.n_layers) if path.startswith("blocks.") else [None]:
            found.setdefault(name_of(path, c, layer, grouped), Tensor(None, layer, shape))
    if c.tie_word_embeddings:
        copy = Tensor(None, None, (c.d_model, c.outputs), name_of("embed.W_E", c), transposed=True)
        found.setdefault("unembed.W_U", copy)
    if c.shared_norm:
        for layer, letter in (
            (i, s) for i in range(c.n_layers) for s in ("wb" if c.normalization_type == "LN" else "w")
        ):
            found[f"blocks.{layer}.ln2.{letter}"] = Tensor(None, layer, (c.d_model,), f"blocks.{layer}.ln1.{letter}")
    return found


def _biases(c: TransformerConfig) -> dict[str, Shape]:
    h, k, e, d, f = c.n_heads, c.key_value_heads, c.d_head, c.d_model, c.d_mlp
    zero: dict[str, Shape] = {
        "blocks.attn.b_Q": (h, e), "blocks.attn.b_K": (k, e), "blocks.attn.b_V": (k, e), "blocks.attn.b_O": (d,),
        "unembed.b_U": (c.outputs,),
    }  # fmt: skip
    if f is not None:
        zero |= {"blocks.mlp.b_in": (f,), "blocks.mlp.b_out": (d,)}
    if c.positional_embedding_type == "none":
        zero["embed.W_pos"] = (c.n_ctx, d)
    return zero


def is_prenorm(name: str) -> bool:
    """Whether a tensor is of a norm that TransformerLens folds: its models without norm weights lack it."""
    return name.startswith("ln_final.") or any(f".{norm}." in name for norm in ("ln1", "ln2"))


def unsayable(c: TransformerConfig) -> list[str]:
    """What TransformerLens has no model for."""
    faults = []
    if is_encoder(c):
        if not (c.embed_norm and c.mlm_head and c.n_token_types == 2) or c.final_norm:
            faults.append(
                "its encoder always has embed_norm, mlm_head and n_token_types=2, and no final_norm; here are "
                f"embed_norm={c.embed_norm}, mlm_head={c.mlm_head}, n_token_types={c.n_token_types}, final_norm={c.final_norm}"
            )
    else:
        if c.mlm_head or c.n_token_types is not None:
            faults.append(
                f"only its encoder (norm_position='post') has {'mlm_head' if c.mlm_head else 'n_token_types'}"
            )
        if c.embed_norm and c.positional_embedding_type == "standard":
            faults.append("its embed_norm stands before the position embedding is added, ours behind")
        if not c.final_norm and c.normalization_type is not None:
            faults.append("it always has a norm before the unembedding, and final_norm is False")
    return faults
