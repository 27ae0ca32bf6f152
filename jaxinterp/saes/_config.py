"""The shape, kind and place of a dictionary, as frozen data."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from jaxinterp._errors import ConfigError
from jaxinterp.saes._architecture import Architecture
from jaxinterp.saes._normalize import PER_ROW

Normalize = Literal["none", "sqrt_d", "unit", "layer_norm", "row_sqrt_d"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """A sparse dictionary, configured.

    Attributes:
        architecture: its kind with the settings of that kind: `TopK(k=32)`, `ReLU(l1_coefficient=5.0)`, ...
        d_in: width of what it reads (D).
        n_latents: how many latents it has (N).
        site: what it reads, as a stream of activations names it: "resid_post.3" is `resid_post` of layer 3.
        d_out: width of what it writes. None: as d_in.
        target: what it is to give, where that is another site: a transcoder. None: what it reads.
        skip: whether a linear map of the input is added to the output: a skip transcoder.
        subtract_decoder_bias: whether the encoder reads x - b_dec. None: as the paper has it; of a transcoder never.
        normalize: what rows are divided by before the encoder, and the reconstruction multiplied by: "none"; "sqrt_d", so that
            the mean norm is the square root of the width; "unit", so that the mean squared norm is 1; "layer_norm", each row's
            mean is subtracted as well and its (unbiased) standard deviation divided by; "row_sqrt_d", so that each row's norm is
            the square root of the width. The first two are constants, measured once.
        compute_dtype: of the large products: "float32" or "bfloat16". Parameters are float32 in training.
    """

    architecture: Architecture
    d_in: int
    n_latents: int
    site: str = "x"
    d_out: int | None = None
    target: str | None = None
    skip: bool = False
    subtract_decoder_bias: bool | None = None
    normalize: Normalize = "none"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        faults = [
            f"{name}={getattr(self, name)!r}: a whole number of at least 1."
            for name in ("d_in", "n_latents", *(() if self.d_out is None else ("d_out",)))
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1
        ]
        for name, legal in (("normalize", get_args(Normalize)), ("compute_dtype", ("float32", "bfloat16"))):
            if getattr(self, name) not in legal:
                faults.append(f"{name}={getattr(self, name)!r}; legal: {', '.join(legal)}.")
        if not hasattr(self.architecture, "loss"):
            faults.append(f"architecture={self.architecture!r} is none: give one such as TopK(k=32).")
        if self.target is None and self.d_out not in (None, self.d_in):
            faults.append(
                f"d_out={self.d_out} is not d_in={self.d_in}, and there is no target: name the site of the outputs."
            )
        if self.target is None and self.skip:
            faults.append("skip=True without a target: the skip would copy the input. Name the site of the outputs.")
        if self.target is not None and self.subtract_decoder_bias and self.d_out not in (None, self.d_in):
            faults.append("subtract_decoder_bias=True, but the decoder's bias has the width of the outputs.")
        if self.target is not None and self.normalize in PER_ROW:
            faults.append(
                f"normalize={self.normalize!r} of a transcoder: a row of outputs is not measured before it is known."
            )
        if not faults:
            faults = self.architecture.faults(self)
        if faults:
            raise ConfigError("This dictionary cannot be:\n  " + "\n  ".join(faults))

    @property
    def width_out(self) -> int:
        """The width of what it writes."""
        return self.d_in if self.d_out is None else self.d_out

    @property
    def target_site(self) -> str:
        """The site that it is to give."""
        return self.site if self.target is None else self.target

    @property
    def centers(self) -> bool:
        """Whether the encoder reads x - b_dec."""
        if self.subtract_decoder_bias is not None:
            return self.subtract_decoder_bias
        return self.target is None and self.architecture.centers
