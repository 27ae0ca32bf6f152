"""Greater-than: an event began in a year; it can only have ended in a later one."""

import functools
from collections.abc import Sequence
from typing import Any

from jaxinterp._errors import InputError, TokenError
from jaxinterp._typing import Array
from jaxinterp.tasks._build import Case, Mention, pairs_from_cases
from jaxinterp.tasks._draws import balanced, check_count, distinct_draws, generator, template_indices, word_list
from jaxinterp.tasks._pairs import PromptPairs
from jaxinterp.tasks._tokens import TokenizerLike, check_tokenizer

# {start} is a year, {century} its first two digits. A year always follows a space.
GREATER_THAN_TEMPLATES = (
    "The {noun} began in the year {start} and ended in the year {century}",
    "Historians say that the {noun} started in {start} and was over by {century}",
    "The records of the {noun} run from {start} to {century}",
    "People spoke of the {noun} from {start} until {century}",
    "What had set off the {noun} in {start} was forgotten by {century}",
    "After the {noun} broke out in {start}, peace returned only in {century}",
    "The chronicle describes the {noun}, which went on from {start} until about {century}",
    "The town suffered under the {noun} between {start} and {century}",
)
NOUNS = word_list(
    "famine siege voyage drought rebellion trial plague expedition strike debate campaign truce festival war alliance "
    "blockade boycott crisis dispute embargo epidemic feud flood inquiry invasion mission occupation operation protest "
    "reform regime revolt search shortage struggle study survey tour trade uprising"
)
_REFERENCE = "01"


def greater_than(
    key: Array,
    n: int,
    tokenizer: TokenizerLike,
    *,
    centuries: Sequence[int] = tuple(range(11, 18)),
    nouns: Sequence[str] | None = None,
    templates: Sequence[int] | None = None,
    prepend_bos: bool | None = None,
) -> PromptPairs:
    """Sentences such as "The siege began in the year 1732 and ended in the year 17": later years are right.

    The right answers are a set: every two-digit token above the start year's; the wrong ones those up to it. Two-digit tokens
    are those that continue one of the centuries (for GPT-2 all but "00"). The task's metric is the probability of the first set
    less that of the second. The corrupt prompt begins in the year 01 of the century,
    after which nearly every year is right.

    Roles: `noun` (its last token), `century` and `year` (the two tokens of the start year), `end`.

    Args:
        key: a typed key; the same key gives the same pairs.
        n: number of pairs, all different; start years occur equally often, give or take one.
        tokenizer: one that splits years into two tokens of two digits, as GPT-2's does for most of them.
        centuries: first two digits of the years to use.
        nouns: what lasted; None takes a list of 40. A noun may be several tokens.
        templates: indices into `GREATER_THAN_TEMPLATES`; None takes all.
        prepend_bos: whether BOS is put in front; None follows the tokenizer.

    Returns:
        `PromptPairs` with `correct` and `wrong` filled up by -1. Start years that do not split so are in `refused`.

    Raises:
        TokenError: no year of a century splits into two tokens of two digits; the message shows how years do split.
        InputError: fewer than `n` different pairs exist, or an argument is not legal.

    Example:
        >>> import jax
        >>> from jaxinterp.tasks import WordTokenizer
        >>> digits = [f"{y:02}" for y in range(100)]
        >>> words = WordTokenizer.of_texts([*GREATER_THAN_TEMPLATES, " siege 17", *digits])
        >>> pairs = greater_than(jax.random.key(0), 4, words, centuries=[17], nouns=["siege"])
        >>> start = int(words.decode(pairs.clean[0][pairs.roles["year"][:1]]))
        >>> int((pairs.correct[0] >= 0).sum()) == 99 - start, int((pairs.wrong[0] >= 0).sum()) == start + 1
        (True, True)

    Source: the task follows Hanna et al. 2023 (arXiv 2305.00586), section 3; the sentences are our own. Start years run
    from 02 to 98.
    """
    check_tokenizer(tokenizer)
    check_count(n)
    rng = generator(key)
    total = len(GREATER_THAN_TEMPLATES)
    chosen = template_indices("all" if templates is None else templates, total=total, train=total)
    nouns = NOUNS if nouns is None else list(nouns)
    if not nouns or not all(isinstance(noun, str) and noun.strip() == noun != "" for noun in nouns):
        raise InputError(f"nouns={nouns!r}: give at least one, without spaces around them.")
    years, suffixes, refused = _two_token_years(tokenizer, centuries)
    ordered = sorted(suffixes)
    cases = []
    draws = distinct_draws(rng, balanced(rng, list(years), n), (len(chosen), len(nouns)), kind="start year")
    for i, ((century, suffix), (which, what)) in enumerate(draws):
        fill = functools.partial(GREATER_THAN_TEMPLATES[chosen[which]].format, noun=nouns[what], century=century)
        token = years[century, suffix][0]
        cases.append(
            Case(
                where=f"pair {i}",
                clean=fill(start=f"{century}{suffix}"),
                corrupt=fill(start=f"{century}{_REFERENCE}"),
                correct=[suffixes[s] for s in ordered if s > suffix],
                wrong=[suffixes[s] for s in ordered if s <= suffix],
                roles={
                    "noun": f" {nouns[what]}",
                    "century": Mention(token=token, of=2),
                    "year": Mention(token=token, of=2, shift=1),
                },
                template=f"greater_than/{chosen[which]:02}",
            )
        )
    return pairs_from_cases(cases, tokenizer, prepend_bos=prepend_bos, refused=refused)


def _two_token_years(
    tokenizer: TokenizerLike, centuries: Sequence[int]
) -> tuple[dict[tuple[int, str], list[int]], dict[str, int], tuple[str, ...]]:
    """Start years that split into century and two digits, the token of each two digits, and the years refused.

    A century in which the reference year does not split is refused whole.
    """
    if not len(centuries) or not all(10 <= int(c) <= 99 for c in centuries) or len(set(centuries)) != len(centuries):
        raise InputError(
            f"centuries={tuple(centuries)}: give different numbers of two digits, such as 17 for 1700 to 1799."
        )
    split: dict[tuple[int, str], list[int]] = {}
    for century in centuries:
        for suffix in (f"{y:02}" for y in range(100)):
            ids = _split_year(tokenizer, century, suffix)
            if ids is not None:
                split[century, suffix] = ids
    suffixes = {suffix: ids[1] for (_, suffix), ids in split.items()}
    usable = {c for c in centuries if (c, _REFERENCE) in split}
    starts = {(c, f"{y:02}"): split.get((c, f"{y:02}")) for c in centuries for y in range(2, 99)}
    kept = {year: ids for year, ids in starts.items() if ids is not None and year[0] in usable}
    refused = tuple(f"{c}{suffix}" for c, suffix in starts if (c, suffix) not in kept)
    if not kept:
        example = f"{centuries[0]}32"
        pieces = tokenizer.str_tokens(tokenizer.encode(f"The {example}", prepend_bos=False))
        raise TokenError(
            f"No year of the centuries {', '.join(map(str, centuries))} is two tokens of two digits each, as this task needs "
            f'(the corrupt year {_REFERENCE} included): "The {example}" is {pieces}. Use a tokenizer '
            "that keeps two digits together."
        )
    return kept, suffixes, refused


def _split_year(tokenizer: TokenizerLike, century: int, suffix: str) -> list[int] | None:
    """The two token ids of a year after "The", or None if it splits in any other way."""
    encode: Any = lambda text: tokenizer.encode(text, prepend_bos=False)
    try:
        before, first, year = encode("The"), encode(f"The {century}"), encode(f"The {century}{suffix}")
    except TokenError:
        return None
    ids = year[len(before) :]
    whole = len(first) == len(before) + 1 and len(ids) == 2 and year[:-1] == first
    return ids if whole and tokenizer.decode([ids[1]]).strip() == suffix else None
