"""From a sweep over heads to a tested claim: search on some prompts, judge on others, against random heads."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp import patching
from jaxinterp._errors import InputError
from jaxinterp._typing import Array, Bool, Float, Params
from jaxinterp.audit._flips import Flips, flips, random_sets
from jaxinterp.audit._intervals import Interval, Share, bootstrap_mean
from jaxinterp.models import Model
from jaxinterp.tap import capture, run
from jaxinterp.tasks import PromptPairs

if TYPE_CHECKING:
    import xarray

_N_RANDOM = 40
_MOST_HEADS = 8
_ENOUGH = 0.9
_LOOKS = 0.3
_IDLE = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdleHead:
    """A head that looks at what differs and changes little: attention is no explanation.

    Attributes:
        layer, head: which one.
        attention: mean probability on the tokens that differ, from the last token.
        effect: normalized effect of patching it (a fraction), with its interval over prompts.
    """

    layer: int
    head: int
    attention: float
    effect: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadStudy:
    """What `study_heads` found, and how it stood the test.

    Attributes:
        effects: the sweep over heads on the search prompts, both directions.
        attention_by_prompt: [L, H, n], attention from the last token to the tokens that differ, on the search prompts: the n/2
            clean ones, then the corrupt ones.
        heads: the chosen heads, strongest first.
        search: flips on the search prompts by the k strongest heads, k = 1, 2, ...
        right: held-out pairs for which the model prefers the right answer on both sides.
        says: held-out prompts whose most probable next token is their own answer.
        flipped: among these, those whose next token becomes the other answer when the chosen heads are patched.
        flipped_by_direction: the same for corrupt prompts patched from clean ones, and the other way round.
        turned: [2, n], which held-out prompts these are, by direction and pair.
        control: [S], the share that each random set of as many other heads flips.
        advantage: share flipped by the chosen heads minus the mean of the random sets, with its interval over pairs.
        idle: a head that attends strongly and does little, if there is one.
    """

    effects: "xarray.Dataset"
    attention_by_prompt: Float[np.ndarray, "L H n_search"]
    heads: tuple[tuple[int, int], ...]
    search: tuple[Share, ...]
    right: Share
    says: Share
    flipped: Share
    flipped_by_direction: tuple[Share, Share]
    turned: Bool[np.ndarray, "2 n_held_out"]
    control: Float[np.ndarray, " S"]
    advantage: Interval
    idle: IdleHead | None

    @property
    def attention(self) -> Float[np.ndarray, "L H"]:
        """The mean over prompts of `attention_by_prompt`."""
        return self.attention_by_prompt.mean(axis=-1)

    @property
    def solves(self) -> bool:
        """Whether the model does the task: the interval of `right` lies above one half (guessing gives a quarter)."""
        return self.right.interval.low > 0.5

    @property
    def found(self) -> bool:
        """Whether heads were found that carry the answer, by the rule of `verdict`."""
        return self.solves and self._beats_chance

    @property
    def _beats_chance(self) -> bool:
        return bool(len(self.control)) and self.advantage.low > 0 and self.flipped.fraction > float(self.control.max())

    @property
    def verdict(self) -> str:
        """The decision with its reason.

        Heads count as found if the model does the task on held-out prompts, and if patching them flips more of these than
        each random set does, with an advantage over the sets' mean whose 95 % interval (over pairs) lies above 0. Pairs share
        templates and names, so the intervals speak of prompts like these, not of all prompts.
        """
        if not self.solves:
            return (
                "Nothing was found: the model does not do this task. It prefers the right answer on both sides of the held-out "
                f"pairs in {self.right}; the lower end would have to be above 50 %."
            )
        if not len(self.control):
            return "Nothing can be said: the model has too few heads for a control by random ones."
        gain = f"{self.advantage.estimate:+.0%}, 95 % interval {self.advantage.low:+.0%} to {self.advantage.high:+.0%}"
        others = f"{len(self.control)} random sets of as many other heads"
        if not self._beats_chance:
            return (
                "Nothing was found: the chosen heads do not flip more held-out prompts than random ones do. They flip "
                f"{self.flipped}, {others} {self.control.max():.0%} at best (advantage over their mean: {gain})."
            )
        return (
            f"Found. Of the held-out prompts the chosen heads flip {self.flipped}; {others} flip {self.control.mean():.0%} on "
            f"average and {self.control.max():.0%} at best (advantage over their mean: {gain})."
        )


def study_heads(
    model: Model,
    params: Params,
    *,
    search: PromptPairs,
    held_out: PromptPairs,
    n_random: int = _N_RANDOM,
    most_heads: int = _MOST_HEADS,
    seed: int = 0,
    progress: bool = True,
    say: Callable[[str], None] = lambda step: None,
) -> HeadStudy:
    """Finds the heads that carry what tells two prompts apart, and tests them on prompts that the search never saw.

    The search pairs are swept head by head, in both directions (each prompt patched from the other). The fewest of the
    strongest heads that jointly flip nearly as many search prompts as any number of them are chosen. Only then are the
    held-out pairs run: with the chosen heads patched, and with random sets of as many other heads as a control.

    Args:
        model: the model.
        params: its parameters.
        search: pairs to find the heads with.
        held_out: pairs to judge them on.
        n_random: how many random sets.
        most_heads: at most this many heads are chosen, and at most a quarter of the model's.
        seed: of the random sets and the bootstrap.
        progress: whether the sweep shows a bar.
        say: called with a word or two before each step.

    Returns:
        Everything that was measured; `.found` and `.verdict` decide by a stated rule.

    Raises:
        InputError: a prompt that is in both sets.
    """
    _check_apart(search, held_out)
    both = both_directions(search)
    say("sweep over heads")
    effects = patching.sweep(
        model, params, base=both.corrupt, source=both.clean, mask=both.mask if both.is_padded else None, site="attn.z",
        over="layer,head", metric=patching.logit_difference(both.correct, both.wrong, both.answer_position),
        keep=("prompts",), progress=progress,
    )  # fmt: skip
    say("attention")
    attention = np.asarray(attention_to_difference(model, params, both), dtype=np.float32)
    ranking = _ranking(effects)
    most = max(1, min(most_heads, len(ranking) // 4))
    say("joint patches on the search prompts")
    first = flips(model, params, search, [ranking[:k] for k in range(1, most + 1)])
    heads = tuple(ranking[: _fewest(first)])
    say("held-out prompts")
    control = random_sets(model, len(heads), n_random, seed=seed, without=heads)
    judged = flips(model, params, held_out, [heads, *control])
    return HeadStudy(
        effects=effects,
        attention_by_prompt=attention,
        heads=heads,
        search=tuple(_share(one, first.says) for one in first.flipped),
        right=_right(model, params, held_out),
        says=Share(count=int(judged.says.sum()), total=int(judged.says.size)),
        flipped=_share(judged.flipped[0], judged.says),
        flipped_by_direction=tuple(_share(judged.flipped[0, i], judged.says[i]) for i in (0, 1)),  # type: ignore[arg-type]
        turned=judged.flipped[0],
        control=judged.rate()[1:],
        advantage=_advantage(judged, seed),
        idle=_idle(effects, attention.mean(axis=-1), heads, seed),
    )


def both_directions(pairs: PromptPairs) -> PromptPairs:
    """Every pair twice, the second time with clean and corrupt exchanged, answers included."""
    width = max(pairs.correct.shape[1], pairs.wrong.shape[1])
    fill = lambda ids: jnp.pad(ids, ((0, 0), (0, width - ids.shape[1])), constant_values=-1)
    correct, wrong = fill(pairs.correct), fill(pairs.wrong)
    twice = lambda x: jnp.concatenate([x, x])
    return dataclasses.replace(
        pairs,
        clean=jnp.concatenate([pairs.clean, pairs.corrupt]),
        corrupt=jnp.concatenate([pairs.corrupt, pairs.clean]),
        mask=twice(pairs.mask),
        correct=jnp.concatenate([correct, wrong]),
        wrong=jnp.concatenate([wrong, correct]),
        answer_position=twice(pairs.answer_position),
        roles={name: twice(position) for name, position in pairs.roles.items()},
        clean_text=pairs.clean_text + pairs.corrupt_text,
        corrupt_text=pairs.corrupt_text + pairs.clean_text,
        template=pairs.template * 2,
    )


def attention_to_difference(model: Model, params: Params, pairs: PromptPairs) -> Float[Array, "L H B"]:
    """How much each head attends, from the token before the answer, to the tokens in which the two prompts differ.

    Args:
        model: the model.
        params: its parameters.
        pairs: B pairs; the clean prompts are run.

    Returns:
        Probabilities [L, H, B].
    """
    mask = pairs.mask if pairs.is_padded else None
    return _attention(model, params, pairs.clean, mask, pairs.answer_position, jnp.asarray(pairs.differs()))


@functools.partial(jax.jit, static_argnames="model")
def _attention(model: Model, params: Params, tokens: Array, mask: Any, rows: Array, differs: Array) -> Array:
    here = capture("attn.pattern", position=rows[:, None])
    _, acts, _ = run(model.forward, here)(params, tokens, mask=mask, read=rows[:, None])
    pattern = acts["attn.pattern"][:, :, :, 0]  # [L, B, H, S]
    return jnp.moveaxis(jnp.where(differs[None, :, None], pattern, jnp.zeros_like(pattern)).sum(-1), 1, 2)


def _check_apart(search: PromptPairs, held_out: PromptPairs) -> None:
    seen = {*search.clean_text, *search.corrupt_text} & {*held_out.clean_text, *held_out.corrupt_text}
    if seen:
        raise InputError(
            f"{len(seen)} prompts are both in `search` and in `held_out`, such as {min(seen)!r}: the test would not be one. "
            "Use other templates or names."
        )


def _ranking(effects: "xarray.Dataset") -> list[tuple[int, int]]:
    """(layer, head) by effect toward the source, strongest first."""
    values = np.nan_to_num(np.asarray(effects["effect"].transpose("layer", "head").values), nan=-math.inf)
    order = np.argsort(-values.ravel(), kind="stable")
    return [(int(i) // values.shape[1], int(i) % values.shape[1]) for i in order]


def _fewest(first: Flips) -> int:
    counts = first.flipped.sum(axis=(1, 2))
    return int(np.argmax(counts >= _ENOUGH * counts.max())) + 1


def _share(flipped: np.ndarray, says: np.ndarray) -> Share:
    return Share(count=int(flipped.sum()), total=int(says.sum()))


def _right(model: Model, params: Params, pairs: PromptPairs) -> Share:
    metric = patching.logit_difference(pairs.correct, pairs.wrong, pairs.answer_position)
    mask = pairs.mask if pairs.is_padded else None
    sides = [np.asarray(_measure(model, params, tokens, mask, metric)) for tokens in (pairs.clean, pairs.corrupt)]
    return Share(count=int(((sides[0] > 0) & (sides[1] < 0)).sum()), total=len(pairs))


@functools.partial(jax.jit, static_argnames="model")
def _measure(model: Model, params: Params, tokens: Array, mask: Any, metric: patching.Metric) -> Array:
    return metric(model.forward(params, tokens, mask=mask, read=jnp.asarray(metric.positions), answers=metric.tokens))


def _advantage(judged: Flips, seed: int) -> Interval:
    """Chosen minus mean of the random sets, over the pairs that have something to flip."""
    counted = judged.says.sum(axis=0)
    if not counted.any() or len(judged.flipped) < 2:
        return Interval(estimate=math.nan, low=-1.0, high=1.0)
    difference = judged.flipped[0].sum(axis=0) - judged.flipped[1:].mean(axis=0).sum(axis=0)
    there = counted > 0
    return bootstrap_mean(difference[there] / counted[there], seed=seed)


def _idle(effects: "xarray.Dataset", attention: np.ndarray, chosen: Any, seed: int) -> IdleHead | None:
    """Of the heads that look at the difference and have an effect near 0, the one that looks most."""
    normalized = np.asarray(effects["normalized"].transpose("layer", "head").values)
    quiet = (np.abs(normalized) <= _IDLE) & (attention >= _LOOKS)
    for cell in chosen:
        quiet[cell] = False
    if not quiet.any():
        return None
    layer, head = (int(i) for i in np.unravel_index(np.argmax(np.where(quiet, attention, -1.0)), quiet.shape))
    gap = float(effects["source"]) - float(effects["base"])
    one = effects["effect_by_prompt"].transpose("layer", "head", "prompt").values[layer, head] / gap
    return IdleHead(
        layer=layer, head=head, attention=float(attention[layer, head]), effect=bootstrap_mean(one, seed=seed)
    )
