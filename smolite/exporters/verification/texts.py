"""The texts that a verification says to a model and gives to tokenizers: a few, the held-out dialogues, and a mixture."""

import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from smolite.data import SAMPLE_FOLDER, read_conversations
from smolite.text import Tokenizer

SAMPLE = SAMPLE_FOLDER / "heldout.jsonl"
TEXTS = (
    "안녕하세요",
    "오늘 점심 뭐 먹을까? 김치찌개랑 돈가스 중에 고민이야.",
    "ㅋㅋㅋ 진짜? ㅠㅠ 12시 30분에 만나자!",
    "Hello, how are you? 😀 나는 학생이에요.",
    "<start> 사용자가 친 <sep> 표시 <end>",
    "첫 줄\n둘째 줄\t끝  ＡＢＣ",
)
NUM_MIXED = 1000
_WORDS = "안녕하세요 오늘 점심 뭐 먹을까 학생이에요 괜찮아요 않았다 값을 읽고 hello world don't Straße naïve".split()
_EMOJI = "😀 😂 ❤️ 👍🏽 👨‍👩‍👧‍👦 🇰🇷 🏳️‍🌈 1️⃣ ☀ 🫠 ㊗️".split()
_CODE = ("def f(x):\n    return x\n", "if (a != b) { a += 1; }", "<div id='a'>&amp;</div>", '{"k": [1, null]}', "\\n\\u0041")
_TYPED = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "<0x0A>", "[INST]", "{{ x }}", "{% if %}", "▁")
_RARE = "漢字 ひらがな مرحبا हिन्दी ไทย \u200b \u200d \ufeff \ue000 \ufffd \u0301 ﬁ ㎏".split()
_SPACES = (" ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2028")


def parity_texts(tokenizer: Tokenizer) -> list[str]:
    """`TEXTS`, what is said in the bundled held-out dialogues, and 1,000 mixed texts with the tokenizer's own markers."""
    held_out = [message.content for each in read_conversations(SAMPLE).conversations for message in each.messages]
    return [*TEXTS, *held_out, *mixed_texts(NUM_MIXED, markers=tuple(tokenizer.markers))]


def mixed_texts(count: int, *, seed: int = 0, markers: Sequence[str] = ()) -> list[str]:
    """Texts of one to six pieces of different kinds, the same for the same arguments.

    The kinds: Hangul, composed and not; jamo of all three sorts; emoji; control characters; digits; code; full width; markers
    that somebody typed; runs of whitespace; and other scripts and marks.

    Args:
        count: how many.
        seed: of the random numbers.
        markers: markers of the tokenizer, to be typed.
    """
    random = np.random.default_rng(seed)
    kinds = _kinds((*_TYPED, *markers))
    chosen = [random.integers(len(kinds), size=random.integers(1, 7)) for _ in range(count)]
    return ["".join(kinds[kind](random) for kind in places) for places in chosen]


_Kind = Callable[[np.random.Generator], str]


def _kinds(typed: Sequence[str]) -> list[_Kind]:
    words, code, rare, spaces = _one_of(_WORDS), _one_of(_CODE), _one_of(_RARE), _one_of(_SPACES)
    return [
        _characters(0xAC00, 0xD7A4),
        lambda random: f" {words(random)}",
        lambda random: unicodedata.normalize("NFD", words(random)),
        _characters(0x3131, 0x3164),
        _characters(0x1100, 0x1113),
        _characters(0xFFA1, 0xFFBF),
        _one_of(_EMOJI),
        _characters(0x01, 0x20),
        lambda random: f"{random.integers(10**6) / 100:,.2f}",
        code,
        _characters(0xFF01, 0xFF5F),
        _one_of(typed),
        lambda random: "".join(spaces(random) for _ in range(random.integers(1, 5))),
        rare,
    ]


def _one_of(choices: Sequence[str]) -> _Kind:
    return lambda random: choices[int(random.integers(len(choices)))]


def _characters(begin: int, end: int) -> _Kind:
    return lambda random: "".join(map(chr, random.integers(begin, end, size=random.integers(1, 6))))
