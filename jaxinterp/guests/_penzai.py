"""Penzai's transformers as guests."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from jaxinterp._errors import InputError, SiteTypeError, closest
from jaxinterp._typing import Array, Params
from jaxinterp.guests._names import Found, Hooks, PathError, collect, usual_promotion
from jaxinterp.tap import IDENTITY, Tap

_NOTHING: Mapping[str, str] = MappingProxyType({})
# Penzai's names of axes, in the order in which a site has them, and our letters. Any other name stands last, as features.
_LETTERS = {
    "batch": "B", "seq": "T", "heads": "H", "head_groups": "K", "query_heads": "H", "kv_seq": "S", "projection": "E",
    "embedding": "D", "neurons": "F", "vocabulary": "V",
}  # fmt: skip


def _penzai() -> Any:
    """Penzai, imported when a model of it comes; it is not among the dependencies."""
    from penzai import pz  # pyright: ignore[reportMissingImports]

    return pz


def from_penzai(
    model: Any, outputs: Mapping[str, str] = _NOTHING, *, inputs: Mapping[str, str] = _NOTHING
) -> tuple[Callable[..., Any], Params]:
    """A penzai language model (Llama, GPT-NeoX, Gemma, ...) as a function with taps, and its parameters.

    Sites are what the named layers return or are given. The tap also goes through the model as a side input, so that a layer of
    one's own makes a site by one line (see `tap_named`).

    Args:
        model: from `penzai.models.transformer.variants`, with a layer for each block (`use_layer_stack=False`), or any layer that
            maps tokens (batch, seq) to logits (batch, seq, vocabulary). It is not changed.
        outputs: site names by layer: `{"TransformerBlock.*": "resid_post", "TransformerBlock.*.Attention": "attn.out"}`. A path
            is names from the outside in, each of a class, an attribute or a `NamedGroup`; layers between need no mention. Where
            a name means several layers, a number behind it says which one (`Residual.0`), and one `*` that they are the
            model's layers, counted from 0.
        inputs: the same, for what layers are given.

    Returns:
        `forward(params, tokens, *, tap=IDENTITY, **side_inputs)` -> logits [B, T, V], with tokens int32 [B, T]; and `params`: the
        variables by label. Make the two once: jit knows a function by identity. What the call changes in variables is dropped.
        Sites have the axes of penzai's named arrays in our order: B T H E, B T D, B H T S (patterns); head groups and the query
        heads of each are one axis H, group by group.

    Raises:
        InputError: paths that name no layer, several where one is meant, or a layer inside of a `LayerStack`; all together.
        SiteTypeError: (when run) a value that is not one named array.

    Example:
        >>> import jax, jax.numpy as jnp, jaxinterp as ji
        >>> from penzai.models.transformer.variants import llamalike_common as llama
        >>> config = llama.LlamalikeTransformerConfig(
        ...     num_kv_heads=1, query_head_multiplier=2, embedding_dim=4, projection_dim=2, mlp_hidden_dim=8,
        ...     num_decoder_blocks=3, vocab_size=7, mlp_variant="swiglu", tie_embedder_and_logits=False,
        ... )
        >>> model = llama.build_llamalike_transformer(config, init_base_rng=jax.random.key(0))
        >>> forward, params = ji.guests.from_penzai(model, {"TransformerBlock.*.Softmax": "attn.pattern"})
        >>> ji.sites(forward, params, jnp.zeros((1, 5), jnp.int32))["attn.pattern"].stacked_shape
        (3, 1, 2, 5, 5)
    """
    pz = _penzai()
    if not isinstance(model, pz.nn.Layer):
        raise InputError(f"from_penzai got {type(model).__name__}; give a layer of penzai, such as a TransformerLM.")
    slots, variables = pz.unbind_variables(model, freeze=True)
    root = _node(slots)
    hooks = collect(functools.partial(_find, root), inputs, outputs)
    tapped = _rebuilt(slots, (), hooks)

    def forward(params: Params, tokens: Array, *, tap: Tap = IDENTITY, **side_inputs: Any) -> Array:
        with usual_promotion():
            named = pz.nx.wrap(tokens, "batch", "seq")
            logits, _ = tapped.stateless_call(tuple(params.values()), named, tap=tap, **side_inputs)
            return logits.unwrap("batch", "seq", "vocabulary")

    return forward, {str(variable.label): variable for variable in variables}


class _Node(NamedTuple):
    """One part of a model, with the names under which a path may mention it."""

    path: tuple[Any, ...]
    names: frozenset[str]
    children: tuple[_Node, ...]
    is_layer: bool
    is_stack: bool

    def everything(self) -> Iterator[_Node]:
        """Itself and all beneath, from the outside in."""
        yield self
        for child in self.children:
            yield from child.everything()


def _parts(value: Any) -> tuple[list[tuple[Any, Any]], Any]:
    """The direct children of a pytree node with their keys, and its structure; no children of a leaf."""
    parts, structure = jax.tree.flatten_with_path(value, is_leaf=lambda x: x is not value)
    is_leaf = len(parts) == 1 and parts[0][1] is value
    return ([] if is_leaf else parts), structure


def _node(value: Any, path: tuple[Any, ...] = ()) -> _Node:
    pz = _penzai()
    names = {type(value).__name__, getattr(path[-1], "name", None) if path else None}
    if isinstance(value, pz.nn.NamedGroup):
        names.add(value.name)
    children = tuple(_node(part, (*path, *keys)) for keys, part in _parts(value)[0])
    return _Node(
        path, frozenset(names - {None}), children, isinstance(value, pz.nn.Layer), isinstance(value, pz.nn.LayerStack)
    )


def _find(root: _Node, pattern: str) -> list[Found]:
    """The layers of one path."""
    components = pattern.split(".")
    if components.count("*") > 1:
        raise PathError(f"{pattern!r} has more than one *, which stands for the number of the layer")
    here: list[tuple[_Node, int | None]] = [(root, None)]
    n_layers = None
    for name, number in zip(components, [*components[1:], ""], strict=True):
        if name == "*" or name.isdecimal():
            continue
        found = [(list(_matches(node, name)), layer) for node, layer in here]
        if not any(matches for matches, _ in found):
            raise PathError(f"no layer {name!r} in {pattern!r}. {closest(name, _names(here))}")
        if number == "*":
            n_layers = sum(len(matches) for matches, _ in found)
            here = [(node, layer) for matches, _ in found for layer, node in enumerate(matches)]
        else:
            here = [(_only(matches, name, number, pattern), layer) for matches, layer in found if matches]
    stacks = [node.path for node in root.everything() if node.is_stack]
    if any(node.path[: len(stack)] == stack and node.path != stack for node, _ in here for stack in stacks):
        raise PathError(
            f"{pattern!r} is inside of a LayerStack, one loop over all blocks: build the model with use_layer_stack=False"
        )
    if not all(node.is_layer for node, _ in here):
        raise PathError(f"{pattern!r} is no layer")
    return [Found(node.path, layer, n_layers) for node, layer in here]


def _only(matches: list[_Node], name: str, number: str, pattern: str) -> _Node:
    """The one layer that a name means, or a name with a number behind it."""
    if not number.isdecimal() and len(matches) > 1:
        raise PathError(
            f"{name!r} in {pattern!r} means {len(matches)} layers: say which by a number behind it ({name}.0), or {name}.* for "
            "all layers of the model"
        )
    index = int(number) if number.isdecimal() else 0
    if index >= len(matches):
        raise PathError(f"{name}.{index} in {pattern!r}: there are {len(matches)}, counted from 0")
    return matches[index]


def _matches(node: _Node, name: str) -> Iterator[_Node]:
    """The outermost parts of that name beneath a node."""
    for child in node.children:
        if name in child.names:
            yield child
        else:
            yield from _matches(child, name)


def _names(here: list[tuple[_Node, int | None]]) -> set[str]:
    """Every name that a layer beneath has."""
    return {name for node, _ in here for part in node.everything() if part.is_layer for name in part.names}


def _rebuilt(value: Any, path: tuple[Any, ...], hooks: Mapping[tuple[Any, ...], Hooks]) -> Any:
    """The same model with tapped layers in place of those that have sites."""
    parts, structure = _parts(value)
    if parts:
        value = jax.tree.unflatten(structure, [_rebuilt(part, (*path, *keys), hooks) for keys, part in parts])
    return value if path not in hooks else _tapped_layer()(inner=value, hooks=hooks[path])


@functools.cache
def _tapped_layer() -> type:
    """A penzai layer that taps what another one is given and returns; made when penzai is first needed."""
    pz = _penzai()

    @pz.pytree_dataclass
    class Tapped(pz.nn.Layer):
        inner: Any
        hooks: Hooks = dataclasses.field(metadata={"pytree_node": False})

        def __call__(self, value: Any, **side_inputs: Any) -> Any:
            tap = side_inputs.get("tap", IDENTITY)
            for name, found in self.hooks.inputs:
                value = tap_named(found.at(tap), name, value)
            value = self.inner(value, **side_inputs)
            for name, found in self.hooks.outputs:
                value = tap_named(found.at(tap), name, value)
            return value

    return Tapped


def tap_named(tap: Tap, name: str, value: Any) -> Any:
    """Names a value in the code of a penzai layer, where arrays have named axes.

    Args:
        tap: the tap, which `from_penzai` passes through the model as a side input; at a layer, `tap.at(layer=i, n_layers=n)`.
        name: the site's name.
        value: a named array without positional axes. The site has its axes in our order (see `from_penzai`).

    Returns:
        The named array as the handlers left it, its axes in the order that they had.

    Example:
        >>> import jax.numpy as jnp, jaxinterp as ji
        >>> from penzai import pz
        >>> @pz.pytree_dataclass
        ... class Square(pz.nn.Layer):
        ...     def __call__(self, x, **side_inputs):
        ...         return ji.guests.tap_named(side_inputs["tap"], "square", x * x)
        >>> named = pz.nx.wrap(jnp.ones((1, 2, 3)), "batch", "seq", "embedding")
        >>> ji.sites(Square(), named)["square"].axes
        'BTD'
    """
    pz = _penzai()
    if not isinstance(value, pz.nx.NamedArrayBase) or value.positional_shape:
        raise SiteTypeError(
            f"site {name!r}: the value is a {type(value).__name__}, and a site is one named array without positional axes. "
            "Name another layer."
        )
    before = tuple(value.named_shape)
    order = _order(before)
    array = value.unwrap(*order)
    shape = array.shape
    axes = "".join(_LETTERS.get(axis, "N") for axis in order)
    if "KH" in axes:  # the query heads of each group: one axis of heads
        at = axes.index("KH")
        array = array.reshape(*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])
        axes = axes.replace("KH", "H")
    array = tap(name, array, axes).reshape(shape)
    return pz.nx.wrap(array, *order).order_as(*before)


def _order(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of axes in the order B T H E, or B H T S where there are key positions."""
    ranks = list(_LETTERS)
    if "kv_seq" in names:
        ranks.remove("seq")
        ranks.insert(ranks.index("kv_seq"), "seq")
    return tuple(sorted(names, key=lambda name: ranks.index(name) if name in ranks else len(ranks)))
