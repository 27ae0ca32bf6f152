"""A model, its parameters and its tokenizer, with the everyday questions as methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError, TokenError
from jaxinterp._typing import Array, Float, Int, Params, PRNGKeyArray
from jaxinterp.mesh import fetch
from jaxinterp.models import Model, Sampling, TransformerConfig, check_sampling, check_tokens, generate
from jaxinterp.tap import Handler, SiteTable, capture, run, sites
from jaxinterp.weights._arguments import check_generation, cut, id_array, is_whole, stops
from jaxinterp.weights._prediction import PredictedToken, Prediction, top_rows
from jaxinterp.weights._tokenizer import Tokenizer

Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | np.ndarray | jax.Array
"""What the methods read: a text, several texts of equal token length, or token ids [T] or [B, T]."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LanguageModel:
    """A model with its parameters and tokenizer, as `load` gives it.

    It holds nothing that `model.forward(params, tokens)` does not take: use `model` and `params` under `jax.jit`, and
    this for the questions that begin and end with text. To change a part, `dataclasses.replace(lm, params=...)`.

    Attributes:
        model: the pure functions.
        params: their parameters.
        tokenizer: text to ids, with the BOS policy; None for a model that works on ids alone.
        source: where it came from: name, folder, revision, family, dtype, the BOS policy as it was loaded (None without a
            tokenizer), and the checkpoint's own config.
        layout: the files it came from, for `save`; None for a model made here.

    Example:
        >>> import jaxinterp as ji
        >>> lm = ji.load("../shared/data/stories260k")
        >>> lm.predict("Once upon a", k=1)[0].token
        ' time'
    """

    model: Model
    params: Params
    tokenizer: Tokenizer | None = None
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    layout: Any = None

    @property
    def config(self) -> TransformerConfig:
        """The model's config."""
        return self.model.config

    def __repr__(self) -> str:
        c = self.config
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        bos = "no tokenizer" if self.tokenizer is None else f"prepend_bos={self.tokenizer.prepend_bos}"
        return (
            f"LanguageModel({self.source.get('name', 'unnamed')!r}, {count:,} parameters, {c.n_layers} layers, "
            f"{c.n_heads} heads, d_model={c.d_model}, n_ctx={c.n_ctx}, d_vocab={c.d_vocab}, {bos})"
        )

    def encode(self, text: str | Sequence[str], *, prepend_bos: bool | None = None) -> Int[Array, "B T"]:
        """The token ids of one text [1, T], or of several texts of equal token length [B, T].

        Args:
            text: one text or several.
            prepend_bos: whether BOS stands in front; None follows the tokenizer's policy.

        Raises:
            TokenError: an empty text, texts of different lengths, more tokens than the context, ids the model does
                not have.
        """
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self._encode_one(t, prepend_bos) for t in texts]
        lengths = {len(row) for row in rows}
        if len(lengths) != 1:
            shown = "".join(f"\n  {len(row)} tokens: {self._tokenizer.str_tokens(row)}" for row in rows)
            raise TokenError(
                f"Texts encoded together must have equally many tokens (or use encode_padded):{shown or ' there are none'}"
            )
        return self._checked(jnp.asarray(rows, jnp.int32))

    def encode_padded(
        self, texts: str | Sequence[str], *, prepend_bos: bool | None = None
    ) -> tuple[Int[Array, "B T"], Array]:
        """Texts of any lengths, padded on the left to the longest.

        Args:
            texts: several texts, or one.
            prepend_bos: see `encode`.

        Returns:
            The ids int32 [B, T], and the mask bool [B, T] that is True at real tokens; pass both: `forward(params,
            ids, mask=mask)`.
        """
        rows = [self._encode_one(text, prepend_bos) for text in ([texts] if isinstance(texts, str) else texts)]
        longest = max(map(len, rows), default=0)
        mask = np.array([[False] * (longest - len(row)) + [True] * len(row) for row in rows])
        filled = np.array([[0] * (longest - len(row)) + row for row in rows], np.int32)
        return self._checked(jnp.asarray(filled)), jnp.asarray(mask)

    def decode(self, ids: Sequence[int] | np.ndarray | jax.Array) -> str:
        """The text of token ids [T] or [1, T]; one BOS in front is dropped."""
        ids = np.asarray(ids)
        if ids.ndim > 1 and ids.size != ids.shape[-1]:
            raise InputError(
                f"decode takes the ids of one text, and got shape {ids.shape}. For several: [lm.decode(row) for row in ids]."
            )
        return self._tokenizer.decode(ids.reshape(-1))

    def str_tokens(
        self, text_or_ids: str | Sequence[int] | np.ndarray | jax.Array, *, prepend_bos: bool | None = None
    ) -> list[str]:
        """Each token of a text (BOS by the policy) or of ids, as readable text."""
        return self._tokenizer.str_tokens(text_or_ids, prepend_bos=prepend_bos)

    def answer_token(self, prompt: str, answer: str, *, prepend_bos: bool | None = None) -> int:
        """The one token by which `answer` (" She") continues `prompt`; see `Tokenizer.answer_token`."""
        return self._tokenizer.answer_token(prompt, answer, prepend_bos=prepend_bos)

    def predict(
        self, prompt: Prompt, k: int | None = None, *, position: int | None = None, prepend_bos: bool | None = None,
        handlers: Sequence[Handler] = (),
    ) -> Prediction:  # fmt: skip
        """The `k` most likely next tokens, with logits and probabilities; prints as a table.

        Args:
            prompt: one text, or ids [T] or [1, T].
            k: how many; None: 10, or all there are where that is fewer.
            position: whose logits are read, from 0. None: the last one; in a bidirectional model that of the mask token
                ("[MASK]"), of which there has to be one.
            prepend_bos: see `encode`.
            handlers: edits under which the model runs.

        Raises:
            TokenError: see `tokens`.
            InputError: a `k` that is not from 1 to the vocabulary's size, several prompts, logits that are not finite.
        """
        outputs = self.config.outputs
        k = min(10, outputs) if k is None else k
        if not is_whole(k) or not 1 <= k <= outputs:
            raise InputError(f"k = {k!r} is not legal: give how many tokens to list, from 1 to {outputs}.")
        tokens = self.tokens(prompt, prepend_bos=prepend_bos)
        if tokens.shape[0] != 1:
            raise InputError(f"predict reads one prompt, and got {tokens.shape[0]}: call it for each.")
        position = self._position(tokens, position)
        logits = _forward(self.model, self.params, tokens, tuple(handlers))[0]
        last = fetch(logits[0, position])
        if not np.isfinite(last).all():
            raise InputError(
                f"after {tokens.shape[1]} tokens {np.count_nonzero(~np.isfinite(last))} of {outputs} logits are not finite "
                "numbers. Is there NaN or infinity in the weights, or in what a handler puts in?"
            )
        rows = top_rows(last, int(k))
        names = self._names([i for i, _, _ in rows])
        return Prediction(
            prompt=tuple(self._names(np.asarray(tokens[0]).tolist())),
            rows=tuple(PredictedToken(name, *row) for name, row in zip(names, rows, strict=True)),
        )

    def generate(
        self, prompt: Prompt, max_new_tokens: int = 50, *, temperature: float = 0.0, top_k: int | None = None,
        top_p: float | None = None, key: PRNGKeyArray | None = None, seed: int | None = None,
        stop: str | int | Sequence[str | int] | None = None, prepend_bos: bool | None = None, handlers: Sequence[Handler] = (),
    ) -> str:  # fmt: skip
        """Continues a prompt, up to the end-of-text token where the model writes one, or to what `stop` says.

        Args:
            prompt: one text, or ids [T] or [1, T].
            max_new_tokens: how many tokens at most.
            temperature: 0 takes the most likely token each time; above, samples.
            top_k: sample among this many most likely tokens. None: all.
            top_p: and of those among the fewest that hold this share of the probability, up to 1. None: all.
            key: a typed key for sampling, instead of `seed`.
            seed: of the sampling; None: 0.
            stop: texts or token ids at which the continuation ends too; what stops it is left out. A text may be several tokens,
                or part of one.
            prepend_bos: see `encode`.
            handlers: edits that are active while the prompt is read and in every step, or at their own `step` or `position`.

        Returns:
            The prompt and its continuation.

        Raises:
            TokenError: see `tokens`; more tokens than the context holds; ids in `stop` that the model does not have.
            InputError: numbers that are not legal, `seed`, `key`, `top_k` or `top_p` where nothing is sampled, several prompts,
                logits that are NaN.
        """
        check_generation(max_new_tokens, temperature, key, seed)
        if temperature != 0 and key is None:
            key = jax.random.key(seed or 0)
        ends, texts = stops(stop)
        sampling = Sampling(temperature, key, top_k, top_p, ends)
        check_sampling(self.config.outputs, sampling)
        tokens = self.tokens(prompt, prepend_bos=prepend_bos)
        if tokens.shape[0] != 1:
            raise InputError(
                f"generate continues one prompt, and got {tokens.shape[0]}: use jaxinterp.models.generate for a batch."
            )
        check_tokens(self.config, tokens, new=int(max_new_tokens))
        ends += [] if self._tokenizer.eos_id is None else [self._tokenizer.eos_id]
        # None, which is no data: greedy generation is another program.
        sampling = sampling._replace(temperature=temperature or None, stop=np.array(ends, np.int32))
        ids = _generate(self.model, self.params, tokens, int(max_new_tokens), sampling, tuple(handlers))
        start = tokens.shape[1]
        last = next((i for i in range(start, len(ids)) if ids[i] in ends), len(ids))
        return cut(self.decode(ids[:last]), self.decode(ids[:start]), texts)

    def run_with_cache(
        self, prompt: Prompt, *names: str, prepend_bos: bool | None = None, handlers: Sequence[Handler] = ()
    ) -> tuple[Float[Array, "B T V"], dict[str, Array]]:
        """Logits and activations of one forward pass.

        Args:
            prompt: texts or ids.
            *names: sites to keep, names or globs; none means all that are computed anyway. On-demand sites, such as
                "attn.pattern", are named. TransformerLens's names are taken too: "blocks.3.attn.hook_pattern" (one layer, without
                an axis of layers), "blocks.*.hook_resid_pre".
            prepend_bos: see `encode`.
            handlers: edits under which the model runs.

        Returns:
            The logits [B, T, V], and the activations by site, with a leading layer axis where the site is in a layer.

        Example:
            >>> import jaxinterp as ji
            >>> lm = ji.load("../shared/data/stories260k")
            >>> logits, acts = lm.run_with_cache("Once upon a time", "attn.pattern")
            >>> acts["attn.pattern"].shape
            (5, 1, 8, 5, 5)
        """
        tokens = self.tokens(prompt, prepend_bos=prepend_bos)
        logits, acts, _ = _forward(self.model, self.params, tokens, (*handlers, capture(*(names or ("*",)))))
        return logits, acts

    def sites(self, prompt: Prompt = (0,)) -> SiteTable:
        """Every site of the model with axes, shape, dtype and bytes for this prompt; nothing is computed."""
        return sites(self.model.forward, self.params, self.tokens(prompt))

    def tokens(self, prompt: Prompt, *, prepend_bos: bool | None = None) -> Int[Array, "B T"]:
        """A prompt as ids [B, T]: texts are encoded, ids are checked.

        Raises:
            TokenError: empty, longer than the context, or ids the model does not have.
            InputError: neither text nor integer ids.
        """
        if isinstance(prompt, str) or (isinstance(prompt, Sequence) and any(isinstance(p, str) for p in prompt)):
            return self.encode(prompt, prepend_bos=prepend_bos)  # pyright: ignore[reportArgumentType]
        return self._checked(jnp.atleast_2d(jnp.asarray(id_array(prompt), jnp.int32)))

    @property
    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise TokenError(
                "This model has no tokenizer, so it reads token ids, not text. Pass ids, or give it one: "
                "dataclasses.replace(lm, tokenizer=jaxinterp.Tokenizer.from_folder(FOLDER))."
            )
        return self.tokenizer

    def _encode_one(self, text: Any, prepend_bos: bool | None) -> list[int]:
        if not isinstance(text, str):
            raise InputError(f"A text was expected, and {text!r} came: give texts alone, or token ids alone.")
        if text == "":
            bos = self._tokenizer.bos_id
            hint = (
                ""
                if bos is None
                else f" To start from BOS alone, pass its text, {self._tokenizer.str_tokens([bos])[0]!r}."
            )
            raise TokenError(f"The prompt is empty. Give at least one character.{hint}")
        return self._tokenizer.encode(text, prepend_bos=prepend_bos)

    def _position(self, tokens: Int[Array, "1 T"], position: int | None) -> int:
        """The position that is asked for, or the one that a prediction is about."""
        length = tokens.shape[1]
        if position is not None:
            if not is_whole(position) or not 0 <= position < length:
                raise InputError(
                    f"position = {position!r} is not legal: the prompt has {length} tokens, 0 to {length - 1}."
                )
            return int(position)
        if self.config.attention_dir == "causal":
            return length - 1
        mask = None if self.tokenizer is None else self.tokenizer.mask_id
        found = [] if mask is None else np.flatnonzero(np.asarray(tokens[0]) == mask).tolist()
        if len(found) != 1:
            raise InputError(
                f"This model is bidirectional: it predicts the token at a position, not the next one, and the prompt has "
                f"{len(found)} mask tokens. Put one where the unknown word is"
                + ("" if mask is None else f" ({self._names([mask])[0]})")
                + ", or pass position=."
            )
        return found[0]

    def _checked(self, tokens: Int[Array, "B T"]) -> Int[Array, "B T"]:
        check_tokens(self.config, tokens)
        return tokens

    def _names(self, ids: list[int]) -> list[str]:
        if self.tokenizer is None:
            return [f"<{i}>" for i in ids]
        known = self.tokenizer.d_vocab
        return [self.tokenizer.str_tokens([i])[0] if i < known else f"<{i}>" for i in ids]


def _forward_impl(model: Model, params: Params, tokens: Array, handlers: tuple[Handler, ...]) -> Any:
    return run(model.forward, *handlers)(params, tokens)


def _generate_impl(
    model: Model, params: Params, tokens: Array, new: int, sampling: Sampling, handlers: tuple[Handler, ...]
) -> Array:
    how = {name: value for name, value in sampling._asdict().items() if value is not None}

    def call(params: Params, tokens: Array, *, tap: Any) -> Array:
        return generate(model, params, tokens, max_new_tokens=new, tap=tap, **how)

    return run(call, *handlers)(params, tokens)[0]


_jitted_forward = jax.jit(_forward_impl, static_argnums=0)
_jitted_generate = jax.jit(_generate_impl, static_argnums=(0, 3))


def _forward(model: Model, params: Params, tokens: Array, handlers: tuple[Handler, ...]) -> Any:
    """One compiled program for all edits of a kind. An abstract trace first: there, indices out of range are an error."""
    if handlers:
        jax.eval_shape(lambda p, t: _forward_impl(model, p, t, handlers), params, tokens)
    return _jitted_forward(model, params, tokens, handlers)


def _generate(
    model: Model, params: Params, tokens: Array, new: int, sampling: Sampling, handlers: tuple[Handler, ...]
) -> list[int]:
    """As `_forward`; the ids, which are all real ones."""
    if handlers:
        jax.eval_shape(lambda p, t: _generate_impl(model, p, t, new, sampling, handlers), params, tokens)
    ids = fetch(_jitted_generate(model, params, tokens, new, sampling, handlers)[0]).tolist()
    if min(ids) < 0:
        raise InputError(
            f"after {ids.index(-1)} tokens the logits were NaN. Is there NaN in the weights, or in what a handler puts in?"
        )
    return ids
