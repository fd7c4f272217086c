"""Proof for what a chat client has beside a model file: the same ids for the same texts and chats as in training."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from smolite.checkpoint import JSON_TOKENIZER_FILE, TOKENIZER_FILE, Run
from smolite.data import ChatTemplate, Message
from smolite.exporters.delivery.client_files import CHAT_FILE
from smolite.exporters.delivery.report import Row
from smolite.text import Tokenizer

Encode = Callable[[str], list[int]]


def check_client_files_of(folder: Path, run: Run, texts: Sequence[str]) -> list[Row]:
    """A row for each tokenizer's file in an export folder, and one for `chat.json`."""
    rows = []
    for name, runtime in ((TOKENIZER_FILE, "SentencePiece"), (JSON_TOKENIZER_FILE, "tokenizers")):
        if (file := folder / name).exists():
            row = Row(artifact=name, runtime=runtime, num_bytes=file.stat().st_size)
            try:
                encode = _library_encoder(file)
                row.problems += other_ids(encode, run.tokenizer, texts)
            except Exception as error:  # whatever the libraries raise: they share no class
                row.problems.append(f"{runtime} refuses it: {error}")
                encode = run.tokenizer.encode
            rows.append(row)
            if (folder / CHAT_FILE).exists():
                rows.append(_check_chat(folder / CHAT_FILE, run.template, run.tokenizer, encode, texts))
    return rows


def other_ids(encode: Encode, tokenizer: Tokenizer, texts: Sequence[str]) -> list[str]:
    """A problem in words where a runtime's ids of a text are not the tokenizer's."""
    wrong = [text for text in texts if encode(text) != tokenizer.encode(text)]
    return [f"{len(wrong)} of {len(texts)} texts have other ids, for example {wrong[0]!r}"] if wrong else []


def _library_encoder(path: Path) -> Encode:
    """The library alone, as a client uses it."""
    if path.name == TOKENIZER_FILE:
        encode: Encode = sentencepiece.SentencePieceProcessor(model_file=str(path)).encode
        return encode
    import tokenizers

    library = tokenizers.Tokenizer.from_file(str(path))
    library.encode_special_tokens = True
    return lambda text: library.encode(text, add_special_tokens=False).ids


def _check_chat(path: Path, template: ChatTemplate | None, tokenizer: Tokenizer, encode: Encode, texts: Sequence[str]) -> Row:
    """Whether a client that puts the ids of `chat.json` around texts makes the prompts of the model's template."""
    row = Row(artifact=path.name, runtime="a client", num_bytes=path.stat().st_size)
    if template is None:
        row.problems.append("the run has no chat template")
        return row
    try:
        chat = json.loads(path.read_text("utf-8"))
        made = [_client_prompt(chat, encode, messages) for messages in _chats(texts)]
        stops, fields = chat["stop_ids"], chat["template"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        row.problems.append(f"a client cannot read it: {error!r}")
        return row
    wrong = [messages for ids, messages in zip(made, _chats(texts), strict=True) if ids != template.prompt(messages, tokenizer)]
    if wrong:
        row.problems.append(f"{len(wrong)} of {len(made)} prompts have other ids, for example of {wrong[0][0].content!r}")
    if stops != [tokenizer.markers[template.stop]]:
        row.problems.append(f"its answers end with {stops}, the model's with {tokenizer.markers[template.stop]}")
    if fields != template.to_dict():
        row.problems.append("its template is not the one of the run")
    return row


def _chats(texts: Sequence[str]) -> list[list[Message]]:
    """One turn with each text, and chats of three."""
    spoken = [text for text in texts if text.strip()]
    turns = [[Message("user", text)] for text in spoken]
    return turns + [
        [Message("user", first), Message("assistant", second), Message("user", third)]
        for first, second, third in zip(spoken, spoken[1:], spoken[2:], strict=False)
    ]


def _client_prompt(chat: Mapping[str, Any], encode: Encode, messages: Sequence[Message]) -> list[int]:
    ids = [*chat["opening"]]
    for message in messages:
        ids += chat["ids"][f"{message.role}_prefix"] + encode(message.content.strip()) + chat["ids"][f"{message.role}_suffix"]
    return ids + chat["ids"]["assistant_prefix"]
