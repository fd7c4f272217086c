"""The Korean normalisation rules that `train_tokenizer` puts inside every `.model` file.

SentencePiece's own rule sets do not suit Korean: `nmt_nfkc` turns `ㅋ` (U+314B) into a conjoining jamo
that can't come back and eats newlines; `identity` leaves decomposed Hangul in pieces. A rule here replaces
a source string, the longest that matches first, in one pass from left to right. What no rule names stays as
it is: `ㅋㅋㅋ ㅠㅠ`, runs of spaces, newlines.
"""

import unicodedata

_FIRST_SYLLABLE = 0xAC00
_LEADS = [chr(0x1100 + index) for index in range(19)]
_VOWELS = [chr(0x1161 + index) for index in range(21)]
_TAILS = [chr(0x11A8 + index) for index in range(27)]

ZERO_WIDTH_MARKS = "\u200b\u200c\u2060\ufeff"
"""Zero-width space, zero-width non-joiner, word joiner and byte-order mark: invisible in Korean, so dropped.

The zero-width joiner (U+200D) is kept: emoji are written with it, and without it one family becomes
three people.
"""


def korean_rules() -> dict[str, str]:
    """Returns every rule as source text to replacement.

    Example: `korean_rules()["！"]` is `"!"`; U+1100 with U+1161 becomes `가`, U+FFBB `ㅋ`, U+200B nothing.
    """
    return {
        **_hangul_rules(),
        **_full_width_rules(),
        **_half_width_jamo_rules(),
        **dict.fromkeys(ZERO_WIDTH_MARKS, ""),
    }


def composed_length(text: str) -> int:
    """Characters of `text` in composed form (NFC): two for 안녕, even where a file spells it as five jamo."""
    return len(unicodedata.normalize("NFC", text))


def _hangul_rules() -> dict[str, str]:
    """Composes conjoining jamo as NFC does (The Unicode Standard, section 3.12): L+V, L+V+T and LV+T.

    Example: ᄀ + ᅡ → 가, ᄀ + ᅡ + ᆨ → 각, 가 + ᆨ → 각.
    """
    rules = {}
    for lead_index, lead in enumerate(_LEADS):
        for vowel_index, vowel in enumerate(_VOWELS):
            code = _FIRST_SYLLABLE + (lead_index * len(_VOWELS) + vowel_index) * (len(_TAILS) + 1)
            open_syllable = chr(code)
            rules[lead + vowel] = open_syllable
            for tail_index, tail in enumerate(_TAILS, start=1):
                # Both spellings of a closed syllable: three jamo, and an open syllable with a tail, as NFC has them.
                rules[lead + vowel + tail] = rules[open_syllable + tail] = chr(code + tail_index)
    return rules


def _full_width_rules() -> dict[str, str]:
    """Turns full-width ASCII (U+FF01 to U+FF5E) and the ideographic space into ASCII.

    Example: `Ａ` (U+FF21) → `A` (U+0041), `！` → `!`, U+3000 → a space.
    """
    rules = {chr(code + 0xFEE0): chr(code) for code in range(0x21, 0x7F)}
    return {**rules, "\u3000": " "}


def _half_width_jamo_rules() -> dict[str, str]:
    """Turns half-width jamo (U+FFA0 to U+FFDC) into compatibility jamo, the ones a keyboard types.

    Example: U+FFBB → `ㅋ` (U+314B), whose decomposition in the Unicode data is `<narrow> 314B`.
    """
    rules = {}
    for code in range(0xFFA0, 0xFFDD):
        kind, _, target = unicodedata.decomposition(chr(code)).partition(" ")
        if kind == "<narrow>":
            rules[chr(code)] = chr(int(target, 16))
    return rules
