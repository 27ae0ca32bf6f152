"""`jaxinterp predict`."""

import dataclasses
from typing import Any

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
class Predict:
    """Options of `jaxinterp predict`."""

    prompt: Prompt
    """The text to read."""

    k: OptionalInteger = None
    """How many candidates to list, at most the vocabulary's size. (default: 10)"""

    model: ModelArgs = dataclasses.field(default_factory=ModelOptions)
    output: OutputArgs = dataclasses.field(default_factory=OutputOptions)


def run(options: Predict, output: Output, command: str) -> dict[str, Any]:
    """Lists the most probable next tokens."""
    lm = load_model(options.model)
    tokenizer_of(lm, options.model)
    check_range("--k", options.k, 1, lm.config.outputs)
    prediction = lm.predict(options.prompt, k=options.k)
    output.line(headline(lm, options.model), style="dim")
    output.line(f"prompt: {' '.join(repr(token) for token in prediction.prompt)}")
    output.line()
    output.line(str(prediction))
    return {
        **model_facts(lm, options.model),
        "prompt": options.prompt,
        "tokens": list(prediction.prompt),
        "predictions": [row._asdict() for row in prediction],
    }


COMMAND = Command(
    options=Predict,
    run=run,
    description="""\
Reads a prompt and lists the most probable next tokens, with logits and probabilities.

It also shows how the prompt is cut into tokens. An answer for `jaxinterp patch` has to be one token: find it here,
with the space in front of it.

examples:
  jaxinterp predict "Once upon a time"
  jaxinterp predict "One day, Lily had an idea." --k 3
  jaxinterp predict "The capital of France is" --model openai-community/gpt2
  jaxinterp predict "Once upon a time" --json | jq .predictions[0].token
""",
)
