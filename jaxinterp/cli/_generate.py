"""`jaxinterp generate`."""

import dataclasses
from typing import Any

from jaxinterp.cli._commands import Command
from jaxinterp.cli._options import (
    ModelArgs,
    ModelOptions,
    OutputArgs,
    OutputOptions,
    Prompt,
    headline,
    load_model,
    model_facts,
)
from jaxinterp.cli._output import Output


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate:
    """Options of `jaxinterp generate`."""

    prompt: Prompt
    """The text to continue."""

    max_new_tokens: int = 60
    """How many tokens to add at most."""

    temperature: float = 0.0
    """0 takes the most probable token each time; above 0 samples, the wilder the higher."""

    seed: int = 0
    """Of the sampling; the same seed gives the same text."""

    model: ModelArgs = dataclasses.field(default_factory=ModelOptions)
    output: OutputArgs = dataclasses.field(default_factory=OutputOptions)


def run(options: Generate, output: Output, command: str) -> dict[str, Any]:
    """Continues a prompt."""
    lm = load_model(options.model)
    output.line(headline(lm, options.model), style="dim")
    with output.busy("generating"):
        text = lm.generate(options.prompt, options.max_new_tokens, temperature=options.temperature, seed=options.seed)
    output.line()
    output.paragraph(text)
    return {
        **model_facts(lm, options.model),
        "prompt": options.prompt,
        "text": text,
        "temperature": options.temperature,
        "seed": options.seed,
    }


COMMAND = Command(
    options=Generate,
    run=run,
    description="""\
Continues a prompt: greedily, or by sampling at a temperature.

examples:
  jaxinterp generate "Once upon a time"
  jaxinterp generate "One day, Tom found a box." --max-new-tokens 100 --temperature 0.8 --seed 3
  jaxinterp generate "Once upon a time" --model path/to/folder --json
""",
)
