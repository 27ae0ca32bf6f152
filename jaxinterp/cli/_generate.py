"""`jaxinterp generate`."""

import dataclasses
from typing import Any

from jaxinterp._errors import InputError
from jaxinterp.cli._commands import Command
from jaxinterp.cli._options import (
    ModelArgs,
    ModelOptions,
    OptionalInteger,
    OutputArgs,
    OutputOptions,
    Prompt,
    check_range,
    headline,
    load_model,
    model_facts,
    tokenizer_of,
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

    seed: OptionalInteger = None
    """Of the sampling, with a --temperature above 0; the same seed gives the same text. (default: 0)"""

    model: ModelArgs = dataclasses.field(default_factory=ModelOptions)
    output: OutputArgs = dataclasses.field(default_factory=OutputOptions)


def run(options: Generate, output: Output, command: str) -> dict[str, Any]:
    """Continues a prompt."""
    _check(options)
    lm = load_model(options.model)
    tokenizer_of(lm, options.model)
    output.line(headline(lm, options.model), style="dim")
    seed = (options.seed or 0) if options.temperature > 0 else None
    with output.busy("generating"):
        text = lm.generate(options.prompt, options.max_new_tokens, temperature=options.temperature, seed=seed)
    output.line()
    output.text(text)
    return {
        **model_facts(lm, options.model),
        "prompt": options.prompt,
        "text": text,
        "temperature": options.temperature,
        "seed": seed,
    }


def _check(options: Generate) -> None:
    check_range("--max-new-tokens", options.max_new_tokens, 1)
    check_range("--temperature", options.temperature, 0)
    check_range("--seed", options.seed, 0, 2**32 - 1)
    if options.seed is not None and options.temperature == 0:
        raise InputError(
            f"--seed {options.seed} is for sampling, and --temperature 0 takes the most probable token each time. Give a "
            "temperature above 0, or leave --seed out."
        )


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
