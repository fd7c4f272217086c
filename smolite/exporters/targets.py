"""The kinds of file that can be exported: a new one is a module with a `build`, and a row here."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of file to export.

    Args:
        module: the module with its `build(model, path, *, quantize, prefill_lengths, cache_length)`, which is run in a process
            of its own on TensorFlow; or, where `on_tensorflow` is false, its `build(run, path, *, quantize)`.
        engine: module and name of the engine that runs it, with a colon between.
        runtime: what that engine runs on.
        file_names: way to quantize, or `None` → name of the file or folder.
        packages: import name → package, of all that it needs.
        extra: the extra of this package that brings them.
        on_tensorflow: whether it is made of a TensorFlow graph, with fixed lengths.
    """

    module: str
    engine: str
    runtime: str
    file_names: Mapping[str | None, str]
    packages: Mapping[str, str]
    extra: str = "export"
    on_tensorflow: bool = True


_TENSORFLOW = {"tensorflow": "tensorflow"}
_LITERT = {"ai_edge_litert": "ai-edge-litert", "ai_edge_quantizer": "ai-edge-quantizer"}
TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "saved_model": Target(
            module="smolite.exporters.saved_model",
            engine="smolite.exporters.saved_model:SavedModelEngine",
            runtime="TensorFlow",
            file_names={None: "saved_model"},
            packages=_TENSORFLOW,
        ),
        "tflite": Target(
            module="smolite.exporters.tflite",
            engine="smolite.exporters.litert_engine:TFLiteEngine",
            runtime="LiteRT",
            file_names={None: "model.tflite", "int8": "model_int8.tflite"},
            packages=_TENSORFLOW | _LITERT,
        ),
        "gguf": Target(
            module="smolite.exporters.gguf",
            engine="smolite.exporters.llama_cpp_engine:LlamaCppEngine",
            runtime="llama.cpp",
            file_names={None: "model.gguf", "f16": "model_f16.gguf", "q8_0": "model_q8_0.gguf", "q4_0": "model_q4_0.gguf"},
            packages={"gguf": "gguf", "cyllama": "cyllama"},
            extra="gguf",
            on_tensorflow=False,
        ),
    }
)
