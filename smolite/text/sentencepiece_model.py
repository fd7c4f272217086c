"""SentencePiece `.model` files: trained, read, guarded and written whole. `tokenizer` stands on this."""

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import sentencepiece

from smolite.text.normalization import korean_rules

MARKERS = ("<pad>", "<start>", "<end>", "<sep>")
"""The pieces that give a dialogue its shape. No text is ever encoded to them."""

MODEL_TYPES = ("bpe", "unigram")
LINE_LIMIT = 1_000_000
"""Most bytes in a training line. SentencePiece alone would drop lines of more than 4,192 without a word."""

_ERRORS_ONLY = 2  # SentencePiece's log level
# Written into the model file: a fixed number keeps the file the same on every machine.
_THREADS = 4
_FIXED_SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        # Any text can be written, in bytes where no piece has it, so that `<unk>` never stands for something a user said.
        "byte_fallback": True,
        # A number is as many pieces as digits: the model sees place value, and rare numbers need no piece.
        "split_digits": True,
        # A newline is a piece of its own wherever it stands; training, which goes by lines, would never see one.
        "user_defined_symbols": ["\n"],
        "control_symbols": ["<sep>"],
        **{"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3},
        **{"pad_piece": "<pad>", "unk_piece": "<unk>", "bos_piece": "<start>", "eos_piece": "<end>"},
        "max_sentence_length": LINE_LIMIT,
        "num_threads": _THREADS,
        "minloglevel": _ERRORS_ONLY,
    }
)
# SentencePiece skips every line that has a U+2585.
_LINE_BREAKS = re.compile("[\n\u2585]")
_TOO_HIGH = re.compile(r"Vocabulary size too high .* value <= (\d+)")
_TOO_SMALL = re.compile(r"Vocabulary size is smaller than required_chars\. \d+ vs (\d+)")


def train_model(texts: Iterable[str], *, vocab_size: int, model_type: str, character_coverage: float) -> bytes:
    """Returns the bytes of a `.model` file trained on `texts`; `smolite.train_tokenizer` says how.

    Raises:
        TypeError: `texts` is one string, or holds something else than strings.
        ValueError: An unknown `model_type`, a line too long, no text, or a `vocab_size` that
            doesn't suit the text.
    """
    if model_type not in MODEL_TYPES:
        raise ValueError(f'`model_type` must be "bpe" or "unigram". Received: {model_type!r}. Choose "bpe".')
    lines = list(_training_lines(texts))
    if not lines:
        raise ValueError("`texts` must hold some text. Received: only blank lines. Check the file.")
    sentencepiece.set_min_log_level(_ERRORS_ONLY)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            character_coverage=character_coverage,
            normalizer=_korean_normalizer(),
            **_FIXED_SETTINGS,
        )
    except RuntimeError as error:
        raise _explained(error, vocab_size) from error
    return model.getvalue()


def _korean_normalizer() -> sentencepiece.SentencePieceNormalizer:
    return sentencepiece.SentencePieceNormalizer(
        # The rules go into the file: every runtime that reads it normalises alike, without our code.
        norm_map=list(korean_rules().items()),
        add_dummy_prefix=True,
        escape_whitespaces=True,
        # Runs of spaces and spaces at the end are text: what is decoded must be what was encoded.
        remove_extra_whitespaces=False,
    )


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    if isinstance(texts, str):
        raise TypeError("`texts` must be several strings. Received: one string. Give `[text]` instead.")
    for number, text in enumerate(texts, start=1):
        check_text(text, f"text {number}")
        for line in _LINE_BREAKS.split(text):
            if (size := len(line.encode())) > LINE_LIMIT:
                raise ValueError(
                    f"A training line must have at most {LINE_LIMIT} bytes of UTF-8. Received: {size} bytes "
                    f"in text {number}. Break it into lines, one sentence or turn on each."
                )
            if line.strip():
                yield line


class VocabularyTooLarge(ValueError):
    """A text cannot fill the vocabulary asked for; `most` pieces are what it can."""

    def __init__(self, message: str, most: int):
        super().__init__(message)
        self.most = most


def _explained(error: RuntimeError, vocab_size: int) -> ValueError:
    """Turns SentencePiece's two messages about the size of the vocabulary into ours."""
    if match := _TOO_HIGH.search(str(error)):
        message = f"`vocab_size` must be at most {match[1]} for this text. Received: {vocab_size}. "
        return VocabularyTooLarge(f"{message}Choose {match[1]} or fewer, or train on more text.", int(match[1]))
    if match := _TOO_SMALL.search(str(error)):
        return ValueError(
            f"`vocab_size` must be at least {match[1]} for the characters of this text. "
            f"Received: {vocab_size}. Choose {match[1]} or more, or a lower `character_coverage`."
        )
    return ValueError(f"SentencePiece must accept the text and the settings. Received from it: {error}")


def check_text(text: str, name: str) -> None:
    """Refuses what has no UTF-8 form. `name` says in the message which text it is.

    Raises:
        TypeError: `text` is not a string.
        ValueError: `text` has a lone surrogate: half a character, which comes of a wrong decoding.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a string. Received: {type(text).__name__}. Give its `str`.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} must be valid Unicode. Received: {text[error.start]!r} at character {error.start}. "
            'Read the file in its own encoding, such as `open(path, encoding="cp949")`.'
        ) from error


def read_model(path: Path) -> bytes:
    """Returns the bytes of the `.model` file at `path`.

    Raises:
        FileNotFoundError: There is no file at `path`.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"`model_file` must be a SentencePiece .model file. Received: {path}, where there is no file. "
            "Train one with `smolite.train_tokenizer(texts, path)`."
        )
    return path.read_bytes()


def load_processor(model_proto: bytes, name: str) -> sentencepiece.SentencePieceProcessor:
    """Returns SentencePiece's processor, in which every marker of `model_proto` is a control symbol.

    Raises:
        ValueError: `model_proto` is not a whole SentencePiece model. `name` says in the message which it is.
    """
    sentencepiece.set_min_log_level(_ERRORS_ONLY)
    try:
        rules = sentencepiece.SentencePieceNormalizer(model_proto=model_proto).serialized_normalizer_spec()
        processor = sentencepiece.SentencePieceProcessor(model_proto=_guard_markers(model_proto))
    except (RuntimeError, ValueError) as error:
        raise ValueError(_broken(model_proto, name)) from error
    if not rules:
        raise ValueError(_broken(model_proto, name))
    return processor


def _broken(model_proto: bytes, name: str) -> str:
    return (
        f"`model_file` must be a whole SentencePiece model. Received: {name}, {len(model_proto)} bytes "
        "that are not one. Copy the file again, or train one with `smolite.train_tokenizer(texts, path)`."
    )


def _guard_markers(model_proto: bytes) -> bytes:
    """Marks user-defined markers as control symbols, so that no text is encoded to them.

    A piece in the file is field 1, its text; field 2, its score in four bytes; field 3, its type (4
    user-defined, 3 control). Source: `sentencepiece_model.proto` and the protocol buffers wire format.
    """
    for marker in MARKERS:
        text = marker.encode()
        field = re.escape(b"\x0a" + bytes([len(text)]) + text)
        piece = re.compile(b"(" + field + rb"(?:\x15.{4})?\x18)\x04", re.DOTALL)
        model_proto = piece.sub(rb"\g<1>" + b"\x03", model_proto)
    return model_proto


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuses to write over a file.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
    """
    if path.exists() and not overwrite:
        raise FileExistsError(f"`path` must be free. Received: {path}, which exists. Choose another, or `overwrite=True`.")
