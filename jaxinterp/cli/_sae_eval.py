"""`jaxinterp sae eval`."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from jaxinterp import saes
from jaxinterp.activations import ActivationStream
from jaxinterp.cli._commands import Command
from jaxinterp.cli._options import (
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
    TextOptions,
    dictionary_line,
    left_out,
    load_dictionary,
    open_stream,
    read_text,
)
from jaxinterp.cli._sae_origin import (
    TrainedModelArgs,
    TrainedModelOptions,
    as_trained,
    check_dictionary,
    is_text_of_training,
)
from jaxinterp.saes import SAE, Evaluation, LossRecovered
from jaxinterp.weights import LanguageModel

OWN, RANDOM, MIXED = "dictionary", "random dictionary", "random weights"
_BATCH = 1024
_SAME_TEXT = "this is the text that it was trained on: numbers on another one may be worse."


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

    model: TrainedModelArgs = dataclasses.field(default_factory=TrainedModelOptions)
    output: OutputArgs = dataclasses.field(default_factory=OutputOptions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is read, on which model: the options with their defaults filled in."""

    model: ModelOptions
    text: TextOptions
    tokens: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """What is measured of one dictionary on one model."""

    rows: Evaluation
    loss: LossRecovered


def run(options: Eval, output: Output, command: str) -> dict[str, Any]:
    """Measures, and prints a table."""
    check_range("--tokens", options.tokens, 2)
    check_range("--seed", options.seed, 0, 2**32 - 1)
    sae = load_dictionary(options.dictionary, options.files, output)
    model, text = as_trained(sae, options.model, options.text)
    plan = Plan(model=model, text=text, tokens=options.tokens, seed=options.seed)
    lm = load_model(model)
    stream = _stream(plan, lm, sae)
    check_dictionary(sae, stream, model, output)
    remarks = [_SAME_TEXT] if is_text_of_training(sae, stream) else []
    del stream  # with its pool
    output.line(headline(lm, model), style="dim")
    output.line(dictionary_line(sae))
    sae = dataclasses.replace(sae, source=None)  # a pytree of the controls' structure, so that nothing compiles twice
    with output.busy(f"evaluating: {OWN}") as told:
        judged = {OWN: _judge(plan, lm, sae, told)}
    judged |= _controls(plan, lm, sae, output, mixed=options.controls)
    _print(output, judged)
    remarks += _remarks(judged, options.tokens)
    for remark in remarks:
        output.note(remark)
    return {
        **model_facts(lm, model),
        "sae": saes.described(sae.config),
        **{name.replace(" ", "_"): _json(one) for name, one in judged.items()},
        "remarks": remarks,
    }


def _stream(options: Plan, lm: LanguageModel, sae: SAE) -> ActivationStream:
    tokens = read_text(lm, options.model, options.text, seed=options.seed, epochs=1)
    sites = [sae.config.site, sae.config.target_site]
    least = 3 * max(tokens.batch_size * tokens.n_ctx, _BATCH)  # rows in the pool: their order does not matter here
    return open_stream(lm, tokens, sites, options.text, batch_size=_BATCH, seed=options.seed, buffer_size=least)


def _rows(options: Plan, lm: LanguageModel, sae: SAE, told: Callable[[float], None]) -> Iterator[dict[str, Any]]:
    """Batches of rows, and what is left at the end of a short text; `told` hears which share of all is done."""
    stream = _stream(options, lm, sae)
    for batch in itertools.islice(stream, math.ceil(options.tokens / _BATCH)):
        yield batch
        told(min(stream.served / options.tokens, 1.0))
    rest, documents = stream.remainder()
    if stream.served < options.tokens and len(documents):
        yield rest
        told(1.0)


def _judge(options: Plan, lm: LanguageModel, sae: SAE, told: Callable[[float], None]) -> Judged:
    rows = saes.evaluate(sae, _rows(options, lm, sae, lambda share: told(share / 2)))
    tokens = read_text(lm, options.model, options.text, seed=options.seed, epochs=1)
    batches = itertools.islice(tokens, math.ceil(options.tokens / (tokens.batch_size * tokens.n_ctx)))
    exclude = left_out(tokens, options.text)
    return Judged(rows=rows, loss=saes.loss_recovered(sae, lm.model, lm.params, batches, exclude=exclude))


def _controls(options: Plan, lm: LanguageModel, sae: SAE, output: Output, *, mixed: bool) -> dict[str, Judged]:
    """The same of a random dictionary with as many active latents and, if asked, of a model with its weights mixed."""
    one, two = jax.random.split(jax.random.key(options.seed))
    sample = next(_rows(options, lm, sae, lambda share: None))
    rows, targets = (sample[site] for site in (sae.config.site, sae.config.target_site))
    fitted = None
    if sae.config.architecture.name != "topk":
        fitted = max(saes.evaluate(sae, [sample]).l0, 1e-2)
    control = saes.random_dictionary(sae.config, one, rows, targets=targets, l0=fitted)
    with output.busy(f"evaluating: {RANDOM}") as told:
        judged = {RANDOM: _judge(options, lm, control, told)}
    if mixed:
        other = dataclasses.replace(lm, params=saes.random_weights(lm.params, two))
        with output.busy(f"evaluating: {MIXED}") as told:
            judged[MIXED] = _judge(options, other, sae, told)
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
    output.heading(f"{own.rows.rows:,} rows, {own.loss.tokens:,} predictions")
    output.line("rows: tokens that are not left out; FVU, L0, cosine and lengths are means over them", style="dim")
    output.line(
        "predictions: next tokens in whole batches of text; nats are means over them, and the site is replaced at "
        f"{own.loss.touched:,} tokens",
        style="dim",
    )
    tables = [_lines(one) for one in judged.values()]
    output.table(["", *judged], [[name, *(table[name] for table in tables)] for name in tables[0]])
    counts, edges = own.rows.density()
    output.heading("how often latents are active: share of rows, number of latents")
    output.table(["share", "latents"], _decades(counts, edges))


def _remarks(judged: dict[str, Judged], tokens: int) -> list[str]:
    """What the table does not say by itself."""
    own, remarks = judged[OWN], []
    if own.rows.rows < tokens:
        remarks.append(f"the text ran out: {own.rows.rows:,} rows, where --tokens asks for {tokens:,}.")
    for name, one in judged.items():
        if one.loss.undefined:
            remarks.append(f"{name}: {one.loss.undefined}")
        if any(share > 1 for share in (one.loss.over_zero, one.loss.over_mean)):
            remarks.append(
                f"{name}: more than 100% of the loss is recovered, since this text costs less with the reconstruction "
                f"({one.loss.spliced:.3f} nats) than without ({one.loss.clean:.3f}). The model predicts it badly as it is: is it "
                "a text of the kind that the model knows, with the right tokenizer and BOS?"
            )
    return remarks


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
reconstruction stands in for the site (of a transcoder: for its target). Beside it stands a random dictionary of the same
kind with as many active latents: what a number is worth is its distance from that. Special tokens (BOS) are left out
throughout.

Take text that it was not trained on. A small error is no evidence that anything was understood.

examples:
  jaxinterp sae eval sae-results/dictionary --text other-stories.txt
  jaxinterp sae eval sae-results/dictionary --text other-stories.txt --controls --json
  jaxinterp sae eval google/gemma-scope-2b-pt-res --subfolder layer_20/width_16k/average_l0_71 \\
      --model google/gemma-2-2b --text texts.jsonl
""",
)
