"""`jaxinterp sae eval`."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from jaxinterp import saes
from jaxinterp.activations import ActivationStream
from jaxinterp.cli._commands import Command
from jaxinterp.cli._options import (
    ModelArgs,
    ModelOptions,
    OutputArgs,
    OutputOptions,
    check_range,
    headline,
    load_model,
    model_facts,
)
from jaxinterp.cli._output import Output, number_or_none
from jaxinterp.cli._sae_options import (
    Dictionary,
    FileArgs,
    TextArgs,
    check_dictionary,
    dictionary_line,
    load_dictionary,
    open_stream,
    read_text,
    special_ids,
)
from jaxinterp.saes import SAE, Evaluation, LossRecovered
from jaxinterp.weights import LanguageModel

OWN, RANDOM, MIXED = "dictionary", "random dictionary", "random weights"
_BATCH = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
    """Options of `jaxinterp sae eval`."""

    dictionary: Dictionary
    """A folder, or OWNER/REPOSITORY on the hub."""

    files: FileArgs
    text: TextArgs

    tokens: int = 16_384
    """About how many tokens of the text are read; documents are taken in an order drawn from --seed."""

    controls: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Also judge it on the model with the entries of each of its matrices in random order."""

    seed: int = 0
    """Of the choice of documents and of the controls."""

    model: ModelArgs = dataclasses.field(default_factory=ModelOptions)
    output: OutputArgs = dataclasses.field(default_factory=OutputOptions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """What is measured of one dictionary on one model; a transcoder has no `loss`."""

    rows: Evaluation
    loss: LossRecovered | None


def run(options: Eval, output: Output, command: str) -> dict[str, Any]:
    """Measures, and prints a table."""
    check_range("--tokens", options.tokens, 2)
    check_range("--seed", options.seed, 0, 2**32 - 1)
    sae = load_dictionary(options.dictionary, options.files)
    lm = load_model(options.model)
    check_dictionary(sae, _stream(options, lm, sae), options.model.model, output)
    output.line(headline(lm, options.model), style="dim")
    output.line(dictionary_line(sae))
    sae = dataclasses.replace(sae, source=None)  # a pytree of the controls' structure, so that nothing compiles twice
    with output.busy("evaluating"):
        judged = {OWN: _judge(options, lm, sae), **_controls(options, lm, sae)}
    _print(output, judged)
    return {
        **model_facts(lm, options.model),
        "sae": saes.described(sae.config),
        **{name.replace(" ", "_"): _json(one) for name, one in judged.items()},
    }


def _stream(options: Eval, lm: LanguageModel, sae: SAE) -> ActivationStream:
    tokens = read_text(lm, options.model, options.text, seed=options.seed, epochs=1)
    sites = [sae.config.site, sae.config.target_site]
    least = 3 * max(tokens.batch_size * tokens.n_ctx, _BATCH)  # rows in the pool: their order does not matter here
    return open_stream(lm, tokens, sites, batch_size=_BATCH, seed=options.seed, buffer_size=least)


def _rows(options: Eval, lm: LanguageModel, sae: SAE) -> Iterator[dict[str, Any]]:
    """Batches of rows, and what is left at the end of a short text."""
    stream = _stream(options, lm, sae)
    yield from itertools.islice(stream, math.ceil(options.tokens / _BATCH))
    rest, documents = stream.remainder()
    if stream.served < options.tokens and len(documents):
        yield rest


def _judge(options: Eval, lm: LanguageModel, sae: SAE) -> Judged:
    rows = saes.evaluate(sae, _rows(options, lm, sae))
    if sae.config.target is not None:
        return Judged(rows=rows, loss=None)
    tokens = read_text(lm, options.model, options.text, seed=options.seed, epochs=1)
    batches = itertools.islice(tokens, math.ceil(options.tokens / (tokens.batch_size * tokens.n_ctx)))
    return Judged(rows=rows, loss=saes.loss_recovered(sae, lm.model, lm.params, batches, exclude=special_ids(tokens)))


def _controls(options: Eval, lm: LanguageModel, sae: SAE) -> dict[str, Judged]:
    """The same of a random dictionary with as many active latents and, if asked, of a model with its weights mixed."""
    one, two = jax.random.split(jax.random.key(options.seed))
    sample = next(_rows(options, lm, sae))
    rows, targets = (sample[site] for site in (sae.config.site, sae.config.target_site))
    fitted = None
    if sae.config.architecture.name != "topk":
        fitted = max(saes.evaluate(sae, [sample]).l0, 1e-2)
    control = saes.random_dictionary(sae.config, one, rows, targets=targets, l0=fitted)
    judged = {RANDOM: _judge(options, lm, control)}
    if options.controls:
        mixed = dataclasses.replace(lm, params=saes.random_weights(lm.params, two))
        judged[MIXED] = _judge(options, mixed, sae)
    return judged


def _lines(one: Judged) -> dict[str, str]:
    """What the table says of one of them."""
    rows, loss = one.rows, one.loss
    lines = {
        "FVU": f"{rows.fvu:.4f}",
        "L0": f"{rows.l0:.1f}",
        "dead latents": f"{rows.dead:.1%}",
        "cosine": f"{rows.cosine:.3f}",
        "length over true length": f"{rows.norm_ratio:.3f}",
    }
    if loss is not None:
        share = lambda value: "undefined" if math.isnan(value) else f"{value:.1%}"
        lines |= {
            "loss recovered, over zero": share(loss.over_zero),
            "loss recovered, over mean": share(loss.over_mean),
            "nats: model as it is": f"{loss.clean:.3f}",
            "nats: spliced": f"{loss.spliced:.3f}",
            "nats: site set to zero": f"{loss.zero:.3f}",
            "nats: site set to its mean": f"{loss.mean:.3f}",
        }
    return lines


def _print(output: Output, judged: dict[str, Judged]) -> None:
    own = judged[OWN]
    told = f"{own.rows.rows:,} rows" + ("" if own.loss is None else f", {own.loss.tokens:,} predictions")
    output.heading(told)
    tables = [_lines(one) for one in judged.values()]
    output.table(["", *judged], [[name, *(table[name] for table in tables)] for name in tables[0]])
    counts, edges = own.rows.density()
    output.heading("how often latents are active: share of rows, number of latents")
    output.table(["share", "latents"], _decades(counts, edges))
    for name, one in judged.items():
        if one.loss is not None and one.loss.undefined:
            output.note(f"{name}: {one.loss.undefined}")


def _decades(counts: np.ndarray, edges: np.ndarray) -> list[list[str]]:
    """The histogram by powers of ten, those without latents at either end left out."""
    sums: dict[str, int] = {}
    for count, low in zip(counts[1:], edges[1:-1], strict=True):
        name = f"1e{math.floor(low)} to 1e{math.floor(low) + 1}"
        sums[name] = sums.get(name, 0) + int(count)
    held = [i for i, count in enumerate(sums.values()) if count]
    shown = [*sums.items()][held[0] : held[-1] + 1] if held else []
    return [[name, f"{count:,}"] for name, count in [("never", int(counts[0])), *shown]]


def _json(one: Judged) -> dict[str, Any]:
    counts, edges = one.rows.density()
    told: dict[str, Any] = {name: number_or_none(value) for name, value in one.rows.summary().items()}
    told["density"] = {"counts": counts.tolist(), "log10_edges": [number_or_none(edge) for edge in edges]}
    if one.loss is not None:
        shares = {"over_zero": one.loss.over_zero, "over_mean": one.loss.over_mean}
        numbers = {name: number_or_none(float(v)) for name, v in (dataclasses.asdict(one.loss) | shares).items()}
        told["loss_recovered"] = {**numbers, "undefined": one.loss.undefined}
    return told


COMMAND = Command(
    options=Eval,
    run=run,
    description="""\
Judges a dictionary on a text: how much of the activations it leaves out (FVU: squared error over variance), how many
latents it uses (L0) and never uses, how much it shrinks, and how much of the model's next-token loss survives when its
reconstruction stands in for the site. Beside it stands a random dictionary of the same kind with as many active latents:
what a number is worth is its distance from that. Special tokens (BOS) are left out throughout.

Take text that it was not trained on. A small error is no evidence that anything was understood.

examples:
  jaxinterp sae eval sae-results/dictionary --text other-stories.txt
  jaxinterp sae eval sae-results/dictionary --text other-stories.txt --controls --json
  jaxinterp sae eval google/gemma-scope-2b-pt-res --subfolder layer_20/width_16k/average_l0_71 \\
      --model google/gemma-2-2b --text texts.jsonl
""",
)
