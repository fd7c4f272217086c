"""Byte-level tokenizers of the hub, `tokenizer.json`, with the face of `Tokenizer`; the library `tokenizers` splits."""

import codecs
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from smolite.text.sentencepiece_model import check_text
from smolite.text.tokenizer import StreamingDecoder, Tokenizer

ROLES: Mapping[str, str] = MappingProxyType({"start": "bos", "end": "eos", "pad": "pad"})
"""The role of a marker, and what Hugging Face calls it."""


class JsonTokenizer(Tokenizer):
    r"""A byte-level `tokenizer.json` that keeps markers and text apart, with the methods of `Tokenizer`.

    Its markers are the file's special tokens, such as `<|im_start|>`, and what `roles` names. `encode` never returns one: a
    `<|im_end|>` that a user typed is text. Bytes that the file has no token for are left out, as in transformers (SmolLM2
    lacks 21 of the 256). A piece writes a byte as one letter, as GPT-2 does: `Ġ` is a space, `Ċ` a newline.

    Example: where `Hello` is token 19556 and `,` token 28, `encode("Hello,")` is `[19556, 28]`, and
    `decode([1, 19556, 28, 2])` is `"Hello,"`: the markers 1 (`<|im_start|>`) and 2 (`<|im_end|>`) are left out.

    Args:
        file: path of a `tokenizer.json`, or its bytes.
        roles: which tokens are `start`, `end` and `pad`, as in `{"end": "<|im_end|>"}`; a `tokenizer.json` does not say it.
        vocab_size: ids of the model, where it has more than the file. An id without a piece has no text: it is never
            encoded, and decoded to nothing. Default: the ids of the file.

    Attributes:
        vocab_size: number of ids.
        markers: special tokens, name to id.
        unk_id: id of the token for bytes that have none, or -1.
        model_proto: bytes of the file, as they were given.
        roles: as given.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: the library `tokenizers` is not installed.
        ValueError: not a whole byte-level `tokenizer.json`, a role for no token of it, or a `vocab_size` below its own.
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | bytes,
        *,
        roles: Mapping[str, str] | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self._name = "the given bytes" if isinstance(file, bytes) else os.fspath(file)
        self.model_proto = file if isinstance(file, bytes) else _read(Path(file))
        self.roles = dict(roles or {})
        content = _parse(self.model_proto, self._name)
        self._library = _open(content, self._name, special=set(self.roles.values()))
        self._check_roles()
        unknown = content["model"].get("unk_token")
        self.unk_id: int = -1 if unknown is None else self._library.token_to_id(unknown)
        special = {index: token.content for index, token in self._library.get_added_tokens_decoder().items() if token.special}
        self._marker_ids = frozenset(special)
        # A token for unknown bytes is a marker only where it has a role, too.
        roled = set(self.roles.values())
        named = {index: name for index, name in special.items() if index != self.unk_id or name in roled}
        self.markers = {name: index for index, name in sorted(named.items())}
        self.vocab_size = self._checked_size(vocab_size)
        self._typed_marker = _within(self.markers)
        self._byte_of_letter = byte_letters()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles what it was made of: the library's own pickle forgets that text is never a special token."""
        # A partial, because pickle passes arguments by position and these are keyword-only.
        return partial(JsonTokenizer, roles=self.roles, vocab_size=self.vocab_size), (self.model_proto,)

    def _check_roles(self) -> None:
        for role, token in self.roles.items():
            if role not in ROLES or self._library.token_to_id(token) is None:
                raise ValueError(
                    f"`roles` must name tokens of {self._name} for {', '.join(ROLES)}. Received: {role}={token!r}. Give a "
                    "token that the file has."
                )

    def _checked_size(self, vocab_size: int | None) -> int:
        own = max(self._library.get_vocab().values(), default=-1) + 1
        if vocab_size is not None and vocab_size < own:
            raise ValueError(
                f"`vocab_size` must be at least the number of ids in {self._name}, {own}. Received: {vocab_size}. Use the "
                "tokenizer that the model was trained with."
            )
        return vocab_size or own

    @property
    def guarded_proto(self) -> bytes:
        """A `.model` file for clients, which a `tokenizer.json` has no form of. Raises ValueError."""
        raise ValueError(
            f"A client's folder must hold a SentencePiece tokenizer.model. Received: {self._name}, which is of the other kind. "
            "Export a model that was trained with a tokenizer of `smolite.train_tokenizer`."
        )

    def _marker_id(self, name: str) -> int:
        role = name.strip("<>")
        if role in self.roles:
            return self.markers[self.roles[role]]
        known = ", ".join(f"{role}={token}" for role, token in self.roles.items()) or "no role at all"
        raise ValueError(
            f"The tokenizer must have a token in the role of {name}. Received: {self._name} with {known}. Name it with "
            f'`JsonTokenizer(file, roles={{"{role}": token}})`, or in tokenizer_config.json.'
        )

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of `text`, never a marker's; `[]` for an empty text.

        Example: where `Hello` is token 19556, `encode("Hello")` is `[19556]`.

        Raises:
            TypeError: `text` is not a string.
            ValueError: `text` has half a character (a lone surrogate), which comes of a wrong decoding.
        """
        check_text(text, "`text`")
        ids = self._split(text)
        if self._typed_marker is None or set(self.markers.values()).isdisjoint(ids):
            return ids
        # The library takes a typed marker for its special token. Cut after its first letter, no part is one.
        halves = [index for part in self._typed_marker.split(text) for index in self._split(part)]
        return [index for index in halves if index not in self.markers.values()]

    def _split(self, text: str) -> list[int]:
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids` without the markers; a byte that is part of no character becomes U+FFFD.

        Example: where the letters of `각` are tokens 181, 127 and 224, `decode([1, 181, 127, 224, 2])` is `"각"`.

        Raises:
            ValueError: an id lies outside the vocabulary.
        """
        return b"".join(map(self._raw_byte, self._check_ids(ids))).decode("utf-8", "replace")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Returns the piece of each id, markers included; `""` for an id without one."""
        return [self._library.id_to_token(index) or "" for index in self._check_ids(ids)]

    def stream(self) -> StreamingDecoder:
        """Returns a decoder that takes ids one by one and gives text as soon as it is certain."""
        return ByteDecoder(self)

    def _raw_byte(self, index: int) -> bytes:
        """Returns the bytes of a token, none for a marker. A token with a foreign letter is text as it stands."""
        if index in self._marker_ids:
            return b""
        piece = self._library.id_to_token(index) or ""
        known = [self._byte_of_letter.get(letter) for letter in piece]
        return bytes(byte for byte in known if byte is not None) if None not in known else piece.encode()


class ByteDecoder(StreamingDecoder):
    """Decodes ids as they come. The chunks, joined, equal `decode` of all ids.

    It keeps nothing but the bytes of one unfinished character, so every step costs the same.

    Example: where the letters of `각` are tokens 181, 127 and 224, the three pushes give `""`, `""` and `"각"`.
    """

    def __init__(self, tokenizer: JsonTokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int) -> str:
        """Takes the next id and returns the text that it completes; `""` for a marker or part of a character.

        Raises:
            ValueError: the id lies outside the vocabulary.
        """
        self._tokenizer._check_ids([index])
        return self._utf8.decode(self._tokenizer._raw_byte(index))

    def finish(self) -> str:
        """Returns what is still held back: U+FFFD for a character that never became whole."""
        return self._utf8.decode(b"", final=True)


def byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in a byte-level vocabulary, as a map from letter to byte.

    Printable Latin-1 letters stand for themselves, the other 68 bytes for U+0100 and on, in order. Source: the GPT-2 encoder
    (Radford et al. 2019).
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + number): byte for number, byte in enumerate(hidden)}


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(
            f"`file` must be a tokenizer.json. Received: {path}, where there is no file. Copy it from the model's folder."
        )
    return path.read_bytes()


def _parse(data: bytes, name: str) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except ValueError as error:
        raise _broken(name, error) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise _broken(name, "no object with a `model`")
    decoder, model = content.get("decoder") or {}, content["model"].get("type", "BPE")
    if decoder.get("type") != "ByteLevel" or model != "BPE":
        raise ValueError(
            f"{name} must be a byte-level BPE tokenizer. Received: model {model} with decoder {decoder.get('type')}. Use the "
            "SentencePiece tokenizer.model of this model instead, if it has one."
        )
    return content


def _open(content: dict[str, Any], name: str, *, special: set[str]) -> Any:
    """The library's tokenizer of a file: same ids for the same text at all times, and text is never a special token."""
    try:
        from tokenizers import Tokenizer as Library
    except ImportError as error:
        raise ImportError(
            f'Reading {name} needs the package `tokenizers`. Install it with `pip install "smolite[hf]"`.'
        ) from error
    given = content.get("added_tokens") or []
    added = [{**each, "special": each.get("special", False) or each.get("content") in special} for each in given]
    # Files keep the settings of the training that they come from: BPE dropout would split a text in another way each time,
    # truncation would cut it.
    steady = {"added_tokens": added, "truncation": None, "padding": None, "model": {**content["model"], "dropout": None}}
    try:
        library = Library.from_str(json.dumps({**content, **steady}))
    except Exception as error:  # the library raises nothing more special
        raise _broken(name, error) from error
    library.add_special_tokens(sorted(token for token in special if library.token_to_id(token) is not None))
    # True makes the library read a typed special token as text, whatever its name says.
    library.encode_special_tokens = True
    return library


def _broken(name: str, reason: object) -> ValueError:
    return ValueError(f"`file` must be a whole tokenizer.json. Received: {name}, with this problem: {reason}. Copy it again.")


def _within(markers: Iterable[str]) -> re.Pattern[str] | None:
    """Finds the end of the first letter of each marker in a text, where a split leaves no marker whole."""
    splits = [f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in markers if len(name) > 1]
    return re.compile("|".join(splits)) if splits else None
