"""`jaxinterp generate`."""

import dataclasses
from typing import Any

from jaxinterp._errors import InputError
from jaxinterp.cli._commands import Command
from jaxinterp.cli._options import (
    ModelArgs,
    ModelOptions,
    OptionalInteger,
    OptionalNumber,
    OutputArgs,
    OutputOptions,
    Prompt,
    Texts,
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

    top_k: OptionalInteger = None
    """Sample among this many most probable tokens only. (default: all)"""

    top_p: OptionalNumber = None
    """Sample among the fewest most probable tokens that hold this share of the probability, 0 to 1. (default: all)"""

    stop: Texts = ()
    """Texts at which the continuation ends; what stops it is left out."""

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
        text = lm.generate(
            options.prompt, options.max_new_tokens, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
            seed=seed, stop=options.stop,
        )  # fmt: skip
    output.line()
    output.text(text)
    return {
        **model_facts(lm, options.model),
        "prompt": options.prompt,
        "text": text,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "stop": list(options.stop),
        "seed": seed,
    }


def _check(options: Generate) -> None:
    check_range("--max-new-tokens", options.max_new_tokens, 1)
    check_range("--temperature", options.temperature, 0)
    check_range("--seed", options.seed, 0, 2**32 - 1)
    check_range("--top-k", options.top_k, 1)
    check_range("--top-p", options.top_p, 0, 1)
    sampling = {"--seed": options.seed, "--top-k": options.top_k, "--top-p": options.top_p}
    for option, value in sampling.items():
        if value is not None and options.temperature == 0:
            raise InputError(
                f"{option} {value} is for sampling, and --temperature 0 takes the most probable token each time. Give a "
                f"temperature above 0, or leave {option} out."
            )


COMMAND = Command(
    options=Generate,
    run=run,
    description="""\
Continues a prompt: greedily, or by sampling at a temperature.

examples:
  jaxinterp generate "Once upon a time"
  jaxinterp generate "One day, Tom found a box." --max-new-tokens 100 --temperature 0.8 --top-p 0.9 --seed 3
  jaxinterp generate "Once upon a time" --stop "The end"
  jaxinterp generate "Once upon a time" --model path/to/folder --json
""",
)
