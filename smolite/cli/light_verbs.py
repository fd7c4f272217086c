"""The verbs that need no backend: a tokenizer from text, and a look at dialogues."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from smolite.data import read_conversations, read_documents, resolve_dataset, show
from smolite.text import Tokenizer, train_fitting_tokenizer, train_tokenizer


def tokenizer(*, texts: Sequence[str], out: str, vocab_size: int, model_type: str, overwrite: bool) -> None:
    """Trains a tokenizer on files of text or dialogues."""
    lines = [line for name in texts for line in read_documents(resolve_dataset(name))]
    made = train_tokenizer(lines, out, vocab_size=vocab_size, model_type=model_type, overwrite=overwrite)
    characters = sum(map(len, lines))
    share = characters / max(sum(len(made.encode(line)) for line in lines), 1)
    print(f"{out}: {made.vocab_size:,} pieces from {characters:,} characters, {share:.2f} characters a token")


def data(*, action: str, dataset: str, tokenizer: str | None, count: int) -> None:
    """Prints examples with the trained tokens marked."""
    path = resolve_dataset(dataset)
    if tokenizer:
        print(show(path, Tokenizer(tokenizer), count=count))
        return
    with tempfile.TemporaryDirectory() as folder:
        conversations = read_conversations(path).conversations
        texts = [message.content for conversation in conversations for message in conversation.messages]
        print(show(path, train_fitting_tokenizer(texts, Path(folder, "t.model"), most=8192), count=count))
