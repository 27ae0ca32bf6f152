"""`jaxinterp demo`: a story whose every sentence is computed."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxinterp as ji
from jaxinterp import audit, tasks
from jaxinterp._errors import InputError
from jaxinterp.cli._commands import Command
from jaxinterp.cli._files import check_folder, save_effects
from jaxinterp.cli._options import (
    ModelArgs,
    ModelOptions,
    OutputArgs,
    OutputOptions,
    check_range,
    headline,
    load_model,
    model_facts,
    provenance,
    tokenizer_of,
)
from jaxinterp.cli._output import Output
from jaxinterp.cli._ranking import print_ranking, ranking_json
from jaxinterp.tasks import PromptPairs
from jaxinterp.weights import LanguageModel

_TITLE = "Who carries the pronoun?"
_SHOWN_TOKENS = 18


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """Options of `jaxinterp demo`."""

    n_search: int = 32
    """Pairs of openings to search with; fewer are taken where the tokenizer has too few names as single tokens."""

    n_held_out: int = 48
    """Pairs of openings, of other templates, to judge with."""

    n_random: int = 40
    """Random sets of heads that serve as control."""

    seed: int = 0
    """Of names, templates and random heads."""

    out: Path = Path("demo-results")
    """Folder for effects.nc, effects.png and effects.html; files of these names are replaced."""

    model: ModelArgs = dataclasses.field(default_factory=ModelOptions)
    output: OutputArgs = dataclasses.field(default_factory=OutputOptions)


def run(options: Demo, output: Output, command: str) -> dict[str, Any]:
    """Tells the story, saves the numbers."""
    began = time.monotonic()
    for option, value in (("--n-search", options.n_search), ("--n-held-out", options.n_held_out)):
        check_range(option, value, 1)
    check_range("--n-random", options.n_random, 0)
    check_range("--seed", options.seed, 0, 2**32 - 1)
    check_folder(options.out)
    lm = load_model(options.model)
    output.line(headline(lm, options.model), style="dim")
    search, held_out = _openings(lm, options)
    _reads(output, lm, held_out)
    study = audit.study_heads(
        lm.model, lm.params, search=search, held_out=held_out, n_random=options.n_random, seed=options.seed,
        progress=output.bars, say=lambda step: output.step(f"{step} ..."),
    )  # fmt: skip
    study.effects.attrs.update(_attributes(provenance(lm, options.model, command)))
    _ranking(output, study, search)
    idle = _idle(study)
    output.heading("Looking is not carrying")
    output.paragraph(idle)
    _judgment(output, study, held_out)
    told = _told(lm, study, held_out)
    _continuations(output, study, told)
    files = _save(options, lm, study, search, [study.verdict, idle])
    _closing(output, options, files, time.monotonic() - began)
    return _result(lm, options, study, files, told, time.monotonic() - began)


def _attributes(facts: dict[str, Any]) -> dict[str, Any]:
    """As netCDF holds them."""
    return {key: int(fact) if isinstance(fact, bool) else fact for key, fact in facts.items() if fact is not None}


def _openings(lm: LanguageModel, options: Demo) -> tuple[PromptPairs, PromptPairs]:
    """Pairs to search with and pairs to judge with, from different templates; as many as there are, up to what was asked for."""
    tokenizer_of(lm, options.model)
    keys = jax.random.split(jax.random.key(options.seed))
    wanted = (("train", options.n_search), ("held_out", options.n_held_out))
    return tuple(_most(key, n, lm, part) for key, (part, n) in zip(keys, wanted, strict=True))  # type: ignore[return-value]


def _most(key: Any, n: int, lm: LanguageModel, part: Any) -> PromptPairs:
    while True:
        try:
            return tasks.pronouns(key, n, lm.tokenizer, templates=part)  # type: ignore[arg-type]
        except InputError:
            if n <= 8:
                raise
            n = max(8, n - 8)


def _reads(output: Output, lm: LanguageModel, pairs: PromptPairs) -> None:
    output.heading("1  A model reads the beginning of a story, and goes on")
    for text in (pairs.clean_text[0], pairs.corrupt_text[0]):
        output.line()
        output.continuation(text, _continued(lm, text))


def _continued(lm: LanguageModel, text: str, *handlers: ji.Handler, tokens: int = _SHOWN_TOKENS) -> str:
    return lm.generate(text, tokens, handlers=handlers)[len(text) :]


def _ranking(output: Output, study: audit.HeadStudy, search: PromptPairs) -> None:
    output.heading("2  Which heads carry the pronoun?")
    output.line()
    bos = "with" if search.prepend_bos else "without"
    output.paragraph(
        f"{len(search)} pairs such as {search.clean_text[0]!r} and {search.corrupt_text[0]!r} ({bos} BOS). Each of the "
        f"{study.attention.size} heads is patched alone, from the other opening of its pair, in both directions. Measured is "
        "the logit of the right pronoun minus that of the other; normalized, 1 is all the way to the other opening's value."
    )
    print_ranking(output, study.effects, 8)


def _idle(study: audit.HeadStudy) -> str:
    one = study.idle
    if one is None:
        return (
            "There is no head here that puts 30 % of its attention or more on the name and moves the logit difference by "
            "5 % of the gap or less when it is patched."
        )
    return (
        f"L{one.layer}.H{one.head} puts {one.attention:.0%} of its attention on the name, and yet patching it moves the logit "
        f"difference by {one.effect.estimate:.1%} of the gap (95 % interval {one.effect.low:.1%} to {one.effect.high:.1%}). "
        "A picture of its attention would have named it; the patch does not."
    )


def _judgment(output: Output, study: audit.HeadStudy, held_out: PromptPairs) -> None:
    output.heading("3  Does it hold for openings that the search never saw?")
    output.line()
    output.paragraph(
        f"{len(held_out)} pairs of other templates. The model prefers the right pronoun for both openings in {study.right}; its "
        f"most probable next word is the right pronoun for {study.says.count} of {study.says.total} openings. Patched together: "
        f"{_names(study.heads)}, the fewest of the strongest heads that flip nearly as many search openings as any number "
        "of them."
    )
    rows = [
        [
            name,
            f"{s.count} of {s.total}",
            f"{s.fraction:.0%}" if s.total else "",
            f"{s.interval.low:.0%} to {s.interval.high:.0%}",
        ]
        for name, s in zip(("from He to She", "from She to He"), study.flipped_by_direction, strict=True)
    ]
    if len(study.control) and study.says.count:
        best = f"best of them {study.control.max():.0%}"
        rows.append(
            [f"{len(study.control)} random sets of {len(study.heads)}", "", f"{study.control.mean():.0%}", best]
        )
    output.line()
    output.table(["pronoun flips", "openings", "share", "95 % interval"], rows)
    output.line()
    output.paragraph(study.verdict, style="bold green" if study.found else "bold yellow")


def _names(heads: Any) -> str:
    return ", ".join(f"L{layer}.H{head}" for layer, head in heads)


def _told(lm: LanguageModel, study: audit.HeadStudy, pairs: PromptPairs) -> list[dict[str, str]]:
    """Both openings of the first pair that flips both ways (else one way), continued as they are and with the heads patched."""
    if not study.found:
        return []
    ways = study.turned.sum(axis=0)
    pair = int(np.argmax(ways))
    texts = (pairs.corrupt_text[pair], pairs.clean_text[pair])
    told = []
    for base, source, turned in ((*texts, study.turned[0, pair]), (*reversed(texts), study.turned[1, pair])):
        if turned:
            _, acts = lm.run_with_cache(source, "attn.z")
            edits = [
                ji.patch("attn.z", per_layer=acts["attn.z"], layer=layer, head=head) for layer, head in study.heads
            ]
            plain, patched = _continued(lm, base), _continued(lm, base, *edits)
            told.append({"opening": base, "source": source, "continuation": plain, "patched": patched})
    return told


def _continuations(output: Output, study: audit.HeadStudy, told: list[dict[str, str]]) -> None:
    for one in told:
        output.line()
        output.continuation(one["opening"], one["continuation"])
        output.continuation(one["opening"], one["patched"], label=f"with {_names(study.heads)} from {one['source']!r}")


def _save(
    options: Demo, lm: LanguageModel, study: audit.HeadStudy, search: PromptPairs, notes: list[str]
) -> list[Path]:
    text = search.clean_text[_typical(study, len(search))]
    _, acts = lm.run_with_cache(text, "attn.pattern")
    heads = [*study.heads[:3], *([(study.idle.layer, study.idle.head)] if study.idle else [])]
    both = [
        *zip(search.corrupt_text, search.clean_text, strict=True),
        *zip(search.clean_text, search.corrupt_text, strict=True),
    ]
    return save_effects(
        study.effects,
        options.out,
        title=f"{_TITLE} Heads of {Path(options.model.model).name}",
        notes=notes,
        prompts=both,
        patterns={f"L{layer}.H{head}": np.asarray(acts["attn.pattern"][layer, 0, head]) for layer, head in heads},
        tokens=lm.str_tokens(text),
    )


def _typical(study: audit.HeadStudy, n: int) -> int:
    """The clean search prompt on which the head that looks and does nothing looks about as much as on average."""
    if study.idle is None:
        return 0
    looks = study.attention_by_prompt[study.idle.layer, study.idle.head, :n]
    return int(np.argmin(np.abs(looks - study.idle.attention)))


def _closing(output: Output, options: Demo, files: list[Path], seconds: float) -> None:
    output.heading("Files")
    for file, what in zip(
        files,
        ("the numbers: xarray.open_dataset", "the picture", "open it in a browser: hover, single prompts, attention"),
        strict=True,
    ):
        output.line(f"  {file}   {what}")
    output.heading("Next, with your own model")
    model = "" if options.model.model == "stories" else f" --model {options.model.model}"
    output.line("  jaxinterp demo --model FOLDER_OR_HUB_ID")
    output.line(f"  jaxinterp sites{model}")
    output.line(
        f'  jaxinterp patch{model} --clean "One day, Lily had an idea." --corrupt "One day, Tim had an idea." \\'
    )
    output.line('      --correct " She" --wrong " He" --over layer,position')
    output.line()
    output.line(f"{seconds:.0f} s", style="dim")


def _result(
    lm: LanguageModel,
    options: Demo,
    study: audit.HeadStudy,
    files: list[Path],
    told: list[dict[str, str]],
    seconds: float,
) -> dict[str, Any]:
    share = lambda s: {"count": s.count, "total": s.total, "low": s.interval.low, "high": s.interval.high}
    names = ("he_to_she", "she_to_he")
    flips = {name: share(s) for name, s in zip(names, study.flipped_by_direction, strict=True)}
    return {
        **model_facts(lm, options.model),
        "found": study.found,
        "verdict": study.verdict,
        "heads": [list(head) for head in study.heads],
        "right_pairs": share(study.right),
        "flips": {**flips, "all": share(study.flipped)},
        "control": [round(float(c), 6) for c in study.control] if study.says.count else [],
        "idle_head": None if study.idle is None else dataclasses.asdict(study.idle),
        "continuations": told,
        "metrics": ranking_json(study.effects, 8),
        "files": [str(file) for file in files],
        "seconds": round(seconds, 1),
    }


COMMAND = Command(
    options=Demo,
    run=run,
    description="""\
A story on a real language model, in about a minute: which attention heads carry the pronoun, and does it hold?

The model reads openings of stories that name a girl or a boy. Every head is patched from the other opening; the
strongest are then patched together in openings that the search never saw, with random heads as control. What is
printed is computed: on a model that can not do the task it says that nothing was found. Heads count as found if the
model prefers the right pronoun for both openings of more than half of the pairs (lower end of the 95 % interval), if
they flip more openings than each random set, and if the advantage over the sets' mean is above 0 (its 95 % interval).

It writes OUT/effects.nc, OUT/effects.png and OUT/effects.html, and says what to try next.

examples:
  jaxinterp demo
  jaxinterp demo --model path/to/folder --out results
  jaxinterp demo --json | jq .verdict
""",
)
