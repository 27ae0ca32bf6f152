"""`jaxinterp predict`."""

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
class Predict:
    """Options of `jaxinterp predict`."""

    prompt: Prompt
    """The text to read."""

    k: int = 10
    """How many candidates to list."""

    model: ModelArgs = dataclasses.field(default_factory=ModelOptions)
    output: OutputArgs = dataclasses.field(default_factory=OutputOptions)


def run(options: Predict, output: Output, command: str) -> dict[str, Any]:
    """Lists the most probable next tokens."""
    lm = load_model(options.model)
    prediction = lm.predict(options.prompt, k=options.k)
    output.line(headline(lm, options.model), style="dim")
    output.line(f"prompt: {' '.join(repr(token) for token in prediction.prompt)}")
    output.line()
    rows = [
        [str(i), repr(r.token), str(r.id), f"{r.logit:.3f}", f"{r.probability:.2%}"]
        for i, r in enumerate(prediction, 1)
    ]
    output.table(["rank", "token", "id", "logit", "probability"], rows, left=(1,))
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
