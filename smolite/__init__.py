"""Smolite: small language models that train with Keras and run on anything.

The public names load on first use, so `import smolite` is quick and imports neither Keras nor a backend.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smolite.checkpoint.run import load, save
    from smolite.data.dataset import ChatDataset
    from smolite.data.dialogues import Conversation, Message, read_conversations
    from smolite.data.packing import pack
    from smolite.data.pairs import Pair, read_pairs
    from smolite.data.template import ChatTemplate
    from smolite.evaluation.likelihood import evaluate
    from smolite.evaluation.pairs import PairScorer
    from smolite.exporters import export
    from smolite.exporters.gguf.engine import LlamaCppEngine
    from smolite.exporters.litert.engine import TFLiteEngine
    from smolite.exporters.neighbours.conversion import convert
    from smolite.exporters.neighbours.keras_hub import from_keras_hub, to_keras_hub
    from smolite.exporters.planning.plan import plan
    from smolite.exporters.quality.ladder import smallest
    from smolite.exporters.verification.verification import verify
    from smolite.generation.keras_engine import KerasEngine
    from smolite.generation.loop import generate, stream
    from smolite.generation.sampling import Sampling
    from smolite.generation.seq2seq_engine import Seq2SeqEngine
    from smolite.models.causal_lm import CausalLM
    from smolite.models.config import PRESETS, ModelConfig
    from smolite.models.layers import LightweightAttn, RotaryEmbedding, SwiGLU
    from smolite.models.seq2seq_lm import Seq2SeqLM
    from smolite.text.json_tokenizer import JsonTokenizer
    from smolite.text.tokenizer import Tokenizer, train_tokenizer
    from smolite.training.fit import finetune, pretrain
    from smolite.training.pairs import train_pairs

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
    "data.template": ("ChatTemplate",),
    "checkpoint.run": ("load", "save"),
    "models.config": ("PRESETS", "ModelConfig"),
    "data.dataset": ("ChatDataset",),
    "data.dialogues": ("Conversation", "Message", "read_conversations"),
    "generation.keras_engine": ("KerasEngine",),
    "evaluation.likelihood": ("evaluate",),
    "exporters": ("export",),
    "exporters.neighbours.conversion": ("convert",),
    "exporters.neighbours.keras_hub": ("from_keras_hub", "to_keras_hub"),
    "exporters.litert.engine": ("TFLiteEngine",),
    "exporters.gguf.engine": ("LlamaCppEngine",),
    "exporters.planning.plan": ("plan",),
    "exporters.quality.ladder": ("smallest",),
    "exporters.verification.verification": ("verify",),
    "generation.loop": ("generate", "stream"),
    "models.layers": ("LightweightAttn", "RotaryEmbedding", "SwiGLU"),
    "models.causal_lm": ("CausalLM",),
    "data.packing": ("pack",),
    "training.pairs": ("train_pairs",),
    "data.pairs": ("Pair", "read_pairs"),
    "training.fit": ("finetune", "pretrain"),
    "generation.sampling": ("Sampling",),
    "evaluation.pairs": ("PairScorer",),
    "models.seq2seq_lm": ("Seq2SeqLM",),
    "generation.seq2seq_engine": ("Seq2SeqEngine",),
    "text.tokenizer": ("Tokenizer", "train_tokenizer"),
    "text.json_tokenizer": ("JsonTokenizer",),
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
