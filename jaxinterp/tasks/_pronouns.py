"""She or he: openings of stories after which a pronoun is the natural next word."""

from collections.abc import Sequence

from jaxinterp._typing import Array
from jaxinterp.tasks._build import Case, Mention, pairs_from_cases
from jaxinterp.tasks._draws import Split, balanced, check_count, distinct_draws, generator, template_indices, word_list
from jaxinterp.tasks._pairs import PromptPairs
from jaxinterp.tasks._tokens import TokenizerLike, check_tokenizer, single_token_names

SHE_NAMES = word_list(
    "Lily Lucy Jane Sarah Amy Sally Mia Sue Daisy Molly Anna Mary Grace Emma Sara Emily Ella Sophie Lisa Alice "
    "Kate Julie Jennifer Rosie Lola Hannah Nora Luna Bella Polly"
)
HE_NAMES = word_list(
    "Tim Timmy Jack Tom Max John Joe Bob Andy Ben James Jim Bobby Jimmy Sam Billy Jake Pete Benny Danny "
    "Fred Frank Henry Peter Bill Dave Gary Mark David George"
)

# The first N_TRAIN are the training part; the others are held out.
PRONOUN_TEMPLATES = (
    "One day, {name} found a shiny stone in the garden.",
    "One morning, {name} went to the park with a red ball. {name} wanted to play.",
    "It was a rainy day and {name} was sad. {name} wanted to go outside.",
    "One day, {name} heard a loud noise in the kitchen. {name} was scared.",
    "There was a tall tree near the house. One day, {name} had an idea.",
    "The little dog ran away and {name} looked for it all day. {name} was very tired.",
    "In a small town, there lived a child named {name}. Every day, {name} liked to walk to the lake.",
    "There was a big cake on the table and {name} wanted some.",
    "One day, {name} lost a toy in the sand. {name} started to cry.",
    "A big box came to the house. {name} was so excited.",
    "The cat was stuck in the tree and {name} wanted to help.",
    "One day, {name} saw a new swing in the park.",
    "In the morning, {name} looked out of the window and saw snow. {name} was so happy.",
    "When the rain stopped, {name} went outside to play in the mud.",
    "The bread smelled very good and {name} was hungry. {name} took a big bite.",
    "There was a big puddle on the road. {name} jumped and laughed.",
    "After lunch, {name} saw a butterfly near the flowers. {name} smiled.",
    "One night, {name} could not sleep. {name} looked at the moon.",
    "It was very hot, so {name} went to the river. {name} was happy.",
    "At the end of the day, {name} was very proud.",
    "The ball rolled under the bed. {name} did not know what to do.",
    "At the beach, {name} found a pretty shell. {name} put it in a bag.",
    "One day, {name} fell down and hurt a knee. {name} cried.",
    "Once there was a child called {name}. {name} had a toy train.",
)
_N_TRAIN = 16


def pronouns(
    key: Array,
    n: int,
    tokenizer: TokenizerLike,
    *,
    she_names: Sequence[str] | None = None,
    he_names: Sequence[str] | None = None,
    templates: Split | Sequence[int] = "all",
    prepend_bos: bool | None = None,
) -> PromptPairs:
    """Openings in the manner of children's stories whose next word is a pronoun.

    The clean prompt names a girl, the corrupt one a boy, in the same words otherwise. The answers are " She" (correct) and
    " He" (wrong). No other word of the templates tells a girl from a boy.

    Roles: `name` (the first mention), `last_name` (the last mention, the same token in templates with one), `end`.

    Args:
        key: a typed key; the same key gives the same pairs.
        n: number of pairs, all different (a clean prompt may come again beside another corrupt one). Templates occur
            equally often, give or take one.
        tokenizer: the tokenizer of the model to be studied.
        she_names: names to draw from; None takes those of a list of 30 that are single tokens and keeps the others
            in `refused`.
        he_names: likewise.
        templates: "all" 24, the first 16 ("train"), the other 8 ("held_out"), or indices into `PRONOUN_TEMPLATES`.
        prepend_bos: whether BOS is put in front; None follows the tokenizer.

    Returns:
        `PromptPairs` with `A` = 1.

    Raises:
        TokenError: given names that are not single tokens (the message says which and how many remain), or none left.
        InputError: fewer than `n` different pairs exist, or an argument is not legal.

    Example:
        >>> import jax
        >>> from jaxinterp.tasks import WordTokenizer
        >>> words = WordTokenizer.of_texts([*PRONOUN_TEMPLATES, " Lily Lucy Tim Tom She He"])
        >>> pairs = pronouns(jax.random.key(0), 8, words, she_names=["Lily", "Lucy"], he_names=["Tim", "Tom"])
        >>> len(pairs), sorted(pairs.roles)
        (8, ['end', 'last_name', 'name'])
    """
    check_tokenizer(tokenizer)
    check_count(n)
    rng = generator(key)
    chosen = template_indices(templates, total=len(PRONOUN_TEMPLATES), train=_N_TRAIN)
    names, refused = {}, ()
    for kind, given, default in (("she-names", she_names, SHE_NAMES), ("he-names", he_names, HE_NAMES)):
        names[kind], left_out = single_token_names(
            tokenizer,
            default if given is None else given,
            template=PRONOUN_TEMPLATES[0],
            needed=1,
            what=kind,
            given=given is not None,
        )
        refused += left_out

    she, he = list(names["she-names"]), list(names["he-names"])
    draws = distinct_draws(rng, balanced(rng, chosen, n), (len(she), len(he)), kind="template")
    cases = []
    for i, (index, (girl, boy)) in enumerate(draws):
        template = PRONOUN_TEMPLATES[index]
        mentions, token = template.count("{name}"), names["she-names"][she[girl]]
        last = Mention(token=token, occurrence=mentions - 1, of=mentions)
        cases.append(
            Case(
                where=f"pair {i}",
                clean=template.format(name=she[girl]),
                corrupt=template.format(name=he[boy]),
                correct=[" She"],
                wrong=[" He"],
                roles={"name": Mention(token=token, of=mentions), "last_name": last},
                template=f"pronouns/{index:02}",
            )
        )
    return pairs_from_cases(cases, tokenizer, prepend_bos=prepend_bos, refused=refused)
