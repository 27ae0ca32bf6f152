"""Several runs as one program: what may differ between its members, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxinterp._errors import ConfigError
from jaxinterp.saes._described import described, differences
from jaxinterp.saes._step import Hyper
from jaxinterp.saes._train_config import TrainConfig

VARIES = ("seed", "learning_rate", "l1_coefficient", "l0_coefficient", "k", "site", "target")
"""What members of an ensemble may differ in; of the sites, the widths are one."""


def common(configs: Sequence[TrainConfig]) -> TrainConfig:
    """The config that is compiled for all members: the first one's, with the largest k.

    Raises:
        ConfigError: they differ in more than may vary.
    """
    if not configs:
        raise ConfigError("An ensemble of no configs: give at least one.")
    first = described(configs[0])
    for i, config in enumerate(configs[1:], start=1):
        lines = [line for line in differences(first, described(config)) if _field(line) not in VARIES]
        if (config.sae.target is None) != (configs[0].sae.target is None):
            lines.append("one is a transcoder, the other is not")
        if lines:
            raise ConfigError(
                f"Members 0 and {i} of an ensemble differ in what one program cannot vary (it can: {', '.join(VARIES)}):\n  "
                + "\n  ".join(lines)
                + "\nTrain them in calls of their own."
            )
    architecture: Any = configs[0].sae.architecture
    if hasattr(architecture, "k"):
        ks = {_k(config) for config in configs}
        if getattr(architecture, "multi_k", None) is not None and len(ks) > 1:
            raise ConfigError(
                f"Members with multi_k have one k, and these have {sorted(ks)}. Train them in calls of their own."
            )
        architecture = dataclasses.replace(architecture, k=max(ks))
    return dataclasses.replace(configs[0], sae=dataclasses.replace(configs[0].sae, architecture=architecture))


def hypers(configs: Sequence[TrainConfig]) -> list[Hyper]:
    """The numbers of each member."""
    several = len({_k(config) for config in configs}) > 1
    return [
        Hyper(
            learning_rate=jnp.asarray(config.learning_rate, jnp.float32),
            sparsity=jnp.asarray(config.sae.architecture.sparsity, jnp.float32),
            k=jnp.asarray(_k(config), jnp.int32) if several else None,
        )
        for config in configs
    ]


def _k(config: TrainConfig) -> Any:
    return getattr(config.sae.architecture, "k", None)


def _field(line: str) -> str:
    return line.split(":")[0].rsplit(".", 1)[-1]
