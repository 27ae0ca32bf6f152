"""Parameters to a Hugging Face Llama folder that any tool can load."""

from pathlib import Path

import jaxinterp as ji

END = "<|endoftext|>"


def write_folder(folder: Path, model: ji.Model, params: dict, tokenizer_json: str) -> ji.LanguageModel:
    """Writes the folder and loads it back; the tokenizer's policy is that END stands before every prompt."""
    tokenizer = ji.Tokenizer.from_json(tokenizer_json, bos_token=END, eos_token=END, prepend_bos=True)
    made = ji.LanguageModel(model=model, params=params, tokenizer=tokenizer, source={"name": "stories"})
    ji.save(made, folder, family="llama", overwrite=True)
    return ji.load(folder)
