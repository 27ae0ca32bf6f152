"""What every finding is told beside: a dictionary of random directions, a model of random weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxinterp._errors import InputError
from jaxinterp._typing import Array, ArrayLike, Float, Params, PRNGKeyArray
from jaxinterp.saes._active import ranking
from jaxinterp.saes._config import SAEConfig
from jaxinterp.saes._fold import PER_LATENT
from jaxinterp.saes._linear import preactivations, projections, without_latents, written
from jaxinterp.saes._normalize import measured_scale, normalized
from jaxinterp.saes._sae import SAE


def random_dictionary(
    config: SAEConfig, key: PRNGKeyArray, rows: ArrayLike, *, targets: ArrayLike | None = None, l0: float | None = None
) -> SAE:
    """A dictionary of the same kind and size whose directions are random: the control of every number.

    It is what the architecture begins with (encoder tied to random decoder rows, biases from the rows). TopK then has the L0 of
    a trained one by itself; of the others one shift of all thresholds, fitted on the rows, gives the L0 asked for. One factor for
    all latents, fitted as well, makes the error least, so that what the control lacks is directions and not a length.

    Args:
        config: of the dictionary that is judged.
        key: a typed key.
        rows: [n, D], typical inputs.
        targets: [n, D_out], typical outputs; needed by a transcoder.
        l0: the mean number of active latents to match (`Evaluation.l0`). None: the architecture's k, where it has one; else as
            it begins.

    Returns:
        The dictionary.

    Raises:
        InputError: an l0 that is not between 0 and the number of latents, or another one than the k of TopK; a transcoder
            without targets.

    Example:
        >>> import jax
        >>> from jaxinterp import saes
        >>> config = saes.SAEConfig(architecture=saes.ReLU(), d_in=8, n_latents=32)
        >>> x = jax.random.normal(jax.random.key(0), (512, 8))
        >>> sae = random_dictionary(config, jax.random.key(1), x, l0=4.0)
        >>> round(saes.evaluate(sae, x).l0, 1)
        4.0
    """
    architecture: Any = config.architecture
    k: Any = getattr(architecture, "k", None)
    if config.target is not None and targets is None:
        raise InputError(f"A transcoder's control needs typical outputs ({config.target!r}) as well: give targets.")
    if l0 is not None and not 0 < l0 < config.n_latents:
        raise InputError(f"l0={l0}: above 0 and below the {config.n_latents} latents.")
    if architecture.name == "topk" and l0 is not None and l0 > k:
        raise InputError(f"l0={l0} is above k={k} of the TopK dictionary. Leave it out: the control has the same k.")
    x = jnp.asarray(rows)
    target = x if targets is None else jnp.asarray(targets)
    scales = {"input": measured_scale(x, config.normalize), "target": measured_scale(target, config.normalize)}
    inputs = normalized(x, scales["input"], config.normalize)[0]
    outputs = normalized(target, scales["target"], config.normalize)[0]
    params = architecture.init(key, config, outputs)
    wanted = k if l0 is None else l0
    if wanted is not None and architecture.name != "topk":
        params = _matched(params, inputs, config, float(wanted))
    params = _of_least_error(params, inputs, outputs, config)
    return SAE(params=params, scales=scales, config=config)


def _matched(params: Params, inputs: Float[Array, "B D"], config: SAEConfig, l0: float) -> Params:
    """With thresholds (or biases) shifted alike, so that l0 latents are active in a row."""
    architecture: Any = config.architecture
    gated = architecture.name == "gated"
    before = projections(params, inputs, config) if gated else preactivations(params, inputs, config)
    if architecture.name in ("batch_topk", "matryoshka"):  # whose threshold is of latents as they are scaled
        before = ranking(params, before, architecture.norm_scaled)
    cut = jnp.quantile(before.ravel(), 1.0 - l0 / config.n_latents)
    if gated:
        return {**params, "b_gate": jnp.full_like(params["b_gate"], -cut)}
    if architecture.name == "relu":
        return {**params, "b_enc": params["b_enc"] - cut}
    cut = jnp.maximum(cut, 1e-6)  # latents below 0 are never active
    if "log_threshold" in params:
        return {**params, "log_threshold": jnp.full_like(params["log_threshold"], jnp.log(cut))}
    return {**params, "threshold": jnp.full_like(params["threshold"], cut)}


def _of_least_error(
    params: Params, inputs: Float[Array, "B D"], outputs: Float[Array, "B D_out"], config: SAEConfig
) -> Params:
    """With all latents multiplied by the factor, above 0, by which they reconstruct best."""
    architecture: Any = config.architecture
    added = written(architecture.decoder(params), architecture.encode(params, inputs, config), config)
    rest = outputs - without_latents(params, inputs, config)
    factor = jnp.maximum(jnp.sum(added * rest) / jnp.maximum(jnp.sum(jnp.square(added)), 1e-30), 1e-6)
    linear = {name: leaf * factor for name, leaf in params.items() if name in (*PER_LATENT, "threshold")}
    logs = {name: params[name] + jnp.log(factor) for name in ("log_threshold",) if name in params}
    return {**params, **linear, **logs}


def random_weights(params: Params, key: PRNGKeyArray, *, keep: tuple[str, ...] = ()) -> Params:
    """A model's parameters with the entries of each matrix in random order: the control for what latents of a model mean.

    Every matrix keeps its mean, variance and all other statistics of its entries, layer by layer; what it computes is gone.
    Vectors (biases, norms) stay.

    Args:
        params: a model's parameters; those of blocks have a leading axis of layers.
        key: a typed key.
        keep: names of parameters that stay as they are, such as ("W_E",).

    Returns:
        Parameters of the same tree.

    Source: Heap et al. 2025 (arXiv 2501.17727), where weights are drawn anew with the trained mean and variance of each matrix.
    """

    def one(path: tuple[Any, ...], leaf: Array) -> Array:
        names = [str(getattr(entry, "key", "")) for entry in path]
        in_blocks = "blocks" in names
        if leaf.ndim - in_blocks < 2 or not names[-1].startswith("W_") or names[-1] in keep:
            return leaf
        number = next(i for i, (other, _) in enumerate(paths) if other == path)
        own = jax.random.fold_in(key, number)
        mixed = lambda key, matrix: jax.random.permutation(key, matrix.ravel()).reshape(matrix.shape)
        return jax.vmap(mixed)(jax.random.split(own, len(leaf)), leaf) if in_blocks else mixed(own, leaf)

    paths = jax.tree_util.tree_leaves_with_path(params)
    return jax.tree_util.tree_map_with_path(one, params)
