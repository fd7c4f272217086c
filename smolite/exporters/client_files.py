"""What a chat client needs beside a model file: the tokenizer and `chat.json`."""

import json
import re
from pathlib import Path

from smolite.chat import ChatTemplate
from smolite.files import write_file
from smolite.tokenizer import Tokenizer

CHAT_FILE = "chat.json"
TOKENIZER_FILE = "tokenizer.model"


def write_client_files(folder: Path, *, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
    """Writes `tokenizer.model` and `chat.json` (the template as text and as ids, and the ids that end an answer).

    In this `tokenizer.model` the markers are control symbols, so that no client can take a marker that a user typed for one.
    Lengths are not in `chat.json`: a client reads them from the shapes of the signatures. A model without a template gets no
    `chat.json`.
    """
    write_file(folder / TOKENIZER_FILE, tokenizer.guarded_proto)
    if template is not None:
        write_file(folder / CHAT_FILE, _describe(tokenizer, template))


def check_client_files(new: Path, old: Path) -> None:
    """Refuses to mix the files of two runs in one folder.

    Raises:
        FileExistsError: a client's file exists in `old` with another content.
    """
    for name in (TOKENIZER_FILE, CHAT_FILE):
        if (new / name).exists() and (old / name).exists() and (old / name).read_bytes() != (new / name).read_bytes():
            raise FileExistsError(
                f"The folder must not hold files of another run. Received: {old / name}, which differs from the one of this "
                "run. Choose another `out`, or give `overwrite=True`."
            )


def _describe(tokenizer: Tokenizer, template: ChatTemplate) -> bytes:
    stop = re.findall(r"<[^<>\s]+>", template.assistant_suffix)[0]
    texts = template.to_dict()
    description = {
        "template": texts,
        "ids": {name: template.affix_ids(text, tokenizer) for name, text in texts.items()},
        "stop_ids": [tokenizer.markers[stop]],
    }
    return json.dumps(description, ensure_ascii=False, indent=2).encode()
