import json
from pathlib import Path

import pytest

from jaxinterp import InputError, MissingFileError, TokenError
from jaxinterp.tasks import TokenizerLike, pairs_from_jsonl, pairs_from_text, pairs_from_tokens
from jaxinterp.tasks._tokens import check_tokenizer, side_by_side
from jaxinterp.weights import Tokenizer

CLEAN = ["One day, Lily had an idea.", "Lily saw a bird. Then Lucy ran away."]
CORRUPT = ["One day, Tim had an idea.", "Lily saw a bird. Then Jack ran away."]


def test_texts_become_tokens_answers_and_roles(gpt2: Tokenizer) -> None:
    pairs = pairs_from_text(
        gpt2,
        clean=CLEAN,
        corrupt=CORRUPT,
        correct=[" She", [" She", " Her"]],
        wrong=[" He", " He"],
        roles={"name": ["Lily", " Lucy"], "first": [0, 0]},
    )
    for i in range(2):
        length = int(pairs.lengths[i])
        assert pairs.clean[i, :length].tolist() == gpt2.backend.encode(CLEAN[i]).ids
        assert pairs.corrupt[i, :length].tolist() == gpt2.backend.encode(CORRUPT[i]).ids
    words = [gpt2.str_tokens([pairs.clean[i, p]]) for i, p in enumerate(pairs.roles["name"].tolist())]
    assert words == [[" Lily"], [" Lucy"]]
    assert pairs.roles["first"].tolist() == [0, 0] and list(pairs.roles) == ["name", "first", "end"]
    she, her, he = (gpt2.backend.token_to_id(t) for t in ("ĠShe", "ĠHer", "ĠHe"))
    assert pairs.correct.tolist() == [[she, -1], [she, her]] and pairs.wrong.tolist() == [[he], [he]]
    assert pairs.clean_text == tuple(CLEAN) and pairs.corrupt_text == tuple(CORRUPT) and pairs.prepend_bos is False


def test_bos_shifts_every_position(gpt2: Tokenizer, stories: Tokenizer) -> None:
    make = lambda tokenizer, bos: pairs_from_text(
        tokenizer,
        clean=CLEAN[:1],
        corrupt=CORRUPT[:1],
        correct=[" She"],
        wrong=[" He"],
        roles={"name": ["Lily"]},
        prepend_bos=bos,
    )
    without, with_bos = make(gpt2, False), make(gpt2, True)
    assert with_bos.clean[0].tolist() == [gpt2.bos_id, *without.clean[0].tolist()] and with_bos.prepend_bos
    assert with_bos.roles["name"].tolist() == [4] and without.roles["name"].tolist() == [3]
    by_policy = make(stories, None)
    assert by_policy.prepend_bos and by_policy.clean[0, 0] == stories.bos_id


def test_unaligned_pairs_show_both_tokenizations(gpt2: Tokenizer) -> None:
    with pytest.raises(TokenError, match="clean has 8 tokens and corrupt 9") as caught:
        pairs_from_text(gpt2, clean=CLEAN[:1], corrupt=["One day, Timmy had an idea."], correct=[" She"], wrong=[" He"])
    rows = [line.split() for line in str(caught.value).splitlines()[2:]]
    assert rows[0] == ["clean", "(8)", "corrupt", "(9)"]
    assert [">", "3", "'", "Lily'", "3", "'", "Tim'"] in rows
    assert [">", "4", "'my'"] in rows
    assert ["7", "'.'", "8", "'.'"] in rows


def test_side_by_side_is_cut_after_sixty_rows(gpt2: Tokenizer) -> None:
    ids = gpt2.encode("a b" * 60)
    table = side_by_side(gpt2, ids, ids[:-1])
    assert len(table.splitlines()) == 62 and f"and {len(ids) - 60} more rows" in table


FAULTS = [
    (dict(clean=["  "]), "clean is an empty prompt"),
    (dict(corrupt=[""]), "corrupt is an empty prompt"),
    (dict(corrupt=CLEAN[:1]), "are the same tokens"),
    (dict(correct=[" Shezz"]), r"' Shezz' is 2 tokens.*\[' She', 'zz'\]"),
    (dict(correct=[[" She", " She"]]), "holds an answer twice"),
    (dict(correct=[" He"]), "both a correct and a wrong answer"),
    (dict(roles={"name": ["Lucy"]}), "'Lucy' occurs 0 times"),
    (dict(roles={"name": ["a"]}), "'a' occurs 4 times"),
    (dict(roles={"name": ["Lil"]}), "does not end where a token ends"),
    (dict(roles={"name": [8]}), "index 8 is outside the 8 tokens"),
    (dict(roles={"name": [-1]}), "index -1 is outside"),
    (dict(roles={"name": [" "]}), "give a part of the clean prompt"),
    (dict(roles={"end": [3]}), "'end' is always the last token, 7"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS, ids=[message[:24] for _, message in FAULTS])
def test_faults_of_a_pair(gpt2: Tokenizer, change: dict, message: str) -> None:
    arguments = dict(clean=CLEAN[:1], corrupt=CORRUPT[:1], correct=[" She"], wrong=[" He"]) | change
    with pytest.raises(TokenError, match=message):
        pairs_from_text(gpt2, **arguments)


def test_lists_of_different_lengths_and_none_at_all(gpt2: Tokenizer) -> None:
    with pytest.raises(InputError, match="clean 2, corrupt 1, correct 1, wrong 1"):
        pairs_from_text(gpt2, clean=CLEAN, corrupt=CORRUPT[:1], correct=[" She"], wrong=[" He"])
    with pytest.raises(InputError, match="no prompt pair"):
        pairs_from_text(gpt2, clean=[], corrupt=[], correct=[], wrong=[])
    with pytest.raises(InputError, match=r"correct must be lists.*put it in \[ \]"):
        pairs_from_text(gpt2, clean=CLEAN, corrupt=CORRUPT, correct=" She", wrong=[" He", " He"])
    with pytest.raises(InputError, match="at least one answer"):
        pairs_from_text(gpt2, clean=CLEAN[:1], corrupt=CORRUPT[:1], correct=[[]], wrong=[" He"])


def test_all_faulty_pairs_are_in_one_error(gpt2: Tokenizer) -> None:
    with pytest.raises(TokenError) as caught:
        pairs_from_text(
            gpt2,
            clean=["", CLEAN[1], CLEAN[0]],
            corrupt=["x", CORRUPT[1], CLEAN[0]],
            correct=[" She"] * 3,
            wrong=[" He"] * 3,
        )
    message = str(caught.value)
    assert message.startswith("2 of 3 prompt pairs cannot be used:")
    assert "pair 0: clean is an empty prompt" in message and "pair 2: clean and corrupt are the same" in message
    assert "pair 1" not in message


def test_many_faults_name_every_pair_without_flooding(gpt2: Tokenizer) -> None:
    with pytest.raises(TokenError) as caught:
        pairs_from_text(gpt2, clean=[""] * 30, corrupt=["x"] * 30, correct=[" a"] * 30, wrong=[" b"] * 30)
    assert len(str(caught.value).splitlines()) == 22
    assert all(f"pair {i}" in str(caught.value) for i in range(30))


def test_not_a_tokenizer_says_what_to_pass(gpt2: Tokenizer) -> None:
    with pytest.raises(InputError, match="str, lacks decode, .*lm.tokenizer"):
        check_tokenizer("gpt2")
    check_tokenizer(gpt2)
    assert isinstance(gpt2, TokenizerLike)


def test_bos_without_a_bos_token() -> None:
    from jaxinterp.tasks import WordTokenizer

    words = WordTokenizer.of_texts(["a b c d"])
    with pytest.raises(TokenError, match="has no BOS token"):
        pairs_from_text(words, clean=["a b"], corrupt=["a c"], correct=[" c"], wrong=[" d"], prepend_bos=True)


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def good(i: int = 0, **more: object) -> dict:
    return {"clean": CLEAN[i], "corrupt": CORRUPT[i], "correct": " She", "wrong": [" He"], **more}


def test_jsonl_equals_texts(tmp_path: Path, gpt2: Tokenizer) -> None:
    path = write(tmp_path / "p.jsonl", good(0, roles={"name": "Lily"}, template="t"), "", good(1, roles={"name": 7}))
    pairs = pairs_from_jsonl(path, gpt2)
    same = pairs_from_text(
        gpt2, clean=CLEAN, corrupt=CORRUPT, correct=[" She"] * 2, wrong=[" He"] * 2, roles={"name": ["Lily", 7]}
    )
    assert pairs.clean.tolist() == same.clean.tolist() and pairs.correct.tolist() == same.correct.tolist()
    assert pairs.roles["name"].tolist() == same.roles["name"].tolist() == [3, 7]
    assert pairs.template == ("t", "")


def test_all_faulty_lines_are_reported_with_their_numbers(tmp_path: Path, gpt2: Tokenizer) -> None:
    path = write(
        tmp_path / "p.jsonl",
        good(roles={"name": "Lily"}),
        "{not json",
        [1],
        "",
        good(correct=" Shezz", roles={"name": "Lily"}),
        {"clean": "a", "corupt": "b", "correct": 3, "wrong": " He"},
        good(1),
        good(corrupt="One day, Timmy had an idea.", roles={"name": "Lily"}),
        good(roles=["Lily"], template=3),
    )
    with pytest.raises(InputError) as caught:
        pairs_from_jsonl(path, gpt2)
    message = str(caught.value)
    assert message.startswith("7 of 8 lines of p.jsonl cannot be used:")
    for part in (
        "line 2: not JSON",
        "line 3: a JSON object is needed",
        "line 5: correct ' Shezz'",
        "line 6: unknown field 'corupt'. Did you mean 'corrupt'",
        "line 6: field 'corrupt' is missing",
        "line 6: field 'correct' must be a string or a list",
        "line 7: role 'name' is missing",
        "line 8: clean has 8 tokens and corrupt 9",
        "line 9: field 'roles' must be an object",
        "line 9: field 'template' must be a string",
    ):
        assert part in message, part
    assert "line 1:" not in message and "' Tim'" in message


def test_files_that_hold_nothing(tmp_path: Path, gpt2: Tokenizer) -> None:
    with pytest.raises(MissingFileError, match="no file"):
        pairs_from_jsonl(tmp_path / "absent.jsonl", gpt2)
    with pytest.raises(InputError, match="holds no prompt pair"):
        pairs_from_jsonl(write(tmp_path / "empty.jsonl", ""), gpt2)
    (tmp_path / "latin.jsonl").write_bytes(b'{"clean": "\xe9"}')
    with pytest.raises(InputError, match="not UTF-8"):
        pairs_from_jsonl(tmp_path / "latin.jsonl", gpt2)


def test_a_file_of_windows_is_read(tmp_path: Path, gpt2: Tokenizer) -> None:
    (tmp_path / "w.jsonl").write_bytes(
        b"\xef\xbb\xbf" + json.dumps(good()).encode() + b"\r\n" + json.dumps(good(1)).encode()
    )
    assert len(pairs_from_jsonl(tmp_path / "w.jsonl", gpt2)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(clean=[[]], corrupt=[[]]), "empty prompt"),
        (dict(clean=[[1, 2, 3]]), "clean has 3 tokens and corrupt 2"),
        (dict(corrupt=[[1, 2]]), "same tokens"),
        (dict(clean=[[1, -2]]), "token id -2 is negative"),
        (dict(wrong=[3]), "both a correct and a wrong"),
        (dict(roles={"x": [2]}), "position 2 of 2"),
        (dict(roles={"end": [0]}), "`end` is always the last"),
    ],
)
def test_faults_of_token_pairs(change: dict, message: str) -> None:
    arguments = dict(clean=[[1, 2]], corrupt=[[1, 4]], correct=[3], wrong=[5]) | change
    with pytest.raises((TokenError, InputError), match=message):
        pairs_from_tokens(**arguments)
