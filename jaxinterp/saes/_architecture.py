"""What every architecture is: the extension point of this package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from jaxinterp._tree import pytree, static
from jaxinterp._typing import Array, Float, Int, Params, PRNGKeyArray
from jaxinterp.saes._axes import Axes
from jaxinterp.saes._sparse import SparseLatents

if TYPE_CHECKING:
    from jaxinterp.saes._config import SAEConfig


@pytree
class Training:
    """What a loss is told beside parameters and rows.

    Attributes:
        sparsity: the sparsity coefficient after its warm-up, a scalar; architectures without a penalty ignore it.
        dead: booleans [N]: which latents have not fired for long.
        k: a traced number of active latents, at most that of the architecture; None: that of the architecture.
        variance: of all targets of the step, where these rows are a part of them; None: that of these rows.
        config: the dictionary's config.
        axes: where this runs; arrays are this shard's.
    """

    sparsity: Any
    dead: Any
    k: Any = None
    variance: Any = None
    config: SAEConfig = static()
    axes: Axes = static(default=Axes())


@pytree
class Outcome:
    """What a loss tells beside its value; the same on each shard of the batch.

    Attributes:
        terms: the parts of the loss, by name, as they are summed.
        fired: booleans [N]: which latents were active in any row.
        l0: the mean number of active latents.
        fvu: the squared error over the variance of the rows: the fraction of variance unexplained.
        smallest: the smallest positive activation, where an architecture learns a threshold from it; else None.
    """

    terms: Any
    fired: Any
    l0: Any
    fvu: Any
    smallest: Any = None


@runtime_checkable
class Architecture(Protocol):
    """A kind of dictionary: a frozen dataclass of its settings, whose methods are pure functions.

    Rows are normalized already (`SAEConfig.normalize`), [B, D]; parameters are a dictionary of arrays, those of each latent with
    a leading N axis. Inside `shard_map` all are this shard's part; a loss is the same on all shards, its gradient that of a
    shard's rows.
    """

    name: ClassVar[str]

    @property
    def sparsity(self) -> float:
        """What `Training.sparsity` is without warm-up; 0 where there is no penalty."""
        ...

    def faults(self, config: SAEConfig) -> list[str]:
        """What is wrong with the settings, one sentence each."""
        ...

    @property
    def centers(self) -> bool:
        """Whether the paper's encoder reads x - b_dec."""
        ...

    def init(
        self, key: PRNGKeyArray, config: SAEConfig, sample: Float[Array, "B D_out"], k: Int[Array, ""] | None = None
    ) -> Params:
        """Parameters before training; `sample` holds typical targets (of a transcoder: outputs), `k` is as in `Training`."""
        ...

    def encode(self, params: Params, x: Float[Array, "B D"], config: SAEConfig) -> Float[Array, "B N"] | SparseLatents:
        """The latents of rows, as they are used after training."""
        ...

    def decoder(self, params: Params) -> Params:
        """Parameters whose W_dec fits the units of the latents that `encode` gives."""
        ...

    def loss(
        self, params: Params, x: Float[Array, "B D"], target: Float[Array, "B D_out"], at: Training
    ) -> tuple[Float[Array, ""], Outcome]:
        """The training loss of rows, and what it saw."""
        ...

    def project(self, gradient: Params, params: Params) -> Params:
        """The gradient without the parts that a constraint would undo."""
        ...

    def constrain(self, params: Params, outcome: Outcome) -> Params:
        """Parameters after an update, back where the constraint holds."""
        ...
