"""The tokenizer, against the raw SentencePiece processor and Python's own UTF-8."""

import io
import pickle
import random
import re
import time
import unicodedata

import numpy as np
import pytest
import sentencepiece

from smolite.text.tokenizer import MARKERS, Tokenizer, train_tokenizer

CORPUS = [
    "안녕하세요! 오늘 날씨가 정말 좋네요.",
    "점심에 뭐 먹었어? 김치찌개 먹었어 ㅋㅋㅋ",
    "내일 3시에 회의가 있습니다. 자료를 준비해 주세요.",
    "너무 피곤해 ㅠㅠ\n오늘은 일찍 잘래. 나도 그래.",
    "<start> end sep pad (hello) there > < thanks",
] * 4


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "tokenizer.model"
    train_tokenizer(CORPUS, path, vocab_size=420)
    return path


@pytest.fixture(scope="module")
def tokenizer(path):
    return Tokenizer(path)


def raw_model(**settings):
    """A model file of SentencePiece's own making."""
    model = io.BytesIO()
    lines = "\n".join(CORPUS).split("\n")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=420,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return model.getvalue()


def smolwrite_model(**settings):
    markers = list(MARKERS)
    return raw_model(model_type="unigram", user_defined_symbols=markers, byte_fallback=True, **settings)


def test_first_ids(tokenizer):
    assert tokenizer.pieces(range(8)) == [
        "<pad>", "<unk>", "<start>", "<end>", "<sep>", "\n", "<0x00>", "<0x01>"
    ]  # fmt: skip
    assert tokenizer.markers == {"<pad>": 0, "<start>": 2, "<end>": 3, "<sep>": 4}
    assert (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id, tokenizer.sep_id) == (0, 2, 3, 4)
    assert (tokenizer.unk_id, tokenizer.vocab_size) == (1, 420)


def test_example_of_the_docstrings(tokenizer):
    ids = [6 + byte for byte in "각".encode()]
    assert ids == [240, 182, 135]
    assert tokenizer.decode([2, *ids, 3]) == "각"
    assert tokenizer.pieces([2, 240, 4]) == ["<start>", "<0xEA>", "<sep>"]
    stream = tokenizer.stream()
    assert [stream.push(index) for index in ids] == ["", "", "각"]
    assert stream.finish() == ""


def test_pieces_say_what_was_encoded(tokenizer):
    ids = tokenizer.encode("3시\n33")
    assert tokenizer.pieces(ids)[-3:] == ["\n", "3", "3"]
    assert "".join(tokenizer.pieces(ids)) == "▁3시\n33"
    assert tokenizer.pieces([2, tokenizer.encode("안녕")[0]])[0] == "<start>"


def test_empty_text(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""
    assert tokenizer.stream().finish() == ""


def test_ids_are_the_raw_processors(tokenizer, path):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for line in CORPUS:
        assert tokenizer.encode(line) == processor.encode(line)
        assert tokenizer.decode(tokenizer.encode(line)) == line


def test_each_encoded_segment_starts_with_a_space_mark(tokenizer):
    question, answer = tokenizer.encode("안녕"), tokenizer.encode("오늘")
    assert tokenizer.pieces(answer)[0].startswith("▁")
    assert tokenizer.decode([2, *question, 4, *answer, 3]) == "안녕 오늘"


def test_decode_takes_arrays_and_skips_markers(tokenizer):
    ids = np.array([2, *tokenizer.encode("안녕하세요!"), 3, 0, 0], dtype="int32")
    assert tokenizer.decode(ids) == "안녕하세요!"


@pytest.mark.parametrize("text", ["<end>", "안녕<end>", "<sep>네<start> <pad>", "＜end＞", "<end><end>\n<sep>"])
@pytest.mark.parametrize("form", ["ours", "smolwrite"])
def test_a_typed_marker_stays_text(tokenizer, text, form):
    opened = tokenizer if form == "ours" else Tokenizer(smolwrite_model())
    ids = opened.encode(text)
    assert not set(ids) & set(opened.markers.values())
    expected = unicodedata.normalize("NFKC", text)
    assert opened.decode(ids) == (expected if form == "ours" else expected.replace("\n", " "))


def test_smolwrites_form_opens_as_it_is(tmp_path):
    model = smolwrite_model()
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert processor.piece_to_id("<end>") in processor.encode("안녕 <end>")
    (tmp_path / "unigram.model").write_bytes(model)
    opened = Tokenizer(tmp_path / "unigram.model")
    assert opened.markers == {name: processor.piece_to_id(name) for name in MARKERS}
    assert opened.model_proto == model
    for line in CORPUS:
        assert opened.encode(line.replace("<start>", "")) == processor.encode(line.replace("<start>", ""))
    assert opened.decode([opened.start_id, *opened.encode("오늘"), opened.end_id]) == "오늘"


def test_control_symbols_without_our_numbers_open():
    opened = Tokenizer(raw_model(model_type="bpe", control_symbols=list(MARKERS), byte_fallback=True))
    assert set(opened.markers) == set(MARKERS)
    assert opened.decode([opened.sep_id, *opened.encode("<sep>"), opened.end_id]) == "<sep>"


def test_a_missing_marker_is_named():
    opened = Tokenizer(raw_model(control_symbols=["<start>", "<pad>"]))
    assert opened.start_id == opened.markers["<start>"]
    expected = "must have the marker <end>. Received: the given bytes, which lacks <end>, <sep>. Train a tokenizer"
    with pytest.raises(ValueError, match=expected):
        _ = opened.end_id
    with pytest.raises(ValueError, match="must have the marker <sep>"):
        _ = opened.sep_id


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file. Train one with `smolite.train_tokenizer"):
        Tokenizer(tmp_path / "tokenizer.model")


def test_a_file_cut_anywhere_is_refused(tokenizer):
    whole = tokenizer.model_proto
    for length in [*range(1500), *range(1500, len(whole), 1009), len(whole) - 1]:
        with pytest.raises(ValueError, match=f"must be a whole SentencePiece model. Received: .* {length} bytes"):
            Tokenizer(whole[:length])


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_text('{"version": "1.0"}')
    with pytest.raises(ValueError, match="tokenizer.model, 18 bytes that are not one. Copy the file again"):
        Tokenizer(tmp_path / "tokenizer.model")


def test_bad_text(tokenizer):
    with pytest.raises(TypeError, match="`text` must be a string. Received: list"):
        tokenizer.encode(["안녕"])
    broken = "안녕".encode("cp949").decode("utf-8", "surrogateescape")
    with pytest.raises(ValueError, match="must be valid Unicode. Received: .* at character 0. Read the file in"):
        tokenizer.encode(broken)


@pytest.mark.parametrize("index", [-1, 420])
def test_bad_ids(tokenizer, index):
    expected = f"must be from 0 to 419. Received: {index}. Use the tokenizer that the model was trained with"
    with pytest.raises(ValueError, match=expected):
        tokenizer.decode([5, index])
    with pytest.raises(ValueError, match=expected):
        tokenizer.pieces([index])
    with pytest.raises(ValueError, match=expected):
        tokenizer.stream().push(index)


def test_pickle(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(CORPUS[0]) == tokenizer.encode(CORPUS[0])
    assert copy.markers == tokenizer.markers


def streamed(tokenizer, ids):
    stream = tokenizer.stream()
    return [*(stream.push(index) for index in ids), stream.finish()]


@pytest.fixture(scope="module", params=["ours", "smolwrite", "no prefix"])
def any_tokenizer(request, tokenizer):
    if request.param == "ours":
        return tokenizer
    return Tokenizer(smolwrite_model(add_dummy_prefix=request.param == "smolwrite"))


@pytest.mark.parametrize("seed", range(3))
def test_chunks_equal_the_full_decode_of_random_ids(any_tokenizer, seed):
    generator = random.Random(seed)
    vocab_size = any_tokenizer.vocab_size
    spaces = [index for index in range(vocab_size) if any_tokenizer.pieces([index])[0].startswith("▁")]
    byte_ids = [any_tokenizer.pieces([index])[0].startswith("<0x") for index in range(vocab_size)]
    byte_ids = [index for index, is_byte in enumerate(byte_ids) if is_byte]
    for _ in range(300):
        pools = [spaces, byte_ids, byte_ids[0x80:], range(vocab_size), [*any_tokenizer.markers.values()]]
        ids = [generator.choice(generator.choice(pools)) for _ in range(generator.randrange(1, 25))]
        assert "".join(streamed(any_tokenizer, ids)) == any_tokenizer.decode(ids)


def is_whole(tokenizer, ids):
    """Whether the bytes of `ids`, read by Python, end where a character ends."""
    written = "".join(tokenizer.pieces(ids))
    raw = re.sub("<0x(..)>", lambda match: bytes([int(match[1], 16)]).decode("latin-1"), written)
    tail = raw[len(raw.rstrip("".join(map(chr, range(0x80, 0x100))))) :]
    try:
        tail.encode("latin-1").decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("text", ["  각 안녕 👨\u200d👩\u200d👧 𝕳", "\n뷁\n\n끝", " ", "ㅋㅋ👍🏽", "\ufffd"])
def test_each_chunk_is_whole_and_comes_at_once(tokenizer, text):
    ids = tokenizer.encode(text)
    chunks = streamed(tokenizer, ids)
    assert "".join(chunks) == text
    assert chunks[-1] == ""
    assert [bool(chunk) for chunk in chunks[1:-1]] == [is_whole(tokenizer, ids[:n]) for n in range(2, len(chunks))]


def test_broken_bytes_come_out_where_they_are_certain(tokenizer):
    lead, middle, letter = 6 + 0xEA, 6 + 0xB0, tokenizer.encode("a")[-1]
    assert streamed(tokenizer, [lead, middle]) == ["", "", "\ufffd\ufffd"]
    assert streamed(tokenizer, [lead, 6 + ord("a"), letter]) == ["", "\ufffda", "a", ""]
    assert streamed(tokenizer, [lead, 3, middle, 0, 6 + 0x81]) == ["", "", "", "", "각", ""]


def test_a_step_costs_the_same_however_long_the_stream_is(tokenizer):
    ids = tokenizer.encode("오늘 날씨가 정말 좋네요. ") * 50

    def cost(ids):
        begin = time.process_time()
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)
        return time.process_time() - begin

    assert cost(ids * 32) < 6 * 32 * min(cost(ids) for _ in range(5))
