"""Proof of what only a .gguf file has: a tokenizer of llama.cpp's own."""

from collections.abc import Sequence

from smolite.exporters.delivery.report import Row
from smolite.exporters.gguf.engine import LlamaCppEngine
from smolite.exporters.verification.proof import FileCheck
from smolite.exporters.verification.tokenizer_check import other_ids
from smolite.text import Tokenizer


def prove(file: FileCheck) -> list[Row]:
    """A row for the tokenizer in the file."""
    return [check_llama_tokenizer(file.engine, file.path.name, file.run.tokenizer, file.texts)]


def check_llama_tokenizer(engine: LlamaCppEngine, name: str, tokenizer: Tokenizer, texts: Sequence[str]) -> Row:
    """Whether llama.cpp gives the same ids.

    Of texts in normal form: it leaves out the rules that compose Hangul and narrow full width.
    """
    texts = [tokenizer.decode(tokenizer.encode(text)) for text in texts]
    problems = other_ids(engine.tokenize, tokenizer, texts)
    return Row(artifact=f"tokenizer in {name}", runtime="llama.cpp", problems=problems)
