"""The kinds of file that can be exported: a new one is a module with a `build`, and a row here."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from smolite.exporters.litert.quantization import WAYS

if TYPE_CHECKING:
    from smolite.checkpoint import Run
    from smolite.generation import Engine


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of file to export.

    Args:
        module: the module with its `build(model, path, *, quantize, prefill_lengths, cache_length)`, which is run in a process
            of its own on TensorFlow, and takes `windows` and `drafts`, too, where `windowed`; or, where `on_tensorflow` is
            false, its `build(run, path, *, quantize)`. Its `check_run(run)`, if it has one, refuses a run before that.
        engine: module and name of what runs it, with a colon between; an `Engine` where `gives_logits`.
        runtime: what that engine runs on.
        library: import name of that runtime.
        file_names: way to quantize, or `None` → name of the file or folder.
        packages: import name → package, of all that it needs.
        extra: the extra of this package that brings them.
        pair_engine: the engine that runs an encoder-decoder, as `engine`; none where there is none.
        windowed: whether it has signatures that look at the first slots of the cache only, or check drafts.
        on_tensorflow: whether it is made of a TensorFlow graph, with fixed lengths.
        complete: whether it holds tokenizer and template, too; `build` is then given the run in place of the model.
        gives_logits: whether the runtime gives logits, so that an `Engine` can run on it.
    """

    module: str
    engine: str
    runtime: str
    library: str
    file_names: Mapping[str | None, str]
    packages: Mapping[str, str]
    extra: str = "export"
    pair_engine: str = ""
    windowed: bool = False
    on_tensorflow: bool = True
    complete: bool = False
    gives_logits: bool = True

    def open(self, path: Path, run: "Run") -> "Engine":
        """The engine on a file of this kind, made from a run.

        Raises:
            ImportError: the package that runs it is missing.
            ValueError: the file is broken, or of a kind that holds no encoder-decoder.
        """
        place, settings = self.engine_of(run)
        if not place:
            raise ValueError(f"{self.runtime} runs no encoder-decoder. Received: {path}. Export it as tflite or saved_model.")
        module, name = place.split(":")
        opened: Engine = getattr(importlib.import_module(module), name)(path, **settings)
        return opened

    def engine_of(self, run: "Run") -> tuple[str, dict[str, Any]]:
        """What runs such a file of a run, as `engine` or `pair_engine`, and what it takes beside the path."""
        if not run.config.has_encoder:
            return self.engine, {}
        return self.pair_engine, {"start_id": run.tokenizer.start_id}


_TENSORFLOW = {"tensorflow": "tensorflow"}
_LITERT = {"ai_edge_litert": "ai-edge-litert", "ai_edge_quantizer": "ai-edge-quantizer"}
TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "saved_model": Target(
            module="smolite.exporters.saved_model.build",
            engine="smolite.exporters.saved_model.engine:SavedModelEngine",
            pair_engine="smolite.exporters.saved_model.pair_engine:SavedModelPairEngine",
            runtime="TensorFlow",
            library="tensorflow",
            file_names={None: "saved_model"},
            packages=_TENSORFLOW,
        ),
        "tflite": Target(
            module="smolite.exporters.litert.build",
            engine="smolite.exporters.litert.engine:TFLiteEngine",
            pair_engine="smolite.exporters.litert.pair_engine:TFLitePairEngine",
            runtime="LiteRT",
            library="ai_edge_litert.compiled_model",
            file_names={None: "model.tflite", **{way: f"model_{way}.tflite" for way in WAYS}},
            packages=_TENSORFLOW | _LITERT,
            windowed=True,
        ),
        "litertlm": Target(
            module="smolite.exporters.litertlm.build",
            engine="smolite.exporters.litertlm.engine:LiteRTLMEngine",
            runtime="LiteRT-LM",
            library="litert_lm",
            file_names={None: "model.litertlm", **{way: f"model_{way}.litertlm" for way in WAYS}},
            packages=_TENSORFLOW | _LITERT | {"litert_lm_builder": "litert-lm-builder", "litert_lm": "litert-lm-api"},
            extra="litertlm",
            complete=True,
            gives_logits=False,
        ),
        "gguf": Target(
            module="smolite.exporters.gguf.build",
            engine="smolite.exporters.gguf.engine:LlamaCppEngine",
            runtime="llama.cpp",
            library="cyllama.llama.llama_cpp",
            file_names={None: "model.gguf", "f16": "model_f16.gguf", "q8_0": "model_q8_0.gguf", "q4_0": "model_q4_0.gguf"},
            packages={"gguf": "gguf", "cyllama": "cyllama"},
            extra="gguf",
            on_tensorflow=False,
            complete=True,
        ),
    }
)

# A quantized file may cost this share more bits per character, and must keep this share of the greedy tokens; another share for
# some files, by name. Four bits are rounding that shows: their limits tell a coarse file from a broken one.
BITS_LIMIT, AGREEMENT_LIMIT = 0.01, 0.75
_BY_NAME = {f"model_{name}.{suffix}": way for name, way in WAYS.items() for suffix in ("tflite", "litertlm")}
BITS_LIMITS: Mapping[str, float] = MappingProxyType(
    {"model_q4_0.gguf": 0.15} | {name: way.most_bits for name, way in _BY_NAME.items()}
)
AGREEMENT_LIMITS: Mapping[str, float] = MappingProxyType(
    {"model_q4_0.gguf": 0.5} | {name: way.least_agreement for name, way in _BY_NAME.items()}
)
