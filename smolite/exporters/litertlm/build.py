"""The LiteRT-LM target: one file of the .tflite model, the tokenizer, the chat template and what the runtime asks for.

Source: `litert_lm_builder` and the protocol buffers that come with it. How a chat is written there stands in `private_markers`.
"""

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smolite.checkpoint import Run
from smolite.exporters.edge.names import cache_name
from smolite.exporters.litert import build as tflite
from smolite.exporters.litertlm.form import check_config
from smolite.exporters.litertlm.private_markers import PrivateTemplate, private_tokenizer
from smolite.exporters.request import ExportRequest
from smolite.text import JsonTokenizer

# What the runtime samples with where a program asks for nothing else; as `smolite chat`, with the 40 likeliest tokens at most.
TEMPERATURE, TOP_P, TOP_K = 0.7, 0.9, 40
_AXIS = {"k": 2, "v": 3}  # of the slots, in `signatures.cache_shapes`


def write(run: Run, request: ExportRequest) -> None:
    """Writes the .litertlm file of a request, see `build`."""
    build(
        run,
        request.path,
        quantize=request.quantize,
        prefill_lengths=request.prefill_lengths,
        cache_length=request.slots,
    )


def build(run: Run, path: Path, *, quantize: str | None, prefill_lengths: Sequence[int], cache_length: int) -> None:
    """Writes a .litertlm file, and says on standard output how far it is.

    Args:
        run: the run; its model in float32, on the TensorFlow backend.
        path: the file to write.
        quantize: `None` for float32, or a way of `quantize_tflite`.
        prefill_lengths: how many tokens of a prompt are read at once; none: all of them, and caches grow with the chat.
        cache_length: how many tokens a chat can hold.

    Raises:
        ValueError: the run has no chat template, or its model is an encoder-decoder.
    """
    check_run(run)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".steps-") as steps:
        model = Path(steps, path.with_suffix(".tflite").name)
        tflite.build(run.model, model, quantize=quantize, prefill_lengths=prefill_lengths, cache_length=cache_length)
        print(f"{path.name}: bundling", flush=True)
        bundle(run, model, path, cache_length=cache_length)


def check_run(run: Run) -> None:
    """Refuses what a .litertlm file has no place for.

    Raises:
        ValueError: the run has no chat template, or its model is an encoder-decoder.
    """
    check_config(run.config, None)
    if run.template is None:
        raise ValueError(
            f"A .litertlm file holds a chat template. Received: {run.path} without one. Finetune it on dialogues, or export it "
            "as tflite."
        )


def bundle(run: Run, model: Path, path: Path, *, cache_length: int) -> None:
    """Writes a .litertlm file around a .tflite file.

    Args:
        run: the run that the .tflite file was made from.
        model: the .tflite file.
        path: the file to write.
        cache_length: slots of its caches.
    """
    from litert_lm_builder import litertlm_builder as library

    is_json = isinstance(run.tokenizer, JsonTokenizer)
    parts = {
        "llm.pb": _llm_metadata(run, cache_length).SerializeToString(),
        "executor.pb": _executor_metadata(run.config.num_layers, cache_length).SerializeToString(),
        "tokenizer.json" if is_json else "tokenizer.model": private_tokenizer(run.tokenizer),
    }
    builder = library.LitertLmFileBuilder()
    author = library.Metadata(key="Authors", value="smolite", dtype=library.DType.STRING)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".parts-") as folder, contextlib.redirect_stdout(io.StringIO()):
        places = [str(Path(folder, name)) for name in parts]
        for place, content in zip(places, parts.values(), strict=True):
            Path(place).write_bytes(content)
        builder.add_system_metadata(author)
        builder.add_llm_metadata(places[0])
        builder.add_executor_metadata(places[1])
        (builder.add_hf_tokenizer if is_json else builder.add_sentencepiece_tokenizer)(places[2])
        builder.add_tflite_model(str(model), library.TfLiteModelType.PREFILL_DECODE)
        with open(path, "wb") as file:
            builder.build(file)


def _llm_metadata(run: Run, cache_length: int) -> Any:
    """Stop token, template and sampler. No start token: the template has it."""
    from litert_lm_builder.runtime.proto import llm_metadata_pb2, sampler_params_pb2

    assert run.template is not None
    metadata = llm_metadata_pb2.LlmMetadata()
    metadata.stop_tokens.add().token_ids.ids.append(run.tokenizer.markers[run.template.stop])
    with contextlib.suppress(ValueError):  # a tokenizer.json may have none
        metadata.pad_token.token_ids.ids.append(run.tokenizer.pad_id)
    metadata.max_num_tokens = cache_length
    metadata.llm_model_type.generic_model.SetInParent()
    metadata.jinja_prompt_template = PrivateTemplate(run.template, run.tokenizer).jinja()
    metadata.supports_thinking = metadata.supports_function_calling = False
    sampler = metadata.sampler_params
    sampler.type = sampler_params_pb2.SamplerParameters.TOP_P
    sampler.temperature, sampler.p, sampler.k = TEMPERATURE, TOP_P, TOP_K
    return metadata


def _executor_metadata(num_layers: int, cache_length: int) -> Any:
    """Every cache by name, with the axis of its slots."""
    from litert_lm_builder.runtime.proto import executor_metadata_pb2 as protos

    metadata = protos.ExecutorMetadata()
    kinds = {"k": protos.StateBuffer.TYPE_GLOBAL_KEY_CACHE, "v": protos.StateBuffer.TYPE_GLOBAL_VALUE_CACHE}
    for layer in range(num_layers):
        for kind, cache_type in kinds.items():
            name = cache_name(kind, layer)
            metadata.llm_executor_metadata.state_buffers.add(
                prefill_input_name=name,
                prefill_output_name=name,
                decode_input_name=name,
                decode_output_name=name,
                type=cache_type,
                sequence_axis=_AXIS[kind],
                maximum_sequence_length=cache_length,
            )
    return metadata
