"""Text to token ids and back, with SentencePiece: training, encoding, decoding whole or as a stream."""

import codecs
import operator
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from smolite.files import write_file
from smolite.text.sentencepiece_model import (
    MARKERS,
    VocabularyTooLarge,
    check_free,
    check_text,
    load_processor,
    read_model,
    train_model,
)

# How much text a vocabulary entry needs to be worth having.
CHARACTERS_PER_PIECE = 40
# Markers, the newline, 256 bytes, and the space.
PIECES_BESIDE_TEXT = 264


class Tokenizer:
    r"""A SentencePiece model that keeps markers and text apart.

    `encode` never returns a marker: a `<end>` that a user typed is text, also where the file lists `<end>` as
    a user-defined symbol (Smolwrite's `unigram.model`) and SentencePiece itself would return the marker.

    Example: where `▁안녕` is piece 301 and `네` piece 310, `encode("안녕\n네")` is `[301, 5, 310]`, and
    `decode([2, 301, 5, 310, 3])` is `"안녕\n네"`: the markers 2 (`<start>`) and 3 (`<end>`) are left out.

    Args:
        model_file: Path of a SentencePiece `.model` file, or its bytes.

    Attributes:
        vocab_size: Number of pieces.
        markers: The markers this tokenizer has, name to id.
        model_proto: Bytes of the `.model` file, as they were given.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not a whole SentencePiece model.
    """

    def __init__(self, model_file: str | os.PathLike[str] | bytes) -> None:
        self._name = "the given bytes" if isinstance(model_file, bytes) else os.fspath(model_file)
        self.model_proto = model_file if isinstance(model_file, bytes) else read_model(Path(model_file))
        self._processor = load_processor(self.model_proto, self._name)
        self.vocab_size: int = self._processor.vocab_size()
        self.unk_id: int = self._processor.unk_id()
        self.markers: dict[str, int] = self._find_markers()
        self._marker_ids = frozenset(self.markers.values())

    def _find_markers(self) -> dict[str, int]:
        ids = {name: self._processor.piece_to_id(name) for name in MARKERS}
        return {name: index for name, index in ids.items() if self._processor.is_control(index)}

    @property
    def guarded_proto(self) -> bytes:
        """Bytes of a `.model` file in which every marker is a control symbol, so that no client reads one in a user's text."""
        return self._processor.serialized_model_proto()

    @property
    def pad_id(self) -> int:
        """Id of `<pad>`. Raises ValueError where the tokenizer lacks it, as do the other three."""
        return self._marker_id("<pad>")

    @property
    def start_id(self) -> int:
        """Id of `<start>`, which opens a dialogue."""
        return self._marker_id("<start>")

    @property
    def end_id(self) -> int:
        """Id of `<end>`, which closes an answer."""
        return self._marker_id("<end>")

    @property
    def sep_id(self) -> int:
        """Id of `<sep>`, which stands between a question and its answer."""
        return self._marker_id("<sep>")

    def _marker_id(self, name: str) -> int:
        if name in self.markers:
            return self.markers[name]
        missing = ", ".join(marker for marker in MARKERS if marker not in self.markers)
        raise ValueError(
            f"The tokenizer must have the marker {name}. Received: {self._name}, which lacks {missing}. "
            "Train a tokenizer that has them with `smolite.train_tokenizer(texts, path)`."
        )

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of `text`, never a marker's; `[]` for an empty text.

        Example: where `▁안녕` is piece 301, `encode("안녕")` is `[301]`.

        Raises:
            TypeError: `text` is not a string.
            ValueError: `text` has half a character (a lone surrogate), which comes of a wrong decoding.
        """
        check_text(text, "`text`")
        ids: list[int] = self._processor.encode(text)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids` without the markers; a byte that is part of no character becomes U+FFFD.

        Example: `decode([2, 240, 182, 135, 3])` is `"각"`: three byte pieces between `<start>` and `<end>`.

        Raises:
            ValueError: An id lies outside the vocabulary.
        """
        text_ids = [index for index in self._check_ids(ids) if index not in self._marker_ids]
        text: str = self._processor.decode(text_ids)
        return text

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Returns the piece of each id, markers included; `▁` stands for a space, `<0xEB>` for a byte.

        Example: `pieces([2, 240, 4])` is `["<start>", "<0xEA>", "<sep>"]`.
        """
        return [self._processor.id_to_piece(index) for index in self._check_ids(ids)]

    def _check_ids(self, ids: Iterable[int]) -> list[int]:
        checked = [operator.index(index) for index in ids]
        for index in checked:
            if not 0 <= index < self.vocab_size:
                raise ValueError(
                    f"Token ids must be from 0 to {self.vocab_size - 1}. Received: {index}. "
                    "Use the tokenizer that the model was trained with."
                )
        return checked

    def stream(self) -> "StreamingDecoder":
        """Returns a decoder that takes ids one by one and gives text as soon as it is certain."""
        return StreamingDecoder(self)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the `.model` file, whole or not at all.

        Raises:
            FileExistsError: `path` exists and `overwrite` is false.
        """
        check_free(Path(path), overwrite=overwrite)
        write_file(path, self.model_proto)

    def _raw_byte(self, index: int) -> bytes:
        """Returns the byte of a byte piece such as `<0xEB>`; of other pieces a space: it ends a character."""
        if not self._processor.is_byte(index):
            return b" "
        return bytes([int(self._processor.id_to_piece(index)[3:5], 16)])


class StreamingDecoder:
    """Decodes ids as they come. The chunks, joined, equal `decode` of all ids.

    Only the ids whose text is not out yet are decoded, so a step costs the same however long the stream is.

    Example: where `각` is the byte pieces 240, 182, 135, the three pushes give `""`, `""` and `"각"`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._context: list[int] = []
        self._context_text = ""
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def push(self, index: int) -> str:
        """Takes the next id and returns the text that it completes; `""` for a marker or part of a character.

        Raises:
            ValueError: The id lies outside the vocabulary.
        """
        self._tokenizer._check_ids([index])
        if index in self._tokenizer._marker_ids:
            return ""
        self._window.append(index)
        self._utf8.decode(self._tokenizer._raw_byte(index))
        # Python's own incremental decoder says whether bytes wait for others; to count them by hand, one would write UTF-8
        # anew.
        held_back, _ = self._utf8.getstate()
        return "" if held_back else self._release()

    def finish(self) -> str:
        """Returns what is still held back: U+FFFD for each byte of a character that never became whole."""
        self._utf8.reset()
        return self._release()

    def _release(self) -> str:
        text = self._tokenizer.decode(self._context + self._window)[len(self._context_text) :]
        if text and not self._context:
            self._enter_text()
        # Before there is text, the window stays: SentencePiece drops the space at the start of a text, and only the whole
        # start says which one.
        if self._context:
            self._window.clear()
        return text

    def _enter_text(self) -> None:
        """Puts one piece of fixed text before every later window.

        The start of a text swallows a space; until there is text, the whole window is decoded anew.
        """
        # `<unk>`, because its text is the same wherever it stands, and no piece joins with it.
        self._context = [self._tokenizer.unk_id]
        self._context_text = self._tokenizer.decode(self._context)


def vocabulary_for(texts: Sequence[str], *, most: int) -> int:
    """A vocabulary size that `texts` can fill, a multiple of 32 up to `most`, with a piece for each character."""
    characters = set(unicodedata.normalize("NFC", "".join(texts)))
    # A multiple of 32 keeps the table's rows in whole blocks; -(-a // b) rounds up.
    least = -(-(PIECES_BESIDE_TEXT + len(characters)) // 32) * 32
    return min(most, max(sum(map(len, texts)) // CHARACTERS_PER_PIECE // 32 * 32, least))


def train_fitting_tokenizer(texts: Sequence[str], path: str | os.PathLike[str], *, most: int) -> Tokenizer:
    """Trains a tokenizer of `vocabulary_for` pieces, or of as many as a very short text can fill; replaces a file at `path`."""
    try:
        return train_tokenizer(texts, path, vocab_size=vocabulary_for(texts, most=most), overwrite=True)
    except VocabularyTooLarge as error:
        return train_tokenizer(texts, path, vocab_size=error.most, overwrite=True)


def train_tokenizer(
    texts: Iterable[str],
    path: str | os.PathLike[str],
    *,
    vocab_size: int = 8192,
    model_type: str = "bpe",
    character_coverage: float = 0.9995,
    overwrite: bool = False,
) -> Tokenizer:
    """Trains a tokenizer on `texts`, writes it to `path` and returns it.

    Ids: `<pad>` 0, `<unk>` 1, `<start>` 2, `<end>` 3, `<sep>` 4, a newline 5, the 256 bytes 6 to 261, then
    what the text taught. Digits stand alone, spaces stay as they are, and the rules of `korean_rules` are
    inside the file. The same texts and settings give the same file, byte for byte.

    Args:
        texts: Strings of any number of lines; a line is at most a million bytes of UTF-8.
        path: Where the `.model` file goes.
        vocab_size: Number of pieces, markers and bytes included.
        model_type: `"bpe"`, which llama.cpp splits as SentencePiece does, or `"unigram"`.
        character_coverage: Share of the characters in `texts` that get a piece; bytes write the rest.
        overwrite: Whether a file at `path` may be replaced.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
        TypeError: `texts` is one string, or holds something else than strings.
        ValueError: An unknown `model_type`, a line too long, no text at all, or a `vocab_size` that the text
            can't fill or that is too small for its characters.
    """
    check_free(Path(path), overwrite=overwrite)
    model_proto = train_model(texts, vocab_size=vocab_size, model_type=model_type, character_coverage=character_coverage)
    write_file(path, model_proto)
    return Tokenizer(path)
