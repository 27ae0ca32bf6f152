"""Indirect objects: two names, one of them gives, and the other is the answer."""

import functools
from collections.abc import Mapping, Sequence
from typing import Literal

from jaxinterp._errors import InputError
from jaxinterp._typing import Array
from jaxinterp.tasks._build import Case, Mention, pairs_from_cases
from jaxinterp.tasks._draws import (
    Split,
    balanced,
    check_count,
    distinct_draws,
    generator,
    pick,
    template_indices,
    word_list,
)
from jaxinterp.tasks._pairs import PromptPairs
from jaxinterp.tasks._tokens import TokenizerLike, check_tokenizer, single_token_names

NAMES = word_list(
    "Aaron Adam Alan Albert Alice Amanda Amy Andrea Andrew Angela Anna Anthony Arthur Barbara Ben Betty Bob Brian "
    "Bruce Carl Carol Caroline Catherine Charles Christine Claire Clara Craig Daniel David Dennis Diana Donald Donna "
    "Edward Elizabeth Ellen Emily Emma Eric Ethan Eva Frank Fred Gary George Gordon Greg Harold Harry Heather Helen "
    "Henry Howard Ian Isaac Jack Jacob James Jane Jason Jennifer Jerry Jessica Jim Joan Joe John Joseph Julia Karen "
    "Kate Keith Kevin Laura Leonard Linda Lisa Louis Lucy Luke Margaret Maria Martha Martin Mary Michael Michelle "
    "Nancy Nathan Nicole Oliver Patrick Paul Peter Rachel Robert Roger Sarah Simon"
)

# {first} and {second} are the pair in either order, {giver} is the one who gives. A name always follows a space.
INDIRECT_OBJECT_TEMPLATES = (
    "While {first} and {second} were waiting at the {place}, {giver} handed a {object} to",
    "Yesterday {first} met {second} near the {place}, and {giver} lent a {object} to",
    "As soon as {first} and {second} reached the {place}, {giver} passed the {object} to",
    "Before {first} and {second} left the {place}, {giver} sold the old {object} to",
    "It was late when {first} and {second} came back from the {place}, so {giver} returned the {object} to",
    "At the {place}, {first} sat beside {second} for an hour, and at last {giver} showed the {object} to",
    "Because {first} and {second} had worked all day at the {place}, {giver} brought a {object} to",
    "The children, {first} and {second}, played behind the {place} until {giver} threw the {object} to",
    "On the way to the {place}, {first} and {second} made up, and {giver} offered the {object} to",
    "Last summer {first} and {second} cleaned the {place} together, and {giver} promised the {object} to",
    "Once {first} and {second} had locked the {place}, {giver} gave the {object} to",
    "Nobody but {first} and {second} stayed at the {place}, where {giver} quietly slipped a {object} to",
    "Since {first} and {second} were alone in the {place}, {giver} entrusted the {object} to",
    "During the tour of the {place}, {first} and {second} got hungry, so {giver} carried the {object} over to",
    "Friends of {first} and {second} say that at the {place} {giver} presented the {object} to",
    "Every Friday {first} and {second} walk past the {place}, and {giver} always buys a {object} for",
    "Not far from the {place}, {first} and {second} stopped the car, and {giver} gave the {object} back to",
    "After a long day {first} and {second} closed the {place}, and {giver} left the {object} to",
)
PLACES = word_list("museum station bakery library theater farm garage hotel stadium market")
OBJECTS = word_list("map ticket blanket basket letter camera key bottle guitar book coat lamp")
_N_TRAIN = 12

Order = Literal["ABBA", "BABA"]


def indirect_objects(
    key: Array,
    n: int,
    tokenizer: TokenizerLike,
    *,
    corruption: Literal["abc", "swap"] = "abc",
    orders: Sequence[Order] = ("ABBA", "BABA"),
    names: Sequence[str] | None = None,
    templates: Split | Sequence[int] = "all",
    prepend_bos: bool | None = None,
) -> PromptPairs:
    """Sentences that end where the indirect object must come: "... Mary and John ..., John handed a map to".

    The clean prompt names the indirect object (IO, the answer) and the subject (S, who gives, the wrong answer). In the
    order ABBA the indirect object is named first, in BABA the subject.

    What the corrupt prompt is:
        "abc": three other names, all different, in the same template with the same place and object: no name repeats, so
            neither answer is called for. The draw is independent for each pair; group by `template` for means of one template.
        "swap": only the giver is exchanged for the indirect object: the right answers change places, at one position.

    Roles: `IO`, `S1` (first mention of the subject), `S1+1` (the token after it), `S2` (the giver), `end`.

    In every template S2 is the last name, as in the published data. So the rule "the name that is not the most recent one"
    answers all prompts without detecting a repeated name; "the first name" answers half of them, "the most recent name" none.
    Do not read high accuracy here as a proof of the mechanism.

    Args:
        key: a typed key; the same key gives the same pairs.
        n: number of pairs, all different. Orders are balanced, and templates within an order, give or take one.
        tokenizer: the tokenizer of the model to be studied.
        corruption: "abc" or "swap", as above.
        orders: which orders to use.
        names: names to draw from; None takes those of a list of 100 that are single tokens and keeps the others
            in `refused`.
        templates: "all" 18, the first 12 ("train"), the other 6 ("held_out"), or indices into `INDIRECT_OBJECT_TEMPLATES`.
        prepend_bos: whether BOS is put in front; None follows the tokenizer.

    Returns:
        `PromptPairs` with `A` = 1; `template` ids such as "indirect_objects/03/ABBA".

    Raises:
        TokenError: given names that are not single tokens, or fewer than 5 ("abc") or 2 ("swap") left; the message says
            which are refused and how many remain.
        InputError: fewer than `n` different pairs exist, or an argument is not legal.

    Example:
        >>> import jax
        >>> from jaxinterp.tasks import WordTokenizer
        >>> texts = [*INDIRECT_OBJECT_TEMPLATES, " Mary John Anna Paul Kate", " " + " ".join(PLACES + OBJECTS)]
        >>> words = WordTokenizer.of_texts(texts)
        >>> people = ["Mary", "John", "Anna", "Paul", "Kate"]
        >>> pairs = indirect_objects(jax.random.key(0), 6, words, names=people, corruption="swap", templates=[0])
        >>> sorted(set(pairs.template)), pairs.differs().sum(axis=1).tolist()
        (['indirect_objects/00/ABBA', 'indirect_objects/00/BABA'], [1, 1, 1, 1, 1, 1])

    Source: the task and its two corruptions follow Wang et al. 2022 (arXiv 2211.00593), section 2 and appendix; the sentences
    and the names are our own. The three names of "abc" also differ from the
    clean ones here, so that every name position changes.
    """
    check_tokenizer(tokenizer)
    check_count(n)
    rng = generator(key)
    chosen = template_indices(templates, total=len(INDIRECT_OBJECT_TEMPLATES), train=_N_TRAIN)
    if corruption not in ("abc", "swap"):
        raise InputError(
            f"corruption={corruption!r}: legal are 'abc' (three other names) and 'swap' (the other one gives)."
        )
    if not orders or len(set(orders)) != len(orders) or not set(orders) <= {"ABBA", "BABA"}:
        raise InputError(f"orders={orders!r}: give 'ABBA', 'BABA' or both, each once.")
    ids, refused = single_token_names(
        tokenizer,
        NAMES if names is None else names,
        template=INDIRECT_OBJECT_TEMPLATES[0],
        needed=5 if corruption == "abc" else 2,
        what="names",
        given=names is not None,
    )
    slots = [
        (index, order)
        for k, order in enumerate(orders)
        for index in balanced(rng, chosen, len(range(k, n, len(orders))))
    ]
    slots = [slots[i] for i in rng.permutation(n)]
    people = 5 if corruption == "abc" else 2
    radices = [len(ids) - k for k in range(people)] + [len(PLACES), len(OBJECTS)]
    cases = [
        _case(
            where=f"pair {i}",
            index=index,
            order=order,
            people=pick(list(ids), digits[:people]),
            ids=ids,
            place=PLACES[digits[-2]],
            thing=OBJECTS[digits[-1]],
        )
        for i, ((index, order), digits) in enumerate(distinct_draws(rng, slots, radices, kind="template and order"))
    ]
    return pairs_from_cases(cases, tokenizer, prepend_bos=prepend_bos, refused=refused)


def _case(
    *, where: str, index: int, order: Order, people: Sequence[str], ids: Mapping[str, int], place: str, thing: str
) -> Case:
    """One pair; `people` are the indirect object, the subject and, for "abc", three others."""
    indirect, subject, *others = people
    pair = (indirect, subject) if order == "ABBA" else (subject, indirect)
    corrupt_pair, corrupt_giver = (others[:2], others[2]) if others else (pair, indirect)
    fill = functools.partial(INDIRECT_OBJECT_TEMPLATES[index].format, place=place, object=thing)
    return Case(
        where=where,
        clean=fill(first=pair[0], second=pair[1], giver=subject),
        corrupt=fill(first=corrupt_pair[0], second=corrupt_pair[1], giver=corrupt_giver),
        correct=[f" {indirect}"],
        wrong=[f" {subject}"],
        roles={
            "IO": Mention(token=ids[indirect]),
            "S1": Mention(token=ids[subject], of=2),
            "S1+1": Mention(token=ids[subject], of=2, shift=1),
            "S2": Mention(token=ids[subject], occurrence=1, of=2),
        },
        template=f"indirect_objects/{index:02}/{order}",
    )
