"""`jaxinterp sae page`."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxinterp import saes, viz
from jaxinterp.activations import TokenBatch, Tokens
from jaxinterp.cli._commands import Command
from jaxinterp.cli._options import (
    OutputArgs,
    OutputOptions,
    check_range,
    headline,
    load_model,
    model_facts,
    provenance,
)
from jaxinterp.cli._output import Output
from jaxinterp.cli._sae_options import (
    Dictionary,
    FileArgs,
    TextArgs,
    dictionary_line,
    left_out,
    load_dictionary,
    open_stream,
    read_text,
)
from jaxinterp.cli._sae_origin import TrainedModelArgs, TrainedModelOptions, as_trained, check_dictionary
from jaxinterp.saes import SAE
from jaxinterp.weights import LanguageModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """Options of `jaxinterp sae page`."""

    dictionary: Dictionary
    """A folder, or OWNER/REPOSITORY on the hub."""

    files: FileArgs
    text: TextArgs

    tokens: int = 131_072
    """About how many tokens of the text are read; documents are taken in an order drawn from --seed."""

    n_top: int = 20
    """Contexts of the largest activations that each latent shows."""

    labels: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Also label each latent by the best of many written predicates, found on one half of the text and judged on the other."""

    seed: int = 0
    """Of the choice of documents."""

    out: Path = Path("sae-pages")
    """Folder for the pages; earlier pages there are replaced."""

    model: TrainedModelArgs = dataclasses.field(default_factory=TrainedModelOptions)
    output: OutputArgs = dataclasses.field(default_factory=OutputOptions)


def run(options: Page, output: Output, command: str) -> dict[str, Any]:
    """Describes the latents and writes their pages."""
    check_range("--tokens", options.tokens, 2)
    check_range("--n-top", options.n_top, 1)
    check_range("--seed", options.seed, 0, 2**32 - 1)
    sae = load_dictionary(options.dictionary, options.files, output)
    model, text = as_trained(sae, options.model, options.text)
    lm = load_model(model)
    tokens, again = (read_text(lm, model, text, seed=options.seed, epochs=1) for _ in range(2))
    sites = [sae.config.site, sae.config.target_site]
    stream = open_stream(lm, again, sites, text, batch_size=tokens.batch_size, seed=options.seed)
    check_dictionary(sae, stream, model, output)
    output.line(headline(lm, model), style="dim")
    output.line(dictionary_line(sae))
    special = left_out(tokens, text)
    batches = _read(tokens, options.tokens, output)
    with output.busy("describing latents") as told:
        each = _telling(batches, told)
        found = saes.describe_latents(sae, lm.model, lm.params, each, n_top=options.n_top, exclude=special)
    ids = range(lm.config.d_vocab)
    texts = [str(i) for i in ids] if lm.tokenizer is None else lm.tokenizer.str_tokens(ids)
    predicates = _labels(sae, lm, batches, special, texts, output) if options.labels else None
    about = {**provenance(lm, model, command), "dictionary": options.dictionary, "text": text.text.name}
    index = viz.latent_pages(
        found, options.out, texts=texts, predicates=predicates, title=f"Latents of {sae.config.site}",
        notes=[f"A {dictionary_line(sae)}."], provenance=about, command=command,
    )  # fmt: skip
    active = int((found.firing_rate > 0).sum())
    output.line(f"{active:,} of {sae.config.n_latents:,} latents are active in {int(found.rows):,} tokens")
    if predicates is not None:
        output.line(f"{predicates.count():,} have a label with an F1 above 0.8 on the other half of the text")
    output.line(f"  {index}   open it in a browser: search, sort, go from latent to latent")
    return {
        **model_facts(lm, model),
        "sae": saes.described(sae.config),
        "tokens": int(found.rows),
        "active": active,
        "files": [str(index)],
    }


def _read(tokens: Tokens, wanted: int, output: Output) -> list[TokenBatch]:
    """The batches of text that hold so many tokens, or all there are, which is noted."""
    n_batches = math.ceil(wanted / (tokens.batch_size * tokens.n_ctx))
    batches = list(itertools.islice(tokens, n_batches))
    if len(batches) < n_batches or next(tokens, None) is None:
        n_read = sum(int((batch.documents >= 0).sum()) for batch in batches)
        if n_read < wanted:
            output.note(
                f"the text ran out: it has {n_read:,} tokens, where --tokens asks for {wanted:,}. All were read."
            )
    return batches


def _telling(batches: list[TokenBatch], told: Callable[[float], None]) -> Iterator[TokenBatch]:
    """The batches; `told` hears which share of them is done."""
    for i, batch in enumerate(batches, start=1):
        yield batch
        told(i / len(batches))


def _labels(
    sae: SAE, lm: LanguageModel, batches: list[TokenBatch], special: Sequence[int], texts: Sequence[str], output: Output
) -> Any:
    """The best written predicate of each latent: found on the first half of the text, judged on the second."""
    half = len(batches) // 2
    with output.busy("labelling latents") as told:
        first, second = (
            saes.count_tokens(sae, lm.model, lm.params, _telling(part, told), exclude=special)
            for part in (batches[:half], batches[half:])
        )
        return saes.predicates(first, second, texts)


COMMAND = Command(
    options=Page,
    run=run,
    description="""\
Makes a folder of pages on the latents of a dictionary, which any browser opens without a network: an index to search
and sort, and for each latent its strongest and its typical contexts, the tokens that it promotes and suppresses, how
often and how strongly it is active, and the latents that are near it or active together with it.

examples:
  jaxinterp sae page sae-results/dictionary --text other-stories.txt
  jaxinterp sae page sae-results/dictionary --text other-stories.txt --labels --out pages
""",
)
