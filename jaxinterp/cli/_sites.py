"""`jaxinterp sites`."""

import dataclasses
from typing import Any

from jaxinterp.cli._commands import Command
from jaxinterp.cli._options import ModelArgs, ModelOptions, OutputArgs, OutputOptions, headline, load_model, model_facts
from jaxinterp.cli._output import Output


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sites:
    """Options of `jaxinterp sites`."""

    prompt: str = "Once upon a time"
    """The text whose shapes are shown."""

    model: ModelArgs = dataclasses.field(default_factory=ModelOptions)
    output: OutputArgs = dataclasses.field(default_factory=OutputOptions)


def run(options: Sites, output: Output, command: str) -> dict[str, Any]:
    """Lists the sites of a model."""
    lm = load_model(options.model)
    table = lm.sites(options.prompt)
    n_tokens = int(lm.tokens(options.prompt).shape[1])
    output.line(headline(lm, options.model), style="dim")
    output.line(f"prompt of {n_tokens} tokens: {options.prompt!r}")
    output.line()
    rows = [
        [
            row.name, ("L" if row.n_layers else "") + row.axes, " x ".join(map(str, row.stacked_shape)), str(row.dtype),
            f"{row.bytes:,}", "yes" if row.on_demand else "",
        ]
        for row in table
    ]  # fmt: skip
    output.table(["site", "axes", "shape", "dtype", "bytes", "on demand"], rows, left=(0, 1, 2, 3, 5))
    output.line()
    output.line(
        "L layer, B batch, T query position, S key position, H query head, K key/value head; the last axis: features.",
        style="dim",
    )
    output.line("On-demand sites cost nothing unless they are named.", style="dim")
    listed = [
        {
            "name": row.name, "axes": row.axes, "layered": row.n_layers is not None, "shape": list(row.stacked_shape),
            "dtype": str(row.dtype), "bytes": row.bytes, "on_demand": row.on_demand,
        }
        for row in table
    ]  # fmt: skip
    return {**model_facts(lm, options.model), "prompt": options.prompt, "n_tokens": n_tokens, "sites": listed}


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
