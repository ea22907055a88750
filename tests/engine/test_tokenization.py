"""Detokenising: a function of the tokens alone, whole characters only, no stop text leaked."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from engine.errors import ModelLoadError
from engine.sampling_params import SamplingParams
from engine.tokenization import IncrementalDetokenizer, TokenBytes, Tokenizer, load_tokenizer
from tests.byte_tokenizer import byte_tokenizer

TEXT = "Hello wörld €5 日本語 🙂🏳️‍🌈 it's ok\n\n  two"


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-fallback tokenizer as Llama's: 256 byte tokens, the letters a-z, and a space."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [chr(c) for c in range(ord("a"), ord("z") + 1)] + ["\u2581", "\u2581the"]
    backend = BackendTokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose decoder is neither byte-level nor sentencepiece's."""
    words = ["[UNK]", "play", "##ing", "the", "game", "stop"]
    backend = BackendTokenizer(
        models.WordPiece(vocab={word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture
def shared_models(shared_dir: Path) -> Path:
    return shared_dir / "models"


@pytest.fixture(params=["starter-target", "tinystories-260k"])
def real_tokenizer(shared_models: Path, request: pytest.FixtureRequest) -> Tokenizer:
    name: str = request.param
    if not (shared_models / name).is_dir():
        pytest.skip(f"shared/models/{name} is absent")
    tokenizer = load_tokenizer(str(shared_models / name))
    assert tokenizer is not None
    return tokenizer


def bytes_as_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def chunked(ids: list[int], rng: random.Random) -> Iterator[list[int]]:
    rest = iter(ids)
    while chunk := list(itertools.islice(rest, rng.randint(1, 5))):
        yield chunk


def stream(
    tokenizer: Tokenizer,
    chunks: list[list[int]],
    params: SamplingParams,
    prompt: list[int] | None = None,
) -> tuple[list[str], IncrementalDetokenizer]:
    detokenizer = IncrementalDetokenizer(tokenizer, params, prompt or [])
    deltas = [detokenizer.add(chunk) for chunk in chunks]
    return [*deltas, detokenizer.add([], is_last=True)], detokenizer


def test_real_text_round_trips_token_by_token(real_tokenizer: Tokenizer) -> None:
    ids = bytes_as_ids(real_tokenizer, TEXT)
    deltas, detokenizer = stream(real_tokenizer, [[i] for i in ids], SamplingParams())
    assert "".join(deltas) == detokenizer.text == TEXT
    assert detokenizer.num_tokens == len(ids)


def test_no_delta_cuts_a_character(real_tokenizer: Tokenizer) -> None:
    ids = bytes_as_ids(real_tokenizer, TEXT)
    deltas, _ = stream(real_tokenizer, [[i] for i in ids], SamplingParams())
    assert all("\ufffd" not in delta for delta in deltas)


@pytest.mark.parametrize("skip_special_tokens", [True, False])
def test_random_tokens_give_what_the_tokenizer_gives_at_once(
    byte_level: PreTrainedTokenizerFast, skip_special_tokens: bool
) -> None:
    rng = random.Random(0)
    params = SamplingParams(skip_special_tokens=skip_special_tokens)
    for _ in range(100):
        ids = [rng.randrange(len(byte_level)) for _ in range(30)]
        deltas, _ = stream(byte_level, list(chunked(ids, rng)), params)
        expected = byte_level.decode(ids, skip_special_tokens=skip_special_tokens)
        assert "".join(deltas) == expected


def test_text_does_not_depend_on_how_many_tokens_arrive_at_once(
    real_tokenizer: Tokenizer,
) -> None:
    rng = random.Random(1)
    params = SamplingParams(stop=("he", "ab", "\ufffd\ufffd\ufffd"))
    for _ in range(100):
        ids = [rng.randrange(len(real_tokenizer)) for _ in range(20)]
        singly, one = stream(real_tokenizer, [[i] for i in ids], params)
        at_once, other = stream(real_tokenizer, list(chunked(ids, rng)), params)
        assert "".join(singly) == "".join(at_once)
        assert (one.stopped_by, one.num_tokens) == (other.stopped_by, other.num_tokens)


def test_incomplete_character_at_the_end_is_shown_as_the_tokenizer_shows_it() -> None:
    for tokenizer in (byte_tokenizer(), sentencepiece_tokenizer()):
        ids = bytes_as_ids(tokenizer, "a日")[:-1]
        deltas, _ = stream(tokenizer, [[i] for i in ids], SamplingParams())
        assert "".join(deltas) == tokenizer.decode(ids)


def test_byte_fallback_characters_are_whole() -> None:
    tokenizer = sentencepiece_tokenizer()
    ids = bytes_as_ids(tokenizer, "日é")
    deltas, _ = stream(tokenizer, [[i] for i in ids], SamplingParams())
    assert deltas == ["", "", "日", "", "é", ""]


def test_leading_space_is_stripped_without_a_prompt_and_kept_after_one() -> None:
    tokenizer = sentencepiece_tokenizer()
    the = tokenizer.convert_tokens_to_ids("\u2581the")
    letter = tokenizer.convert_tokens_to_ids("a")
    alone, _ = stream(tokenizer, [[the, the]], SamplingParams())
    after, _ = stream(tokenizer, [[the, the]], SamplingParams(), prompt=[letter])
    assert "".join(alone) == tokenizer.decode([the, the]) == "the the"
    assert "".join(after) == " the the"


def test_tokenizer_without_bytes_is_decoded_in_context() -> None:
    tokenizer = word_tokenizer()
    assert not TokenBytes(tokenizer).is_exact
    ids = [1, 2, 3, 4]
    deltas, _ = stream(tokenizer, [[i] for i in ids], SamplingParams())
    assert "".join(deltas) == tokenizer.decode(ids) == "playing the game"


def test_tokenizer_without_bytes_honours_stop_texts() -> None:
    deltas, detokenizer = stream(
        word_tokenizer(), [[1], [2], [5], [4]], SamplingParams(stop=("stop",))
    )
    assert "".join(deltas) == "playing "
    assert detokenizer.num_tokens_until_stop == 3


def test_stop_text_across_tokens_is_never_leaked_in_part(
    byte_level: PreTrainedTokenizerFast,
) -> None:
    ids = bytes_as_ids(byte_level, "one END two")
    deltas, detokenizer = stream(byte_level, [[i] for i in ids], SamplingParams(stop=("END",)))
    assert "".join(deltas) == "one "
    assert not any("E" in delta for delta in deltas)
    assert detokenizer.stopped_by == "END"
    assert detokenizer.num_tokens_until_stop == len("one END")


def test_held_back_text_is_released_when_no_stop_came(byte_level: PreTrainedTokenizerFast) -> None:
    ids = bytes_as_ids(byte_level, "one EN")
    deltas, detokenizer = stream(byte_level, [[i] for i in ids], SamplingParams(stop=("END",)))
    assert "".join(deltas) == "one EN"
    assert deltas[-1] == "EN"
    assert detokenizer.stopped_by is None
    assert detokenizer.num_tokens_until_stop is None


def test_false_beginning_of_a_stop_text_is_released_at_once(
    byte_level: PreTrainedTokenizerFast,
) -> None:
    ids = bytes_as_ids(byte_level, "EENxy")
    deltas, _ = stream(byte_level, [[i] for i in ids], SamplingParams(stop=("END",)))
    assert deltas == ["", "E", "", "ENx", "y", ""]


def test_stop_text_of_several_byte_characters(byte_level: PreTrainedTokenizerFast) -> None:
    ids = bytes_as_ids(byte_level, "a日本b")
    deltas, detokenizer = stream(byte_level, [[i] for i in ids], SamplingParams(stop=("日本",)))
    assert "".join(deltas) == "a"
    assert detokenizer.num_tokens_until_stop == 7


def test_earliest_of_several_stop_texts_cuts() -> None:
    tokenizer = word_tokenizer()
    params = SamplingParams(stop=("e", "m", "game"))
    deltas, detokenizer = stream(tokenizer, [[1, 4, 3]], params)
    assert "".join(deltas) == "play "
    assert detokenizer.stopped_by == "game"


def test_stop_text_can_stay_in_the_answer(byte_level: PreTrainedTokenizerFast) -> None:
    ids = bytes_as_ids(byte_level, "one END two")
    params = SamplingParams(stop=("END",), include_stop_str_in_output=True)
    deltas, _ = stream(byte_level, [ids], params)
    assert "".join(deltas) == "one END"


def test_stop_text_is_not_looked_for_before_min_tokens(
    byte_level: PreTrainedTokenizerFast,
) -> None:
    ids = bytes_as_ids(byte_level, "x.y.z")
    params = SamplingParams(stop=(".",), min_tokens=3)
    deltas, detokenizer = stream(byte_level, [[i] for i in ids], params)
    assert "".join(deltas) == "x.y"
    assert detokenizer.num_tokens_until_stop == 4


def test_tokens_after_the_stop_text_are_ignored(byte_level: PreTrainedTokenizerFast) -> None:
    detokenizer = IncrementalDetokenizer(byte_level, SamplingParams(stop=("b",)))
    assert detokenizer.add(bytes_as_ids(byte_level, "abc")) == "a"
    assert detokenizer.add(bytes_as_ids(byte_level, "def"), is_last=True) == ""
    assert detokenizer.num_tokens == 2


@pytest.mark.parametrize(("included", "expected"), [(False, "a"), (True, "a</s>")])
def test_text_of_the_token_that_ended_the_answer(
    byte_level: PreTrainedTokenizerFast, included: bool, expected: str
) -> None:
    params = SamplingParams(skip_special_tokens=False, include_stop_str_in_output=included)
    detokenizer = IncrementalDetokenizer(byte_level, params)
    ids = [*bytes_as_ids(byte_level, "a"), byte_level.eos_token_id]
    assert detokenizer.add(ids, is_last=True, ends_with_stop_token=True) == expected
    assert detokenizer.num_tokens == 2


def test_offsets_say_where_each_token_begins(byte_level: PreTrainedTokenizerFast) -> None:
    ids = bytes_as_ids(byte_level, "aé.b")
    params = SamplingParams(logprobs=0, stop=(".c",))
    _, detokenizer = stream(byte_level, [ids], params)
    assert detokenizer.token_offsets == [0, 1, 1, 2, 3]


def test_bytes_of_single_tokens(byte_level: PreTrainedTokenizerFast) -> None:
    tokens = TokenBytes(byte_level)
    ids = bytes_as_ids(byte_level, "é")
    assert b"".join(map(tokens.bytes_of, ids)) == "é".encode()
    assert tokens.text_of(ids[0]) == "\ufffd"
    assert tokens.bytes_of(256) == b"</s>"
    assert tokens.bytes_of(4000) == b""


def test_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert load_tokenizer(str(tmp_path)) is None


def test_broken_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(ModelLoadError, match="tokenizer of .* cannot be loaded"):
        load_tokenizer(str(tmp_path))
