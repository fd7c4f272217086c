"""The rules inside a trained `.model`, against Python's Unicode data."""

import random
import re
import unicodedata

import pytest
import sentencepiece

from smolite.text.normalization import korean_rules
from smolite.text.tokenizer import train_tokenizer

CORPUS = [
    "안녕하세요 친구",
    "오늘 날씨가 좋아요 ㅋㅋㅋ",
    "내일 3시에 만나요! ㅠㅠ",
    "hello <b>there</b>\n(네)",
]

# What Unicode can compose of Hangul: modern conjoining jamo and whole syllables.
HANGUL = re.compile("[\u1100-\u1112\u1161-\u1175\u11a8-\u11c2\uac00-\ud7a3]+")


def wide_letter(match):
    name = unicodedata.name(match[0])
    return unicodedata.lookup(name.replace("HALFWIDTH ", ""))


def reference(text):
    """The rules as Unicode names them; U+2581 is how SentencePiece writes a space."""
    text = HANGUL.sub(lambda match: unicodedata.normalize("NFC", match[0]), text)
    text = re.sub("[\uff01-\uff5e\u3000]", lambda match: unicodedata.normalize("NFKC", match[0]), text)
    text = re.sub("[\uffa0-\uffbe\uffc2-\uffc7\uffca-\uffcf\uffd2-\uffd7\uffda-\uffdc]", wide_letter, text)
    return re.sub("[\u200b\u200c\u2060\ufeff]", "", text).replace("\u2581", " ")


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "tokenizer.model"
    return train_tokenizer(CORPUS * 3, path, vocab_size=300, model_type=request.param)


def test_rules_are_inside_the_model(tokenizer):
    normalizer = sentencepiece.SentencePieceNormalizer(model_proto=tokenizer.model_proto)
    assert dict(normalizer.Decompile()) == korean_rules()


def test_every_syllable_is_composed_from_each_of_its_forms():
    rules = korean_rules()
    for code in range(0xAC00, 0xD7A4):
        syllable = chr(code)
        jamo = unicodedata.normalize("NFD", syllable)
        assert rules[jamo] == syllable
        if len(jamo) == 3:
            assert rules[unicodedata.normalize("NFC", jamo[:2]) + jamo[2]] == syllable


def test_every_character_of_the_first_planes_is_normalised_as_unicode_says():
    rules = korean_rules()
    for code in range(0x20000):
        character = chr(code)
        if character != "\u2581" and not 0xD800 <= code < 0xE000:
            assert rules.get(character, character) == reference(character)


@pytest.mark.parametrize(
    "text, expected",
    [
        (unicodedata.normalize("NFD", "안녕하세요 친구"), "안녕하세요 친구"),
        ("가\u11a8나", "각나"),
        ("\uff21\uff22\uff23\u3000\uff11\uff01\uff1f\uff5e", "ABC 1!?~"),
        ("\uffbb\uffbb \uffd7\uffd7 \uffa1", "ㅋㅋ ㅠㅠ ㄱ"),
        ("\ufeff안\u200b녕\u2060하\u200c세요", "안녕하세요"),
        ("ㅋㅋㅋ ㅠㅠ ㄱㅅ", "ㅋㅋㅋ ㅠㅠ ㄱㅅ"),
        ("  두 칸  \n\n\t줄\r\n ", "  두 칸  \n\n\t줄\r\n "),
        ("👨\u200d👩\u200d👧 ❤\ufe0f", "👨\u200d👩\u200d👧 ❤\ufe0f"),
        ("\u1100\u119e ᄒᆞᆫ글", "\u1100\u119e ᄒᆞᆫ글"),
        ("cafe\u0301 ﬁ ² ㎏ ①", "cafe\u0301 ﬁ ² ㎏ ①"),
        ("\uff1cend\uff1e", "<end>"),
    ],
)
def test_examples(tokenizer, text, expected):
    assert tokenizer.decode(tokenizer.encode(text)) == expected


def random_text(generator):
    pools = [
        [chr(code) for code in range(0x1100, 0x1200)],
        [chr(0x1100), chr(0x1161), chr(0x11A8), "가", "각", "힣"],
        [chr(code) for code in range(0xFF00, 0xFFF0)],
        [chr(code) for code in range(0x80)],
        [" ", "  ", "\n", "\r\n", "\t", "\u3000", "\u2581", "\u2585", "\x00", "\ufffd"],
        ["\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\ufe0f", "👨", "❤", "👍🏽", "🇰🇷"],
        ["<pad>", "<unk>", "<start>", "<end>", "<sep>", "<s>", "</s>", "<0x41>", "＜end＞", "<", ">"],
        ["안녕하세요", "친구", "ㅋㅋㅋ", "ㅠㅠ", "12,345", "3시"],
    ]
    anything = [chr(generator.randrange(0xE000, 0x110000)), chr(generator.randrange(0xD800))]
    return "".join(generator.choice(generator.choice([*pools, anything])) for _ in range(generator.randrange(30)))


@pytest.mark.parametrize("seed", range(4))
def test_round_trip_gives_the_normalised_text(tokenizer, seed):
    generator = random.Random(seed)
    for _ in range(150):
        text = random_text(generator)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == reference(text), repr(text)
        assert not set(ids) & {*tokenizer.markers.values(), tokenizer.unk_id}


def test_nfd_costs_no_more_tokens_than_nfc(tokenizer):
    decomposed = unicodedata.normalize("NFD", "안녕하세요 친구")
    assert len(decomposed) == 18
    assert tokenizer.encode(decomposed) == tokenizer.encode("안녕하세요 친구")
