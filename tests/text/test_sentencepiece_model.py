"""Training and writing `.model` files."""

import resource
import subprocess
import sys

import pytest
import sentencepiece

from smolite.text.tokenizer import Tokenizer, train_tokenizer

CORPUS = [
    "안녕하세요! 오늘 날씨가 정말 좋네요.",
    "점심에 뭐 먹었어? 김치찌개 먹었어 ㅋㅋㅋ",
    "너무 피곤해 ㅠㅠ\n오늘은 일찍 잘래. 나도 그래.",
] * 4


@pytest.mark.parametrize("model_type, vocab_size", [("bpe", 330), ("unigram", 307)])
def test_the_same_texts_give_the_same_file(tmp_path, model_type, vocab_size):
    written = []
    for name in ("first/tokenizer.model", "second.model"):
        train_tokenizer(iter(CORPUS), tmp_path / name, vocab_size=vocab_size, model_type=model_type)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    assert str(tmp_path).encode() not in written[0]


def test_the_processor_reads_what_was_asked_for(tmp_path):
    train_tokenizer(CORPUS, tmp_path / "tokenizer.model", vocab_size=330)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id()) == (0, 1, 2, 3)
    assert processor.vocab_size() == 330
    assert [processor.is_control(index) for index in range(7)] == [
        True,
        False,
        True,
        True,
        True,
        False,
        False,
    ]
    assert [processor.is_byte(index) for index in (5, 6, 261, 262)] == [False, True, True, False]


def test_lines_of_any_length_and_sign_are_learnt(tmp_path):
    texts = ["뷁 " * 3000 + "\n", "쫥쫥\u2585쫥", "꿹\x00\t꿹\n\n"]
    tokenizer = train_tokenizer(texts, tmp_path / "t.model", vocab_size=270, character_coverage=1.0)
    learnt = "".join(tokenizer.pieces(range(262, 270)))
    assert set("뷁쫥꿹") <= set(learnt)
    assert tokenizer.decode(tokenizer.encode(texts[1])) == texts[1]


def test_training_and_loading_say_nothing(tmp_path):
    code = (
        "from smolite.text.tokenizer import Tokenizer, train_tokenizer\n"
        f"path = {str(tmp_path / 't.model')!r}\n"
        f"train_tokenizer({CORPUS!r}, path, vocab_size=330).encode('안녕')\n"
        "try: Tokenizer(b'')\nexcept ValueError: pass"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_vocabulary_too_large_for_the_text(tmp_path):
    expected = r"`vocab_size` must be at most (\d+) for this text. Received: 8192. Choose \1 or fewer"
    with pytest.raises(ValueError, match=expected) as raised:
        train_tokenizer(CORPUS, tmp_path / "t.model")
    assert not any(tmp_path.iterdir())
    most = int(str(raised.value).split("at most ")[1].split()[0])
    assert train_tokenizer(CORPUS, tmp_path / "t.model", vocab_size=most).vocab_size == most


def test_a_vocabulary_too_small_for_the_characters(tmp_path):
    expected = r"must be at least (\d+) for the characters of this text. Received: 264. Choose \1 or more"
    with pytest.raises(ValueError, match=expected) as raised:
        train_tokenizer(CORPUS, tmp_path / "t.model", vocab_size=264)
    least = int(str(raised.value).split("at least ")[1].split()[0])
    assert train_tokenizer(CORPUS, tmp_path / "t.model", vocab_size=least).vocab_size == least


@pytest.mark.parametrize(
    "texts, error, expected",
    [
        (
            "안녕",
            TypeError,
            "`texts` must be several strings. Received: one string. Give `\\[text\\]` instead",
        ),
        (["안녕", None], TypeError, "text 2 must be a string. Received: NoneType"),
        (["안녕", "a\udc80"], ValueError, "text 2 must be valid Unicode. Received: .* at character 1"),
        ([], ValueError, "`texts` must hold some text. Received: only blank lines. Check the file"),
        (["", " \n "], ValueError, "`texts` must hold some text"),
        (
            ["짧은 줄", "긴" * 400_000],
            ValueError,
            "at most 1000000 bytes of UTF-8. Received: 1200000 bytes in text 2. Break it into lines",
        ),
    ],
)
def test_bad_texts(tmp_path, texts, error, expected):
    with pytest.raises(error, match=expected):
        train_tokenizer(texts, tmp_path / "t.model")


def test_bad_settings(tmp_path):
    with pytest.raises(ValueError, match='`model_type` must be "bpe" or "unigram". Received: \'word\''):
        train_tokenizer(CORPUS, tmp_path / "t.model", model_type="word")
    with pytest.raises(ValueError, match="must accept the text and the settings. Received from it: .*coverage"):
        train_tokenizer(CORPUS, tmp_path / "t.model", character_coverage=2.0)


def test_an_existing_file_is_kept_unless_asked(tmp_path):
    path = tmp_path / "t.model"
    path.write_text("old")
    expected = "`path` must be free. Received: .*t.model, which exists. Choose another, or `overwrite=True`"
    with pytest.raises(FileExistsError, match=expected):
        train_tokenizer(CORPUS, path, vocab_size=330)
    assert path.read_text() == "old"
    tokenizer = train_tokenizer(CORPUS, path, vocab_size=330, overwrite=True)
    with pytest.raises(FileExistsError, match=expected):
        tokenizer.save(path)
    tokenizer.save(path, overwrite=True)
    assert Tokenizer(path).model_proto == tokenizer.model_proto
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.model"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.model"
    tokenizer = train_tokenizer(CORPUS, path, vocab_size=330)
    old = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            tokenizer.save(path, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.model"]
