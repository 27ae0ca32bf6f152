"""`jaxinterp sites`."""

import dataclasses
from typing import Any

from jaxinterp.cli._commands import Command
from jaxinterp.cli._options import (
    ModelArgs,
    ModelOptions,
    OptionalText,
    OutputArgs,
    OutputOptions,
    headline,
    load_model,
    model_facts,
    tokenizer_of,
)
from jaxinterp.cli._output import Output

_TEXT = "Once upon a time"
_N_IDS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sites:
    """Options of `jaxinterp sites`."""

    prompt: OptionalText = None
    """The text whose shapes are shown. (default: "Once upon a time"; without a tokenizer, 5 ids)"""

    model: ModelArgs = dataclasses.field(default_factory=ModelOptions)
    output: OutputArgs = dataclasses.field(default_factory=OutputOptions)


def run(options: Sites, output: Output, command: str) -> dict[str, Any]:
    """Lists the sites of a model."""
    lm = load_model(options.model)
    if options.prompt is not None:
        tokenizer_of(lm, options.model)
    text = options.prompt if options.prompt is not None or lm.tokenizer is None else _TEXT
    tokens = lm.tokens((0,) * min(_N_IDS, lm.config.n_ctx) if text is None else text)
    table, n_tokens = lm.sites(tokens), int(tokens.shape[1])
    output.line(headline(lm, options.model), style="dim")
    output.line(f"prompt of {n_tokens} tokens" + ("" if text is None else f": {text!r}"))
    output.line()
    output.line(str(table))
    output.line()
    output.line(
        "L layer, B batch, T query position, S key position, H query head, K key/value head; the last axis: features.",
        style="dim",
    )
    output.line("Sites on demand cost nothing unless they are named.", style="dim")
    listed = [
        {
            "name": row.name, "axes": row.axes, "layered": row.n_layers is not None, "shape": list(row.stacked_shape),
            "dtype": str(row.dtype), "bytes": row.bytes, "on_demand": row.on_demand,
        }
        for row in table
    ]  # fmt: skip
    return {**model_facts(lm, options.model), "prompt": text, "n_tokens": n_tokens, "sites": listed}


COMMAND = Command(
    options=Sites,
    run=run,
    description="""\
Lists every named value of a model: its axes, its shape for a prompt, its bytes. Nothing is computed.

These are the names that `jaxinterp patch --site` and, in Python, jaxinterp.capture and jaxinterp.patch take. A site in
a layer has no layer number in its name: a capture of it has a leading layer axis.

examples:
  jaxinterp sites
  jaxinterp sites --model openai-community/gpt2 --prompt "When Mary and John went to the store"
""",
)
