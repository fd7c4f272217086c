"""Smolite: small language models that train with Keras and run on anything.

The public names load on first use, so `import smolite` is quick and imports neither Keras nor a backend.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smolite.chat import ChatTemplate
    from smolite.checkpoint import load, save
    from smolite.config import PRESETS, ModelConfig
    from smolite.data import ChatDataset
    from smolite.dialogues import Conversation, Message, read_conversations
    from smolite.engines import KerasEngine
    from smolite.evaluation import evaluate
    from smolite.exporters import export
    from smolite.exporters.conversion import convert
    from smolite.exporters.keras_hub import from_keras_hub, to_keras_hub
    from smolite.exporters.litert_engine import TFLiteEngine
    from smolite.exporters.llama_cpp_engine import LlamaCppEngine
    from smolite.exporters.planning import plan
    from smolite.exporters.quality import smallest
    from smolite.exporters.verification import verify
    from smolite.generation import generate, stream
    from smolite.layers import LightweightAttn, RotaryEmbedding, SwiGLU
    from smolite.models import CausalLM
    from smolite.packing import pack
    from smolite.pair_recipes import train_pairs
    from smolite.pairs import Pair, read_pairs
    from smolite.recipes import finetune, pretrain
    from smolite.samplers import Sampling
    from smolite.scoring import PairScorer
    from smolite.seq2seq import Seq2SeqLM
    from smolite.seq2seq_engine import Seq2SeqEngine
    from smolite.tokenizer import Tokenizer, train_tokenizer
    from smolite.tokenizer_json import JsonTokenizer

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "CausalLM",
    "ChatDataset",
    "ChatTemplate",
    "Conversation",
    "JsonTokenizer",
    "KerasEngine",
    "LightweightAttn",
    "LlamaCppEngine",
    "Message",
    "ModelConfig",
    "Pair",
    "PairScorer",
    "RotaryEmbedding",
    "Sampling",
    "Seq2SeqEngine",
    "Seq2SeqLM",
    "SwiGLU",
    "TFLiteEngine",
    "Tokenizer",
    "__version__",
    "convert",
    "evaluate",
    "export",
    "finetune",
    "from_keras_hub",
    "generate",
    "load",
    "pack",
    "plan",
    "pretrain",
    "read_conversations",
    "read_pairs",
    "save",
    "smallest",
    "stream",
    "to_keras_hub",
    "train_pairs",
    "train_tokenizer",
    "verify",
]

# The same as the imports above, which only type checkers read.
_MODULES = {
    "chat": ("ChatTemplate",),
    "checkpoint": ("load", "save"),
    "config": ("PRESETS", "ModelConfig"),
    "data": ("ChatDataset",),
    "dialogues": ("Conversation", "Message", "read_conversations"),
    "engines": ("KerasEngine",),
    "evaluation": ("evaluate",),
    "exporters": ("export",),
    "exporters.conversion": ("convert",),
    "exporters.keras_hub": ("from_keras_hub", "to_keras_hub"),
    "exporters.litert_engine": ("TFLiteEngine",),
    "exporters.llama_cpp_engine": ("LlamaCppEngine",),
    "exporters.planning": ("plan",),
    "exporters.quality": ("smallest",),
    "exporters.verification": ("verify",),
    "generation": ("generate", "stream"),
    "layers": ("LightweightAttn", "RotaryEmbedding", "SwiGLU"),
    "models": ("CausalLM",),
    "packing": ("pack",),
    "pair_recipes": ("train_pairs",),
    "pairs": ("Pair", "read_pairs"),
    "recipes": ("finetune", "pretrain"),
    "samplers": ("Sampling",),
    "scoring": ("PairScorer",),
    "seq2seq": ("Seq2SeqLM",),
    "seq2seq_engine": ("Seq2SeqEngine",),
    "tokenizer": ("Tokenizer", "train_tokenizer"),
    "tokenizer_json": ("JsonTokenizer",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
_EXTRAS = {"tensorflow": "tf", "jax": "jax", "torch": "torch"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        names = ", ".join(__all__)
        raise AttributeError(f"Module 'smolite' has no attribute {name!r}. Choose one of: {names}.")
    try:
        return getattr(import_module(f"smolite.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        backend = (error.name or "").split(".")[0]
        if backend not in _EXTRAS:
            raise
        raise ModuleNotFoundError(
            f"`smolite.{name}` needs the Keras backend {backend}, which is not installed. Run `pip install "
            f"'smolite[{_EXTRAS[backend]}]'`, or set the environment variable KERAS_BACKEND to the backend "
            "that you have: tensorflow, jax or torch.",
            name=error.name,
        ) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
