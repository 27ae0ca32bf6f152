"""Prompt pairs and synthetic tasks: what a model is asked when its circuits are looked for.

The pairs:
    PromptPairs: clean and corrupt prompts, answers, roles, masks.
    pairs_from_text, pairs_from_jsonl, pairs_from_tokens: pairs of one's own.

The tasks, each `task(key, n, tokenizer, ...) -> PromptPairs`:
    pronouns: she or he, in the manner of children's stories.
    indirect_objects: "... Mary and John ..., John handed a map to".
    greater_than: "... began in the year 1732 and ended in the year 17".
    induction: repeated random tokens; takes `d_vocab`, no tokenizer.
    repeated_tokens: the same as whole sequences, for training and for scores of heads.

Rows in place of prompts:
    planted: sums of known directions, for judging sparse dictionaries.

Documents of a grammar:
    TopicGrammar: documents about one topic each, with a refusal behind a trigger, for steering.

Tokenizers:
    TokenizerLike: what a task asks of a tokenizer.
    WordTokenizer: one token a word, for symbolic tasks and examples.
"""

from jaxinterp.tasks._from_text import pairs_from_jsonl, pairs_from_text, pairs_from_tokens
from jaxinterp.tasks._greater_than import GREATER_THAN_TEMPLATES, greater_than
from jaxinterp.tasks._indirect_objects import INDIRECT_OBJECT_TEMPLATES, indirect_objects
from jaxinterp.tasks._induction import RepeatedTokens, induction, repeated_tokens
from jaxinterp.tasks._pairs import PromptPairs
from jaxinterp.tasks._planted import Planted, planted
from jaxinterp.tasks._pronouns import PRONOUN_TEMPLATES, pronouns
from jaxinterp.tasks._tokens import TokenizerLike
from jaxinterp.tasks._topics import TopicDocuments, TopicGrammar
from jaxinterp.tasks._words import WordTokenizer

__all__ = [
    "GREATER_THAN_TEMPLATES",
    "INDIRECT_OBJECT_TEMPLATES",
    "PRONOUN_TEMPLATES",
    "Planted",
    "PromptPairs",
    "RepeatedTokens",
    "TokenizerLike",
    "TopicDocuments",
    "TopicGrammar",
    "WordTokenizer",
    "greater_than",
    "indirect_objects",
    "induction",
    "pairs_from_jsonl",
    "pairs_from_text",
    "pairs_from_tokens",
    "planted",
    "pronouns",
    "repeated_tokens",
]
