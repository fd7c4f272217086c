"""The texts for tokenizers: reproducible, and of every kind that tokenizers trip over."""

import re
import unicodedata

import pytest
from exported import TEXTS as TRAINED
from tiny import conversations

from smolite.exporters.verification.texts import NUM_MIXED, TEXTS, mixed_texts, parity_texts
from smolite.text.tokenizer import train_tokenizer

KINDS = {
    "composed Hangul": "[가-힣]",
    "conjoining jamo": "[\u1100-\u11ff]",
    "compatibility jamo": "[ㄱ-ㅣ]",
    "half-width jamo": "[\uffa1-\uffbe]",
    "emoji": "[\U0001f300-\U0001faff]",
    "joined emoji": "\U0001f468\u200d",
    "control": "[\x01-\x08\x0e-\x1f]",
    "digits": r"\d,\d{3}\.\d\d",
    "code": r"def f\(x\):\n    return x",
    "full width": "[Ａ-Ｚ]",
    "typed marker": re.escape("<|im_start|>"),
    "own marker": "<sep>",
    "whitespace": r"[ \t\n\u00a0\u3000]{3}",
    "no width": "[\u200b\ufeff]",
}


@pytest.fixture(scope="module")
def texts():
    return mixed_texts(1000, markers=("<sep>",))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_there_often(texts, kind):
    assert sum(bool(re.search(KINDS[kind], text)) for text in texts) >= 10


def test_texts_are_mixed_and_the_same_each_time(texts):
    assert len(texts) == 1000 and len(set(texts)) > 950
    assert texts == mixed_texts(1000, markers=("<sep>",)) != mixed_texts(1000, seed=1, markers=("<sep>",))
    assert sum(unicodedata.normalize("NFC", text) != text for text in texts) > 100
    assert all(text.encode("utf-8") for text in texts)


def test_what_tokenizers_are_compared_on(tmp_path):
    tokenizer = train_tokenizer(TRAINED, tmp_path / "tokenizer.model", vocab_size=330)
    texts = parity_texts(tokenizer)
    assert len(texts) > NUM_MIXED + 300 and texts[: len(TEXTS)] == list(TEXTS)
    assert all(any(marker in text for text in texts[-NUM_MIXED:]) for marker in tokenizer.markers)
    assert not {message.content for each in conversations() for message in each.messages} & set(texts[-NUM_MIXED:])
