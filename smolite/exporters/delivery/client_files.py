"""What a chat client needs beside a model file: the tokenizer and `chat.json`."""

import json
from pathlib import Path

from smolite.checkpoint import JSON_TOKENIZER_FILE, TOKENIZER_FILE
from smolite.data import ChatTemplate
from smolite.files import write_file
from smolite.text import JsonTokenizer, Tokenizer

CHAT_FILE = "chat.json"


def write_client_files(folder: Path, *, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
    """Writes `tokenizer.model` or `tokenizer.json`, and `chat.json`.

    That has the template as text and ids, the ids of its default system turn (`opening`), and those that end an answer.

    In this `tokenizer.model` the markers are control symbols, so that no client can take a marker that a user typed for one.
    Lengths are not in `chat.json`: a client reads them from the shapes of the signatures. A model without a template gets no
    `chat.json`.
    """
    if isinstance(tokenizer, JsonTokenizer):
        write_file(folder / JSON_TOKENIZER_FILE, tokenizer.model_proto)
    else:
        write_file(folder / TOKENIZER_FILE, tokenizer.guarded_proto)
    if template is not None:
        write_file(folder / CHAT_FILE, _describe(tokenizer, template))


def check_client_files(new: Path, old: Path) -> None:
    """Refuses to mix the files of two runs in one folder.

    Raises:
        FileExistsError: a client's file exists in `old` with another content.
    """
    for name in (TOKENIZER_FILE, JSON_TOKENIZER_FILE, CHAT_FILE):
        if (new / name).exists() and (old / name).exists() and (old / name).read_bytes() != (new / name).read_bytes():
            raise FileExistsError(
                f"The folder must not hold files of another run. Received: {old / name}, which differs from the one of this "
                "run. Choose another `out`, or give `overwrite=True`."
            )


def _opening(tokenizer: Tokenizer, template: ChatTemplate) -> list[int]:
    if not template.default_system:
        return []
    prefix, suffix = (template.affix_ids(affix, tokenizer) for affix in (template.system_prefix, template.system_suffix))
    return prefix + tokenizer.encode(template.default_system.strip()) + suffix


def _describe(tokenizer: Tokenizer, template: ChatTemplate) -> bytes:
    texts = template.to_dict()
    affixes = {name: text for name, text in texts.items() if name != "default_system"}
    description = {
        "template": texts,
        "opening": _opening(tokenizer, template),
        "ids": {name: template.affix_ids(text, tokenizer) for name, text in affixes.items()},
        "stop_ids": [tokenizer.markers[template.stop]],
    }
    return json.dumps(description, ensure_ascii=False, indent=2).encode()
