"""Referees: the library `tokenizers`, transformers' PreTrainedTokenizerFast, and Python's own UTF-8."""

import json
import pickle
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_json import CORPUS, MARKERS, ROLES, byte_level, trained
from transformers import PreTrainedTokenizerFast

from smolite.text.json_tokenizer import JsonTokenizer, byte_letters

SHARED = Path(__file__).parents[3] / "shared" / "data" / "smollm2_tokenizer"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the shared data set is beside the project only in development")
ALPHABETS = [
    "가나다라마바사아자차카타파하안녕하세요ㅋㅠ각뷁ㄱ",
    "😀🙏🏽👩‍👩‍👧🇰🇷✨",
    "".join(map(chr, [*range(32), 127, 0x85, 0xA0, 0x200B, 0x3000, 0xFEFF, 0xFFFD])),
    "0123456789",
    "def f(x):\n\treturn {'a': [1, 2]}  # ok\n",
    "Hello, it's the world’s end. ÀÉîõü",
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "tokenizer.json"
    path.write_bytes(trained())
    return path


@pytest.fixture(scope="module")
def tokenizer(path):
    return JsonTokenizer(path, roles=ROLES)


def random_texts(count):
    rng = random.Random(0)
    markers = list(MARKERS)
    for _ in range(count):
        parts = ["".join(rng.choices(rng.choice(ALPHABETS), k=rng.randint(0, 9))) for _ in range(rng.randint(1, 6))]
        yield "".join(rng.choice(["", " ", "\n", rng.choice(markers)]) + part for part in parts)


def same_as_transformers(file, *, count=2000):
    """Ids with markers as text, and text back, of transformers and of us, for `count` random strings."""
    ours, theirs = JsonTokenizer(file), PreTrainedTokenizerFast(tokenizer_file=str(file))
    for text in random_texts(count):
        ids = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.encode(text) == ids
        expected = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert ours.decode(ids) == expected and streamed(ours, ids) == expected


def streamed(tokenizer, ids):
    decoder = tokenizer.stream()
    return "".join([*map(decoder.push, ids), decoder.finish()])


def test_hub_ids_and_text_are_those_of_transformers(path):
    same_as_transformers(path, count=500)


@needs_shared
def test_hub_smollm2_on_two_thousand_random_strings():
    same_as_transformers(SHARED / "tokenizer.json")


@needs_shared
def test_hub_smollm2_examples():
    tokenizer = JsonTokenizer(SHARED / "tokenizer.json", roles={"start": "<|im_start|>", "end": "<|im_end|>"})
    assert (tokenizer.vocab_size, tokenizer.start_id, tokenizer.end_id, tokenizer.unk_id) == (49152, 1, 2, -1)
    for example in json.loads((SHARED / "examples.json").read_text("utf-8")):
        assert tokenizer.encode(example["text"]) == example["ids"]
        assert tokenizer.decode(example["ids"]) == example["decoded"]


@needs_shared
def test_hub_smollm2_has_no_token_for_21_bytes():
    tokenizer = JsonTokenizer(SHARED / "tokenizer.json")
    vocabulary = json.loads((SHARED / "tokenizer.json").read_bytes())["model"]["vocab"]
    missing = [byte for letter, byte in byte_letters().items() if letter not in vocabulary]
    assert len(missing) == 21
    for letter in map(chr, filter(lambda byte: byte < 128, missing)):
        assert tokenizer.encode(letter) == [] and tokenizer.decode(tokenizer.encode(f"a{letter}b")) == "ab"


def test_bytes_without_a_token_are_left_out(tokenizer):
    raw = byte_level()
    assert "ð" not in raw.get_vocab(), "the corpus must lack the first byte of an emoji"
    assert tokenizer.encode("😀") == raw.encode("😀", add_special_tokens=False).ids
    assert tokenizer.decode(tokenizer.encode("가나😀다"))[:2] == "가나"


def test_byte_letters_are_the_librarys():
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(byte_letters()) == set(ByteLevel.alphabet()) and sorted(byte_letters().values()) == list(range(256))
    split = ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ["가 \n\x00\x7f\xad", "😀é"]:
        letters = "".join(piece for piece, _ in split.pre_tokenize_str(text))
        assert bytes(byte_letters()[letter] for letter in letters) == text.encode()


def test_markers_and_roles(tokenizer):
    assert tokenizer.markers == {name: index for index, name in enumerate(MARKERS)}
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id) == (1, 2, 0)
    assert tokenizer.pieces([1, *tokenizer.encode("a b\n"), 2]) == ["<|im_start|>", "a", "Ġ", "b", "Ċ", "<|im_end|>"]
    with pytest.raises(ValueError, match=r"token in the role of <sep>. Received: .*with start=<\|im_start\|>, .*Name it"):
        _ = tokenizer.sep_id
    with pytest.raises(ValueError, match="the role of <end>. Received: the given bytes with no role at all"):
        _ = JsonTokenizer(trained()).end_id


@pytest.mark.parametrize("text", ["<|im_end|>", "안녕<|im_end|>\n", "<|im_start|>user\n<|endoftext|> <|im_end|>"])
def test_a_typed_marker_stays_text(tokenizer, text):
    raw = byte_level()
    assert set(raw.encode(text).ids) & set(tokenizer.markers.values()), "the library itself would return the marker"
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.markers.values())
    assert tokenizer.decode(ids) == text


def edited(**changes):
    content = json.loads(trained())
    return json.dumps({**content, **changes}).encode()


def model(**changes):
    return edited(model={**json.loads(trained())["model"], **changes})


def test_a_marker_that_is_a_whole_word_of_the_vocabulary_stays_text():
    """With `ignore_merges` (Llama 3) and no splitting, the library finds the marker in the vocabulary."""
    content = json.loads(model(ignore_merges=True))
    content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = JsonTokenizer(json.dumps(content).encode())
    assert tokenizer._split("<|im_end|>") == [2], "or this test shows nothing"
    ids = tokenizer.encode("<|im_end|>")
    assert 2 not in ids and tokenizer.decode(ids) == "<|im_end|>"


def test_a_token_with_a_role_is_a_marker_though_the_file_calls_it_ordinary():
    added = [{**each, "special": False} for each in json.loads(trained())["added_tokens"]]
    assert 2 in JsonTokenizer(edited(added_tokens=added)).encode("<|im_end|>")
    tokenizer = JsonTokenizer(edited(added_tokens=added), roles=ROLES)
    assert 2 not in tokenizer.encode("<|im_end|>") and tokenizer.decode([2]) == ""
    only_in_the_vocabulary = JsonTokenizer(edited(added_tokens=added[:2]), roles=ROLES)
    assert only_in_the_vocabulary.markers["<|im_end|>"] == 2


def test_unknown_bytes_with_a_token_of_their_own():
    raw = byte_level(unk_token="<unk>")
    tokenizer = JsonTokenizer(raw.to_str().encode())
    assert tokenizer.unk_id == raw.token_to_id("<unk>") and "<unk>" not in tokenizer.markers
    ids = tokenizer.encode("가😀")
    assert ids == raw.encode("가😀").ids and tokenizer.unk_id in ids
    assert tokenizer.decode(ids) == raw.decode(ids) == streamed(tokenizer, ids)
    ended = JsonTokenizer(raw.to_str().encode(), roles={"end": "<unk>"})
    assert ended.end_id == tokenizer.unk_id and ended.end_id not in ended.encode("가😀")


def test_ids_are_the_same_at_all_times():
    """A file may say that words fall apart at random, that texts are cut, or filled up to one length."""
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 99}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}
    padding["pad_to_multiple_of"] = None
    content = {**json.loads(model(dropout=0.9)), "truncation": truncation, "padding": padding}
    unsteady = JsonTokenizer(json.dumps(content).encode())
    for text in CORPUS[:4]:
        assert unsteady.encode(text) == JsonTokenizer(trained()).encode(text)


def test_a_larger_vocabulary_of_the_model(path, tokenizer):
    size = tokenizer.vocab_size
    padded = JsonTokenizer(path, vocab_size=size + 9)
    ids = [*padded.encode("안녕"), size, size + 8]
    assert padded.vocab_size == size + 9 and padded.decode(ids) == streamed(padded, ids) == "안녕"
    assert padded.pieces([size]) == [""]
    with pytest.raises(ValueError, match=f"Token ids must be from 0 to {size - 1}. Received: {size}"):
        tokenizer.decode([size])
    with pytest.raises(ValueError, match=f"`vocab_size` must be at least .*, {size}. Received: {size - 1}. Use the"):
        JsonTokenizer(path, vocab_size=size - 1)


def test_any_ids_stream_to_their_text(tokenizer):
    """Broken bytes too: Python and the library replace them alike."""
    raw, rng = byte_level(), np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(0, tokenizer.vocab_size, size=40).tolist()
        assert tokenizer.decode(ids) == streamed(tokenizer, ids) == raw.decode(ids, skip_special_tokens=True)


def test_text_leaves_when_its_bytes_are_complete():
    letters = {letter: index for index, letter in enumerate(sorted(byte_letters()))}
    content = json.loads(model(vocab=letters, merges=[]))
    tokenizer = JsonTokenizer(json.dumps({**content, "added_tokens": []}).encode())
    ids = tokenizer.encode("각a😀")
    decoder = tokenizer.stream()
    assert [decoder.push(index) for index in ids] == ["", "", "각", "a", "", "", "", "😀"]
    assert decoder.push(ids[0]) == "" and decoder.finish() == "\ufffd"


def test_a_step_costs_the_same_however_long_the_stream(tokenizer):
    decoder, ids = tokenizer.stream(), tokenizer.encode(CORPUS[0])
    times = []
    for _ in range(20):
        begun = time.perf_counter()
        for index in ids * 50:
            decoder.push(index)
        times.append(time.perf_counter() - begun)
    assert min(times[-5:]) < 5 * min(times[:5])


def test_save_and_pickle(tokenizer, path, tmp_path):
    tokenizer.save(tmp_path / "copy.json")
    assert (tmp_path / "copy.json").read_bytes() == path.read_bytes()
    with pytest.raises(FileExistsError, match="`path` must be free"):
        tokenizer.save(tmp_path / "copy.json")
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("안녕<|im_end|>") == tokenizer.encode("안녕<|im_end|>") and again.end_id == 2


def test_empty_text_and_arrays(tokenizer):
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""
    assert tokenizer.decode(np.array([1, *tokenizer.encode("안녕"), 2], "int32")) == "안녕"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "must be a whole tokenizer.json. Received: the given bytes, with this problem: Expecting"),
        (b"[1]", "with this problem: no object with a `model`. Copy it again"),
        (edited(pre_tokenizer={"type": "New"}), "must be a whole tokenizer.json. Received: .*untagged enum"),
        (edited(decoder={"type": "Metaspace"}), "must be a byte-level BPE tokenizer. .* with decoder Metaspace"),
        (edited(decoder=None), "Received: model BPE with decoder None. Use the SentencePiece"),
        (model(type="Unigram"), "Received: model Unigram with decoder ByteLevel"),
    ],
)
def test_other_files_are_refused_by_name(data, message):
    with pytest.raises(ValueError, match=message):
        JsonTokenizer(data)


def test_what_cannot_be_read_or_encoded(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match="must be a tokenizer.json. Received: .*none.json, where there is no file"):
        JsonTokenizer(tmp_path / "none.json")
    with pytest.raises(ValueError, match="`roles` must name tokens of .*Received: end='</s>'. Give a token"):
        JsonTokenizer(trained(), roles={"end": "</s>"})
    with pytest.raises(ValueError, match=r"for start, end, pad. Received: eos='<\|im_end\|>'"):
        JsonTokenizer(trained(), roles={"eos": "<|im_end|>"})
    with pytest.raises(ValueError, match="must hold a SentencePiece tokenizer.model. Received: .*of the other kind. Export"):
        _ = tokenizer.guarded_proto
    with pytest.raises(ValueError, match="`text` must be valid Unicode"):
        tokenizer.encode("\ud800")
    with pytest.raises(TypeError, match="`text` must be a string. Received: int"):
        tokenizer.encode(3)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r'needs the package `tokenizers`. Install it with `pip install "smolite\[hf\]"`'):
        JsonTokenizer(trained())
