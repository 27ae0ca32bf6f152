"""Receivers of a path patch: which inputs get what a sender changed, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError, SiteIndexError, closest
from jaxinterp._tree import pytree, static
from jaxinterp._typing import Array
from jaxinterp.models import TransformerConfig
from jaxinterp.tap import Handler, Site

KINDS = ("q", "k", "v", "mlp", "logits")
"""What can receive: the input of a head's query, key or value, the input of an MLP, the input of the final norm."""

SITES = {"q": "attn.q", "k": "attn.k", "v": "attn.v", "mlp": "mlp.in"}
"""Where the receivers of each kind are recorded and replaced.

A head's query is a function of its input alone (its read of the residual stream, `attn.q_in`), so that exchanging the query is
exchanging the input, and no copy of the stream by head is needed. The same holds for keys and values.
"""


@pytree
class Receivers:
    """The inputs that a path patch replaces. Other receivers of the same kinds are other data, and compile nothing.

    Attributes:
        chosen: by kind, True at what receives: "q" [L, H], "k" and "v" [L, K], "mlp" [L]. A kind without receivers is absent.
        logits: static; whether the logits receive.
    """

    chosen: Any
    logits: bool = static(default=False)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites to record."""
        return tuple(SITES[kind] for kind in self.chosen)

    def handlers(self, recorded: Mapping[str, Array]) -> tuple[Handler, ...]:
        """Edits that put what was recorded, [L, B, T, ...] by site, into the receivers and leave everything else."""
        return tuple(
            Handler(sites=(SITES[kind],), visit=_receive, per_layer={"value": recorded[SITES[kind]], "chosen": chosen})
            for kind, chosen in self.chosen.items()
        )

    @property
    def stay(self) -> bool:
        """Whether what they receive at a position reaches the logits of that position only.

        So for the logits themselves, and for queries and MLPs of the last layer.
        """
        if self.logits:
            return True
        behind = any(np.asarray(self.chosen[kind])[:-1].any() for kind in ("q", "mlp") if kind in self.chosen)
        return not behind and not {"k", "v"} & set(self.chosen)

    def last(self, kind: str) -> int:
        """The last layer with a receiver of a kind; -1 where there is none."""
        if kind not in self.chosen:
            return -1
        layers = np.flatnonzero(np.asarray(self.chosen[kind]).reshape(len(self.chosen[kind]), -1).any(1))
        return int(layers.max(initial=-1))


def _receive(site: Site, value: Any, state: Any, data: Any, layer_slice: Any, tap: Any) -> tuple[Any, Any, None]:
    chosen = layer_slice["chosen"]
    if chosen.ndim:  # by head: [H] to [1, 1, H, 1]
        chosen = chosen.reshape(1, 1, -1, 1)
    return jnp.where(chosen, layer_slice["value"], value), state, None


def make_receivers(receivers: Any, *, config: TransformerConfig) -> Receivers:
    """Reads a set of receivers.

    Args:
        receivers: one, or a list of: ("q", layer, head), ("k", layer, head), ("v", layer, head), ("mlp", layer), "logits". None
            in place of a layer or head means all of them. Heads of "k" and "v" are key/value heads.
        config: of the model.

    Raises:
        InputError: a receiver that is not understood, or an MLP in a model without any; all faults in one message.
        SiteIndexError: a layer or head that the model does not have.

    Example:
        >>> import jaxinterp as ji
        >>> config = ji.TransformerConfig(n_layers=2, d_model=8, n_ctx=8, n_heads=2, d_head=4, d_vocab=5, d_mlp=8)
        >>> make_receivers([("q", 1, 0), ("mlp", None)], config=config).chosen["q"].tolist()
        [[False, False], [True, False]]
    """
    if isinstance(receivers, str) or _is_one(receivers):
        receivers = [receivers]
    if not isinstance(receivers, Sequence) or not receivers:
        raise InputError(f"receivers={receivers!r}: name at least one. {_LEGAL}")
    faults, outside = [], []
    chosen: dict[str, np.ndarray] = {}
    for receiver in receivers:
        kind, *place = (receiver,) if isinstance(receiver, str) else receiver if _is_one(receiver) else (None,)
        sizes = _sizes(config).get(kind)
        if sizes is None or len(place) != len(sizes) or not all(i is None or _is_index(i) for i in place):
            faults.append(_fault(receiver, kind, config))
            continue
        wrong = [i for i, n in zip(place, sizes, strict=True) if i is not None and not 0 <= i < n]
        if wrong:
            has = " and ".join(f"{n} {what}" for n, what in zip(sizes, _names(str(kind)), strict=False))
            outside.append(f"{receiver!r}: the model has {has}")
            continue
        mask = chosen.setdefault(str(kind), np.zeros(sizes, bool))
        mask[tuple(slice(None) if i is None else int(i) for i in place)] = True
    if faults:
        raise InputError(f"receivers: {'; '.join(faults)}. {_LEGAL}")
    if outside:
        raise SiteIndexError(f"receivers: {'; '.join(outside)}. Layers and heads count from 0.")
    logits = chosen.pop("logits", None) is not None
    return Receivers(chosen={kind: chosen[kind] for kind in KINDS if kind in chosen}, logits=logits)


_LEGAL = (
    'Legal: ("q", layer, head), ("k", layer, head), ("v", layer, head), ("mlp", layer), "logits", or a list of these; '
    "None for all layers or heads."
)


def _is_one(receiver: Any) -> bool:
    """Whether it is one receiver, not several."""
    if not isinstance(receiver, tuple) or not receiver or not isinstance(receiver[0], str):
        return False
    return not any(isinstance(part, (str, tuple)) for part in receiver[1:])


def _is_index(i: Any) -> bool:
    return isinstance(i, (int, np.integer)) and not isinstance(i, bool)


def _sizes(config: TransformerConfig) -> dict[Any, tuple[int, ...]]:
    n, h, k = config.n_layers, config.n_heads, config.key_value_heads
    sizes: dict[Any, tuple[int, ...]] = {"q": (n, h), "k": (n, k), "v": (n, k), "logits": ()}
    return sizes if config.attn_only else {**sizes, "mlp": (n,)}


def _names(kind: str) -> tuple[str, str]:
    return "layers", "heads" if kind == "q" else "key/value heads"


def _fault(receiver: Any, kind: Any, config: TransformerConfig) -> str:
    if kind == "mlp" and config.attn_only:
        return f"{receiver!r}: the model has no MLPs"
    hint = "" if kind in KINDS or not isinstance(kind, str) else f" ({closest(kind, KINDS)})"
    return f"{receiver!r} is not understood{hint}"


def describe(receivers: Receivers) -> str:
    """The receivers in one line: "q 5.2, k 5.2, mlp 3, logits"."""
    names = [
        f"{kind} {'.'.join(map(str, place))}"
        for kind, chosen in receivers.chosen.items()
        for place in np.argwhere(np.asarray(chosen)).tolist()
    ]
    return ", ".join(names + ["logits"] * receivers.logits)
