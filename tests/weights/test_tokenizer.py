import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinterp._errors import ConfigError, MissingFileError, TokenError, WeightsError
from jaxinterp.weights import Tokenizer
from jaxinterp.weights._token_text import byte_alphabet, decoder_kinds, readable

SENTENCE = "When Mary and John went to the store, John gave a drink to"
IDS = [2215, 5335, 290, 1757, 1816, 284, 262, 3650, 11, 1757, 2921, 257, 4144, 284]


@pytest.fixture(scope="module")
def gpt2(shared):
    return Tokenizer.from_folder(shared / "gpt2-tokenizer")


@pytest.fixture(scope="module")
def llama(shared):
    return Tokenizer.from_folder(shared / "stories260k")


def test_known_ids(gpt2):
    assert gpt2.encode(SENTENCE) == IDS
    assert gpt2.decode(IDS) == SENTENCE
    assert gpt2.decode(np.array(IDS)) == SENTENCE
    assert (gpt2.bos_id, gpt2.eos_id, gpt2.prepend_bos, gpt2.d_vocab) == (50256, 50256, False, 50257)


def test_str_tokens_have_real_spaces(gpt2, llama):
    assert gpt2.str_tokens("Mary gave\n\n it") == ["Mary", " gave", "\n\n", " it"]
    assert gpt2.str_tokens(IDS[:3]) == ["When", " Mary", " and"]
    assert llama.str_tokens("Once upon a time\n") == ["<s>", " Once", " upon", " a", " time", "\n"]
    assert llama.str_tokens([1, 403]) == ["<s>", " Once"]


def test_parts_of_a_character_are_shown_as_bytes(gpt2, llama):
    shown = gpt2.str_tokens(" \N{EARTH GLOBE EUROPE-AFRICA}é")
    assert "".join(shown[:-1]).endswith("<0x8D>") and shown[-1] == "é"
    assert llama.str_tokens("東", prepend_bos=False)[-3:] == ["<0xE6>", "<0x9D>", "<0xB1>"]


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
def test_text_comes_back_exactly(gpt2, llama, text):
    assert gpt2.decode(gpt2.encode(text)) == text.removeprefix("<|endoftext|>")
    assert gpt2.decode(gpt2.encode(text, prepend_bos=True)) == text.removeprefix("<|endoftext|>")
    ids = llama.encode(text)
    if 0 not in ids:  # the unknown token stands for a text that is lost
        assert llama.decode(ids) == text.replace("▁", " ")


def test_bos_is_never_doubled(gpt2, llama):
    assert gpt2.encode("Hi", prepend_bos=True)[0] == 50256
    assert gpt2.encode("<|endoftext|>Hi", prepend_bos=True) == gpt2.encode("<|endoftext|>Hi", prepend_bos=False)
    assert llama.encode("Once") == [1, 403] == llama.encode("<s>Once")
    assert llama.encode("Once", prepend_bos=False) == [403]
    assert llama.decode([1, 403]) == "Once" == llama.decode([403])


def variant(shared, tmp_path, folder, **config):
    text = (shared / folder / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text)
    if config:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "config", "policy", "bos_id"),
    [
        ("stories260k", {}, True, 1),  # the post-processor alone
        ("stories260k", {"bos_token": "<s>", "add_bos_token": False}, False, 1),
        ("stories260k", {"bos_token": "<s>", "add_bos_token": True}, True, 1),
        ("stories260k", {"bos_token": "<s>", "add_bos_token": None}, True, 1),
        ("gpt2-tokenizer", {}, False, None),
        ("gpt2-tokenizer", {"bos_token": "<|endoftext|>"}, False, 50256),
        (
            "gpt2-tokenizer",
            {"bos_token": {"content": "<|endoftext|>", "lstrip": False}, "add_bos_token": True},
            True,
            50256,
        ),
    ],
)
def test_the_policy_follows_the_files(shared, tmp_path, folder, config, policy, bos_id):
    path = variant(shared, tmp_path, folder, **config)
    tokenizer = Tokenizer.from_folder(path)
    assert (tokenizer.prepend_bos, tokenizer.bos_id) == (policy, bos_id)
    assert not Tokenizer.from_folder(path, prepend_bos=False).prepend_bos
    if bos_id is not None:
        said = Tokenizer.from_folder(path, prepend_bos=True)
        assert said.prepend_bos and said.encode("a")[0] == bos_id


def test_special_tokens_from_the_older_file(shared, tmp_path):
    path = variant(shared, tmp_path, "gpt2-tokenizer")
    (path / "special_tokens_map.json").write_text(
        '{"bos_token": {"content": "<|endoftext|>"}, "pad_token": "<|endoftext|>"}'
    )
    tokenizer = Tokenizer.from_folder(path)
    assert (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id) == (50256, 50256, None)


def test_a_bos_that_is_not_there(shared, tmp_path):
    with pytest.raises(ConfigError, match="names no bos_token"):
        Tokenizer.from_folder(variant(shared, tmp_path, "gpt2-tokenizer", add_bos_token=True))
    tokenizer = Tokenizer.from_folder(tmp_path, prepend_bos=False)
    with pytest.raises(TokenError, match="has no BOS token"):
        tokenizer.encode("a", prepend_bos=True)


def test_truncation_and_padding_of_the_file_are_off(shared, tmp_path):
    table = json.loads((shared / "gpt2-tokenizer" / "tokenizer.json").read_text())
    table["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    table["padding"] = {
        "strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "!",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    assert Tokenizer.from_folder(tmp_path).encode(SENTENCE) == IDS


def test_answers(gpt2, llama):
    assert gpt2.str_tokens([gpt2.answer_token(SENTENCE, " Mary")]) == [" Mary"]
    assert gpt2.answer_token(SENTENCE, " Mary") == IDS[1]
    assert gpt2.answer_token(SENTENCE, " Mary", prepend_bos=True) == IDS[1]
    assert llama.str_tokens([llama.answer_token("Lily was happy.", " She")]) == [" She"]


def test_answers_that_are_not_one_token(gpt2):
    with pytest.raises(TokenError, match=r"is 2 tokens after this prompt.*\[' Mary', ' Ann'\]"):
        gpt2.answer_token(SENTENCE, " Mary Ann")
    with pytest.raises(TokenError, match=r"is 0 tokens.*\[\]"):
        gpt2.answer_token(SENTENCE, "")
    with pytest.raises(
        TokenError, match=r"changes how the prompt.*from token 3 on: \[' '\] alone, \[' Mary'\] with the answer"
    ):
        gpt2.answer_token("a drink to ", "Mary")
    with pytest.raises(TokenError, match=r"from token 3 on: \[' Mar'\] alone, \[' Mary'\]"):
        gpt2.answer_token("a drink to Mar", "y")


def test_ids_out_of_vocabulary(gpt2):
    for ids in ([50257], [3, -1], np.array([10**6])):
        with pytest.raises(TokenError, match="outside of the vocabulary: legal ids are 0 to 50256"):
            gpt2.decode(ids)
    with pytest.raises(TokenError, match=r"\[-2, 99999\]"):
        gpt2.str_tokens([99999, 1, -2])


def test_a_folder_without_one_and_a_broken_one(tmp_path):
    with pytest.raises(MissingFileError, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(WeightsError, match="not a legal tokenizer"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(WeightsError, match="not a legal tokenizer"):
        Tokenizer.from_folder(tmp_path)


def test_a_broken_config_of_the_tokenizer(shared, tmp_path):
    variant(shared, tmp_path, "gpt2-tokenizer")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"tokenizer_config\.json is not legal JSON"):
        Tokenizer.from_folder(tmp_path)


def test_from_json_keeps_what_was_said(shared, tmp_path):
    text = (shared / "gpt2-tokenizer" / "tokenizer.json").read_text()
    made = Tokenizer.from_json(text, bos_token="<|endoftext|>", eos_token="<|endoftext|>", prepend_bos=True)
    assert made.encode("Hi")[0] == 50256 and made.eos_id == 50256
    for name, content in made.files.items():
        (tmp_path / name).write_bytes(content)
    back = Tokenizer.from_folder(tmp_path)
    assert (back.prepend_bos, back.bos_id, back.encode("Hi")) == (True, 50256, made.encode("Hi"))
    assert "prepend_bos=True" in repr(back)


@pytest.fixture(scope="module")
def wordpiece():
    """A tokenizer of BERT's kind, and the `tokenizers` library's own object."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "paris", "is", "the", "capital", "of", "france", "##s", "."]
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.decoder = tokenizers.decoders.WordPiece()
    return backend


def test_what_stands_around_a_text_of_bert(wordpiece, tmp_path):
    (tmp_path / "tokenizer.json").write_text(wordpiece.to_str())
    (tmp_path / "tokenizer_config.json").write_text('{"mask_token": "[MASK]", "pad_token": "[PAD]"}')
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.bos_id, tokenizer.suffix_ids, tokenizer.mask_id, tokenizer.pad_id) == (2, (3,), 4, 0)
    text = "Paris is the [MASK] of France."
    ids = tokenizer.encode(text)
    assert ids == wordpiece.encode(text).ids
    assert ids[0] == 2 and ids[-1] == 3 and ids.count(4) == 1
    assert tokenizer.encode(text, prepend_bos=False) == ids[1:-1]
    assert tokenizer.decode(ids) == tokenizer.decode(ids[1:-1]) == tokenizer.decode(ids[:-1])
    assert tokenizer.encode(text + "[SEP]") == tokenizer.encode("[CLS]" + text) == ids  # what is written stands once
    assert tokenizer.answer_token("Paris is", " the") == 7


def test_readable_pieces():
    assert sorted(byte_alphabet().values()) == list(range(256))
    assert readable("Ċ", frozenset({"ByteLevel"})) == "\n"
    assert readable("▁a▁b", frozenset({"Metaspace"})) == " a b"
    assert readable("<0x0A>", frozenset({"ByteFallback"})) == "\n"
    assert readable("##ing", frozenset()) == "##ing"
    assert readable("東", frozenset({"ByteLevel"})) == "東"  # no byte-level piece: an added word
    assert decoder_kinds({"decoder": None}) == frozenset()
