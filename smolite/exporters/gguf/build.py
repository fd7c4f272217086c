"""The GGUF target: a run as one file for llama.cpp, tokenizer and chat template included.

Source: the GGUF specification (github.com/ggml-org/ggml/blob/master/docs/gguf.md) and the names of its architecture `llama`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from keras.ops import convert_to_numpy

from smolite import checkpoint
from smolite.checkpoint import model_weights
from smolite.exporters.request import ExportRequest
from smolite.models import CausalLM, ModelConfig
from smolite.text import JsonTokenizer, Tokenizer

ARCHITECTURE = "llama"
_WAYS: Mapping[str | None, str] = {None: "F32", "f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
_BLOCK = 32  # values that share a scale in Q8_0 and Q4_0
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write(run: checkpoint.Run, request: ExportRequest) -> None:
    """Writes the .gguf file of a request, see `build`."""
    build(run, request.path, quantize=request.quantize)


def build(run: checkpoint.Run, path: Path, *, quantize: str | None) -> None:
    """Writes a .gguf file.

    Args:
        run: the run; its model in float32.
        path: the file to write.
        quantize: `None` for float32, `"f16"`, `"q8_0"` or `"q4_0"`. Norms stay float32, and so do matrices whose rows are no
            multiple of 32.

    Raises:
        ValueError: the model is no Llama, or llama.cpp has no name for how the tokenizer splits words.
    """
    import gguf

    run.model.config.check_llama("llama.cpp")
    kind = gguf.GGMLQuantizationType[_WAYS[quantize]]
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    _describe_model(writer, run.model.config, file_type=gguf.LlamaFileType[_file_type(quantize)])
    if isinstance(run.tokenizer, JsonTokenizer):
        _describe_byte_level(writer, run.tokenizer)
    else:
        _describe_sentencepiece(writer, run.tokenizer)
    # The template writes `<start>` itself; llama.cpp would put a second one before it.
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    if run.template is not None:
        writer.add_chat_template(run.template.jinja())
    print(f"{path.name}: writing {_WAYS[quantize]}", flush=True)
    for name, tensor in tensors_of(run.model):
        # Q8_0 and Q4_0 have a scale for 32 neighbours, and no shorter last block.
        matrix = tensor.ndim > 1 and tensor.shape[-1] % _BLOCK == 0
        stored = kind if matrix else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(tensor, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors_of(model: CausalLM) -> Iterator[tuple[str, np.ndarray]]:
    """The weights in float32 under GGUF's names. The output projection is left out: llama.cpp takes the embedding then.

    Scaled positions are a tensor there: how many times as slowly each pair of features turns.
    """
    config = model.config
    if config.rope_scaling:
        # llama.cpp divides by it, hence the inverse of the share that is kept.
        yield "rope_freqs.weight", (1 / convert_to_numpy(model.rotary.stretch())).astype("float32")
    heads = {"self_attn.q_proj": config.num_query_heads, "self_attn.k_proj": config.num_key_value_heads}
    for name, tensor in model_weights(model).items():
        tensor = tensor.astype("float32")
        if name == "model.embed_tokens.weight":
            yield "token_embd.weight", tensor
        elif name == "model.norm.weight":
            yield "output_norm.weight", tensor
        else:
            number, layer = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
            # Reordering queries and keys alike leaves every product of the two as it was.
            turned = interleave(tensor, heads[layer]) if layer in heads else tensor
            yield f"blk.{number}.{_NAMES[layer]}.weight", turned


def interleave(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorders the rows of a query or key projection from half-split to interleaved RoPE, which `llama` turns.

    In each head the rows (0, …, H/2 - 1, H/2, …, H - 1) become (0, H/2, 1, H/2 + 1, …): of one head with four rows
    `[0, 1, 2, 3]` → `[0, 2, 1, 3]`.

    Args:
        weight: (heads · H, D).
        num_heads: heads.
    """
    halves = weight.reshape(num_heads, 2, -1, weight.shape[-1])
    # By views alone, and a copy at the end: the two halves of a head become pairs.
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _file_type(quantize: str | None) -> str:
    return "ALL_F32" if quantize is None else f"MOSTLY_{_WAYS[quantize]}"


def _describe_model(writer: Any, config: ModelConfig, *, file_type: int) -> None:
    writer.add_type("model")
    writer.add_file_type(file_type)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden_dim)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_dim)
    writer.add_head_count(config.num_query_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)


def _describe_byte_level(writer: Any, tokenizer: JsonTokenizer) -> None:
    """The tokens and merges of a `tokenizer.json`; ids that have none are unused ones."""
    from gguf import TokenType

    content = json.loads(tokenizer.model_proto)
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    special = set(tokenizer.markers.values())
    kinds = [
        TokenType.CONTROL if i in special else TokenType.NORMAL if piece else TokenType.UNUSED for i, piece in enumerate(pieces)
    ]
    merges = content["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    # llama.cpp knows the rules of words by name alone: one that it has no name for cannot be put into the file.
    writer.add_tokenizer_pre(_word_rule(content["pre_tokenizer"]))
    writer.add_token_list([(piece or f"[PAD{i}]").encode() for i, piece in enumerate(pieces)])
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    places = {"start": writer.add_bos_token_id, "end": writer.add_eos_token_id, "pad": writer.add_pad_token_id}
    for role, token in tokenizer.roles.items():
        places[role](tokenizer.markers[token])


def _word_rule(pre_tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a text is cut into words before its bytes are merged."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    names = [step["type"] for step in steps]
    plain = steps[-1].get("use_regex", True) and not steps[-1].get("add_prefix_space", False)
    if names == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and plain:
        return "smollm"
    if names == ["ByteLevel"] and plain:
        return "gpt-2"
    raise ValueError(
        "The words of the tokenizer must be cut by ByteLevel, or by Digits and ByteLevel, as llama.cpp knows them. "
        f"Received: {json.dumps(pre_tokenizer)}. Export to another format."
    )


def _describe_sentencepiece(writer: Any, tokenizer: Tokenizer) -> None:
    """SentencePiece's pieces, scores and types.

    A user-defined piece, such as the newline, is written as a normal one: llama.cpp would put a space after it.
    """
    import sentencepiece
    from gguf import TokenType

    # The guarded form, in which markers are control symbols: a typed `<end>` stays text in llama.cpp, too.
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.guarded_proto)
    ids = range(tokenizer.vocab_size)
    kinds = ((pieces.is_control, TokenType.CONTROL), (pieces.is_byte, TokenType.BYTE), (pieces.is_unknown, TokenType.UNKNOWN))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([pieces.id_to_piece(index).encode() for index in ids])
    writer.add_token_scores([pieces.get_score(index) for index in ids])
    writer.add_token_types([next((kind for holds, kind in kinds if holds(index)), TokenType.NORMAL) for index in ids])
    writer.add_unk_token_id(tokenizer.unk_id)
    places = {"<start>": writer.add_bos_token_id, "<end>": writer.add_eos_token_id, "<pad>": writer.add_pad_token_id}
    for marker, add in places.items():
        if marker in tokenizer.markers:
            add(tokenizer.markers[marker])
    # Our SentencePiece models begin every text with a space; llama.cpp does so only where it is told.
    writer.add_add_space_prefix(True)
