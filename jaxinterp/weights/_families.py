"""The register of families: one line each."""

from typing import Any

from jaxinterp._errors import ConfigError
from jaxinterp.weights._bert import BERT
from jaxinterp.weights._family import Family
from jaxinterp.weights._gemma import GEMMA, GEMMA2, GEMMA3
from jaxinterp.weights._gpt2 import GPT2
from jaxinterp.weights._gpt_neox import GPT_NEOX
from jaxinterp.weights._gptj import GPTJ
from jaxinterp.weights._llama import LLAMA
from jaxinterp.weights._mistral import MISTRAL
from jaxinterp.weights._native import NATIVE
from jaxinterp.weights._olmo2 import OLMO2
from jaxinterp.weights._phi3 import PHI3
from jaxinterp.weights._qwen import QWEN2, QWEN3

_ALL = (GPT2, GPT_NEOX, GPTJ, LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, PHI3, OLMO2, BERT, NATIVE)
FAMILIES: dict[str, Family] = {family.model_type: family for family in _ALL}


def find_family(raw: dict[str, Any]) -> Family:
    """The family that a config.json names.

    Raises:
        ConfigError: it names none, or one that is not supported. The message says which are.
    """
    model_type = raw.get("model_type")
    supported = "; ".join(
        f"{f.model_type} ({', '.join(f.architectures) or 'our own format'})" for f in FAMILIES.values()
    )
    if model_type is None:
        raise ConfigError(
            f"config.json has no model_type, so what the model computes is not known. Supported: {supported}."
        )
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        named = ", ".join(map(str, raw.get("architectures") or [])) or "none named"
        raise ConfigError(
            f"Models of type {model_type!r} (architecture: {named}) are not supported. Supported: {supported}."
        )
    return FAMILIES[model_type]
