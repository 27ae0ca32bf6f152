"""Dropout as a handler: models know nothing of it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxinterp._errors import InputError, SiteTypeError
from jaxinterp._tree import is_traced
from jaxinterp._typing import Array, PRNGKeyArray
from jaxinterp.tap import Handler, Site


@dataclasses.dataclass(frozen=True)
class _Dropout:
    share: str

    def __call__(
        self, site: Site, value: Array, state: Any, data: Any, layer_slice: Any, tap: Any
    ) -> tuple[Array, Any, None]:
        unknown = [letter for letter in self.share if letter not in site.axes]
        if unknown:
            raise SiteTypeError(
                f"dropout at site {site.name!r} should share its draws along {', '.join(unknown)}, but the site's axes are "
                f"{site.axes!r}. Name axes that it has."
            )
        key = data["key"]
        for index in (site.layer, site.step):
            key = key if index is None else jax.random.fold_in(key, index)
        shape = [1 if letter in self.share else size for letter, size in zip(site.axes, value.shape, strict=True)]
        keep = 1.0 - jnp.asarray(data["rate"], jnp.float32)
        kept = jax.random.uniform(key, shape, jnp.float32) < keep
        factor = jnp.where(kept, 1.0 / keep, 0.0).astype(value.dtype)
        return value * jnp.broadcast_to(factor, value.shape), state, None


def dropout(site: str, rate: float | Array, *, key: PRNGKeyArray, share: str = "") -> Handler:
    """Sets random parts of a site's value to zero and scales up the rest, by 1 / (1 - rate).

    The draws differ from layer to layer. Two handlers, and two training steps, need two keys.

    Args:
        site: a name or glob, such as `"attn.out"`.
        rate: the probability with which a part is dropped, at least 0 and below 1; static or traced.
        key: a typed key.
        share: the axis letters along which one draw serves all: `"TE"` at `attn.z` drops whole heads of an example.

    Raises:
        InputError: a rate outside [0, 1).
        SiteTypeError: (when run) the site has no axis of a letter in `share`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxinterp as ji
        >>> f = ji.run(lambda x, *, tap: tap("x", x), dropout("x", 0.5, key=jax.random.key(0), share="D"))
        >>> sorted(set(f(jnp.ones((9, 4)))[0].sum(-1).tolist()))
        [0.0, 8.0]

    Source: Srivastava et al. 2014 (JMLR 15); whole heads: "DropHead", Zhou et al. 2020 (arXiv 2004.13342), there with another
    scale.
    """
    if not is_traced(rate) and not 0.0 <= float(rate) < 1.0:
        raise InputError(f"rate={rate!r} is not a probability below 1. At 0 nothing is dropped; 0.1 is usual.")
    return Handler(sites=(site,), visit=_Dropout(share), data={"key": key, "rate": rate})
