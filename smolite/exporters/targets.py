"""The kinds of file that can be exported: a new one is a module with a `build`, and a row here."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smolite.checkpoint import Run
    from smolite.engines import Engine


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of file to export.

    Args:
        module: the module with its `build(model, path, *, quantize, prefill_lengths, cache_length)`, which is run in a process
            of its own on TensorFlow; or, where `on_tensorflow` is false, its `build(run, path, *, quantize)`.
        engine: module and name of what runs it, with a colon between; an `Engine` where `gives_logits`.
        runtime: what that engine runs on.
        file_names: way to quantize, or `None` → name of the file or folder.
        packages: import name → package, of all that it needs.
        extra: the extra of this package that brings them.
        pair_engine: the engine that runs an encoder-decoder, as `engine`; none where there is none.
        on_tensorflow: whether it is made of a TensorFlow graph, with fixed lengths.
        complete: whether it holds tokenizer and template, too; `build` is then given the run in place of the model.
        gives_logits: whether the runtime gives logits, so that an `Engine` can run on it.
    """

    module: str
    engine: str
    runtime: str
    file_names: Mapping[str | None, str]
    packages: Mapping[str, str]
    extra: str = "export"
    pair_engine: str = ""
    on_tensorflow: bool = True
    complete: bool = False
    gives_logits: bool = True

    def open(self, path: Path, run: "Run") -> "Engine":
        """The engine on a file of this kind, made from a run.

        Raises:
            ImportError: the package that runs it is missing.
            ValueError: the file is broken, or of a kind that holds no encoder-decoder.
        """
        pairs = run.model.config.num_encoder_layers > 0
        place = self.pair_engine if pairs else self.engine
        if not place:
            raise ValueError(f"{self.runtime} runs no encoder-decoder. Received: {path}. Export it as tflite or saved_model.")
        module, name = place.split(":")
        settings = {"start_id": run.tokenizer.start_id} if pairs else {}
        opened: Engine = getattr(importlib.import_module(module), name)(path, **settings)
        return opened


_TENSORFLOW = {"tensorflow": "tensorflow"}
_LITERT = {"ai_edge_litert": "ai-edge-litert", "ai_edge_quantizer": "ai-edge-quantizer"}
TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "saved_model": Target(
            module="smolite.exporters.saved_model",
            engine="smolite.exporters.saved_model:SavedModelEngine",
            pair_engine="smolite.exporters.pair_engines:SavedModelPairEngine",
            runtime="TensorFlow",
            file_names={None: "saved_model"},
            packages=_TENSORFLOW,
        ),
        "tflite": Target(
            module="smolite.exporters.tflite",
            engine="smolite.exporters.litert_engine:TFLiteEngine",
            pair_engine="smolite.exporters.pair_engines:TFLitePairEngine",
            runtime="LiteRT",
            file_names={None: "model.tflite", "int8": "model_int8.tflite"},
            packages=_TENSORFLOW | _LITERT,
        ),
        "litertlm": Target(
            module="smolite.exporters.litertlm",
            engine="smolite.exporters.litertlm_engine:LiteRTLMEngine",
            runtime="LiteRT-LM",
            file_names={None: "model.litertlm", "int8": "model_int8.litertlm"},
            packages=_TENSORFLOW | _LITERT | {"litert_lm_builder": "litert-lm-builder", "litert_lm": "litert-lm-api"},
            extra="litertlm",
            complete=True,
            gives_logits=False,
        ),
        "gguf": Target(
            module="smolite.exporters.gguf",
            engine="smolite.exporters.llama_cpp_engine:LlamaCppEngine",
            runtime="llama.cpp",
            file_names={None: "model.gguf", "f16": "model_f16.gguf", "q8_0": "model_q8_0.gguf", "q4_0": "model_q4_0.gguf"},
            packages={"gguf": "gguf", "cyllama": "cyllama"},
            extra="gguf",
            on_tensorflow=False,
            complete=True,
        ),
    }
)
