"""The bundled dialogues in small portions, a tokenizer for them, and a model so small that a test can train it."""

import json
from functools import cache

from smolite.data.dialogues import Conversation, read_conversations
from smolite.data.sources import resolve_dataset
from smolite.models.config import ModelConfig
from smolite.text.sentencepiece_model import train_model
from smolite.text.tokenizer import Tokenizer

TINY = ModelConfig(
    vocab_size=1024,
    num_layers=1,
    num_query_heads=2,
    num_key_value_heads=1,
    hidden_dim=32,
    intermediate_dim=64,
    context_length=64,
    dropout=0.1,
)


@cache
def conversations() -> tuple[Conversation, ...]:
    """The bundled training dialogues."""
    return tuple(read_conversations(resolve_dataset("sample")).conversations)


@cache
def tokenizer() -> Tokenizer:
    """A tokenizer of 1,024 pieces."""
    texts = [message.content for conversation in conversations()[:200] for message in conversation.messages]
    return Tokenizer(train_model(texts, vocab_size=TINY.vocab_size, model_type="bpe", character_coverage=0.999))


def write_dialogues(path, dialogues):
    """Writes dialogues in ShareGPT form, and returns the path."""
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = [[{"from": names[m.role], "value": m.content} for m in dialogue.messages] for dialogue in dialogues]
    lines = [json.dumps({"conversations": each}, ensure_ascii=False) for each in turns]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
