"""The Hugging Face form of a config: LlamaConfig's keys, as dictionaries."""

from typing import Any

# Hugging Face keys that say nothing about the arithmetic of a forward pass.
_INERT_HF_KEYS = frozenset(
    "_attn_implementation_autoset _name_or_path architectures attn_implementation bos_token_id "
    "chunk_size_feed_forward dtype eos_token_id id2label initializer_range is_encoder_decoder is_llama_config "
    "label2id output_attentions output_hidden_states pad_token_id problem_type return_dict torch_dtype "
    "transformers.js_config transformers_version use_cache".split()
)
# Keys whose only implemented value is the one given here.
_FIXED_HF_VALUES: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "mlp_bias": False,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rope_interleaved": False,
    "tie_word_embeddings": True,
}
# What only smolite knows: of a Llama, and of a model in another form.
LLAMA_EXTRAS = ("dropout",)
OWN_FIELDS = (*LLAMA_EXTRAS, "form", "positions", "embedding_norm", "num_encoder_layers")
OWN_TYPE, OWN_ARCHITECTURE = "smolite", "SmoliteModel"
# What LlamaConfig takes where a `config.json` leaves a key out.
_HF_DEFAULTS = {"norm_epsilon": 1e-6, "context_length": 2048, "rope_theta": 10_000.0}
_HF_NAMES = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_query_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "head_dim": "head_dim",
    "context_length": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "norm_epsilon": "rms_norm_eps",
}
_HF_SCALING_NAMES = {
    "factor": "factor",
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "original_context_length": "original_max_position_embeddings",
}


def to_hf(fields: dict[str, Any], *, llama: bool) -> dict[str, Any]:
    """Writes the fields of a `ModelConfig` as `transformers` writes a LlamaConfig.

    Args:
        fields: all of them.
        llama: whether the model is a Llama. One that is not gets a `model_type` of its own, which `transformers` refuses.
    """
    scaling = fields["rope_scaling"]
    stretched = {hf: scaling[ours] for ours, hf in _HF_SCALING_NAMES.items()} if scaling else {}
    named = {hf: fields[ours] for ours, hf in _HF_NAMES.items()}
    fixed = {key: value for key, value in _FIXED_HF_VALUES.items() if key != "rope_interleaved"}
    return {
        "architectures": ["LlamaForCausalLM" if llama else OWN_ARCHITECTURE],
        **named,
        **fixed,
        "model_type": "llama" if llama else OWN_TYPE,
        **({"rope_scaling": {"rope_type": "llama3", **stretched}} if stretched else {}),
        "dtype": "float32",
        "smolite": {name: fields[name] for name in (LLAMA_EXTRAS if llama else OWN_FIELDS)},
    }


def from_hf(hf: dict[str, Any]) -> dict[str, Any]:
    """Reads the contents of a `config.json` as the fields of a `ModelConfig`.

    Raises:
        ValueError: an attribute has a value that is not implemented, or is not known; each is named.
    """
    hf = _flatten_rope_parameters(hf)
    own = hf.get("model_type") == OWN_TYPE
    fixed = {**_FIXED_HF_VALUES, "model_type": OWN_TYPE if own else "llama"}
    refused = [
        f"{key}={hf[key]!r} (only {value!r} is implemented)" for key, value in fixed.items() if hf.get(key, value) != value
    ]
    scaling = _read_scaling(hf.pop("rope_scaling", None), refused=refused)
    known = {"smolite", *_HF_NAMES.values(), *_FIXED_HF_VALUES, *_INERT_HF_KEYS}
    refused += [f"{key}={hf[key]!r} (not known)" for key in sorted(set(hf) - known)]
    if refused:
        raise ValueError(f"This model needs what smolite does not implement: {'; '.join(refused)}.")
    fields = {ours: hf[key] for ours, key in _HF_NAMES.items() if hf.get(key) is not None}
    fields.setdefault("num_key_value_heads", fields.get("num_query_heads"))
    return {**_HF_DEFAULTS, **fields, "rope_scaling": scaling, **hf.get("smolite", {})}


def _flatten_rope_parameters(hf: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` of transformers 5 as the two keys of transformers 4."""
    hf = dict(hf)
    rope = dict(hf.pop("rope_parameters", None) or {})
    if "rope_theta" in rope:
        hf["rope_theta"] = rope.pop("rope_theta")
    if rope not in ({}, {"rope_type": "default"}):
        hf["rope_scaling"] = rope
    return hf


def _read_scaling(hf: Any, *, refused: list[str]) -> dict[str, Any] | None:
    """Our fields of a `rope_scaling`; what is not implemented is added to `refused`."""
    if hf in (None, {"rope_type": "default"}, {"type": "default"}):
        return None
    names = {"rope_type", *_HF_SCALING_NAMES.values()}
    if not isinstance(hf, dict) or set(hf) != names or hf["rope_type"] != "llama3":
        refused.append(f"rope_scaling={hf!r} (only None and 'llama3' with its four numbers are implemented)")
        return None
    return {ours: hf[theirs] for ours, theirs in _HF_SCALING_NAMES.items()}
