import pytest

from jaxinterp import TokenError
from jaxinterp.tasks import TokenizerLike, WordTokenizer


def test_text_comes_back_and_bos_is_a_policy() -> None:
    text = "In 1732, Tim's dog ran; it's 5 o'clock!\nBye."
    words = WordTokenizer.of_texts([text], bos="<bos>")
    ids = words.encode(text)
    assert ids[0] == words.bos_id == 0 and words.decode(ids[1:]) == text
    assert words.encode(text, prepend_bos=False) == ids[1:]
    assert "".join(words.str_tokens(ids)) == "<bos>" + text
    assert " 17" in words.str_tokens(text) and "32" in words.str_tokens(text)
    assert isinstance(words, TokenizerLike) and words.d_vocab == len(set(ids))


def test_unknown_words_and_answers_of_several_tokens() -> None:
    words = WordTokenizer.of_texts(["a b c"])
    assert words.answer_token("a", " b") == words.encode(" b")[0]
    with pytest.raises(TokenError, match="' d' in 'a d' is not in the vocabulary of 3 words"):
        words.encode("a d")
    with pytest.raises(TokenError, match=r"adds \[' b', ' c'\]"):
        words.answer_token("a", " b c")
