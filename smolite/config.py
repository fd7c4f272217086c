"""The shape of a model: one frozen dataclass, its presets, and its Hugging Face form."""

import dataclasses
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How Llama 3.1 stretches the rotary embedding to a longer context (Hugging Face's `rope_type` `"llama3"`).

    Features that turn less than `low_frequency_factor` times within the original context turn `factor` times as slowly, those
    that turn more than `high_frequency_factor` times stay, and in between the one passes into the other.

    Raises:
        ValueError: a number that is not positive, or factors out of order.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context_length: int

    def __post_init__(self) -> None:
        values = dataclasses.asdict(self)
        good = all(isinstance(value, (int, float)) and value > 0 for value in values.values())
        if not good or self.low_frequency_factor >= self.high_frequency_factor:
            raise ValueError(
                "`rope_scaling` must have positive numbers, and a `low_frequency_factor` below the `high_frequency_factor`. "
                f"Received: {values}. Copy them from the model's config.json."
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a causal language model. Immutable; equal configs build equal models.

    Args:
        vocab_size: number of token ids.
        num_layers: number of decoder blocks.
        num_query_heads: attention heads of the queries.
        num_key_value_heads: attention heads of keys and values (grouped-query attention, Ainslie et al. 2023).
            Must divide `num_query_heads`.
        hidden_dim: width of the residual stream.
        intermediate_dim: width inside SwiGLU.
        head_dim: width of one attention head, an even number. Default: `hidden_dim // num_query_heads`.
        context_length: the most tokens the model is trained and served with.
        rope_theta: base of the rotary position embedding (Su et al. 2021).
        norm_epsilon: added to the mean square in RMSNorm (Zhang and Sennrich 2019).
        dropout: share of activations dropped while training, on the embedding and on every residual branch.
        rope_scaling: a `RopeScaling` or its fields as a dictionary, for models of the Llama 3.1 kind. Default: none.

    Raises:
        ValueError: a field has a value that no model can be built from.
    """

    vocab_size: int
    num_layers: int
    num_query_heads: int
    num_key_value_heads: int
    hidden_dim: int
    intermediate_dim: int
    head_dim: int = 0
    context_length: int = 512
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    dropout: float = 0.0
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self._default_head_dim())
        if isinstance(self.rope_scaling, dict):
            object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
        for name in (field.name for field in dataclasses.fields(self) if field.name != "rope_scaling"):
            _check_field(name, getattr(self, name))
        self._check_heads()

    def _default_head_dim(self) -> int:
        _check_field("num_query_heads", self.num_query_heads)
        _check_field("hidden_dim", self.hidden_dim)
        if self.hidden_dim % self.num_query_heads:
            raise ValueError(
                "`hidden_dim` must be a multiple of `num_query_heads` when `head_dim` is not given. "
                f"Received: {self.hidden_dim} and {self.num_query_heads}. Give `head_dim`, or change one of them."
            )
        return self.hidden_dim // self.num_query_heads

    def _check_heads(self) -> None:
        if self.num_query_heads % self.num_key_value_heads:
            divisors = [str(n) for n in range(1, self.num_query_heads + 1) if self.num_query_heads % n == 0]
            choices = ", ".join(divisors[:-1]) + f" or {divisors[-1]}" if len(divisors) > 1 else divisors[0]
            raise ValueError(
                "`num_query_heads` must be a multiple of `num_key_value_heads`. Received: "
                f"{self.num_query_heads} and {self.num_key_value_heads}. Choose {choices} key/value heads."
            )
        if self.head_dim % 2:
            raise ValueError(
                "`head_dim` must be even, because rotary embedding turns pairs of features. "
                f"Received: {self.head_dim}. Choose {self.head_dim + 1}, or other head counts."
            )

    @property
    def num_parameters(self) -> int:
        """Trainable parameters in all: V·D + num_layers · (2·D + 2·D·(Q + K)·H + 3·D·F) + D."""
        attention = 2 * self.hidden_dim * (self.num_query_heads + self.num_key_value_heads) * self.head_dim
        block = 2 * self.hidden_dim + attention + 3 * self.hidden_dim * self.intermediate_dim
        return self.vocab_size * self.hidden_dim + self.num_layers * block + self.hidden_dim

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> "ModelConfig":
        """The preset called `name`, with the fields in `changes` replaced.

        Raises:
            ValueError: there is no such preset, or no such field.
        """
        if name not in PRESETS:
            raise ValueError(f"Unknown preset. Received: {name!r}. Choose one of: {', '.join(PRESETS)}.")
        return cls.from_dict({**PRESETS[name].to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-ready dictionary."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ModelConfig":
        """The config with these fields.

        Raises:
            ValueError: a key is unknown, or a field without a default is missing.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise ValueError(f"Unknown config keys. Received: {', '.join(unknown)}. Known are: {', '.join(known)}.")
        required = [name for name, field in known.items() if field.default is dataclasses.MISSING]
        missing = [name for name in required if name not in fields]
        if missing:
            raise ValueError(f"Config keys are missing: {', '.join(missing)}. Received: {', '.join(fields) or 'none'}.")
        return cls(**fields)

    def to_hf(self) -> dict[str, Any]:
        """The config as `transformers` writes a LlamaConfig; what it has no name for goes under `"smolite"`."""
        fields = self.to_dict()
        named = {hf: fields[ours] for ours, hf in _HF_NAMES.items()}
        fixed = {key: value for key, value in _FIXED_HF_VALUES.items() if key != "rope_interleaved"}
        scaling = {hf: fields["rope_scaling"][ours] for ours, hf in _HF_SCALING_NAMES.items()} if self.rope_scaling else {}
        return {
            "architectures": ["LlamaForCausalLM"],
            **named,
            **fixed,
            **({"rope_scaling": {"rope_type": "llama3", **scaling}} if scaling else {}),
            "dtype": "float32",
            "smolite": {"dropout": self.dropout},
        }

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> "ModelConfig":
        """The config of a Llama-shaped Hugging Face model (LlamaConfig, SmolLM2).

        Args:
            hf: contents of its `config.json`.

        Raises:
            ValueError: an attribute has a value that is not implemented, or is not known; each is named.
        """
        hf = _flatten_rope_parameters(hf)
        refused = [
            f"{key}={hf[key]!r} (only {value!r} is implemented)"
            for key, value in _FIXED_HF_VALUES.items()
            if hf.get(key, value) != value
        ]
        scaling = _read_scaling(hf.pop("rope_scaling", None), refused=refused)
        known = {"smolite", *_HF_NAMES.values(), *_FIXED_HF_VALUES, *_INERT_HF_KEYS}
        refused += [f"{key}={hf[key]!r} (not known)" for key in sorted(set(hf) - known)]
        if refused:
            raise ValueError(f"This model needs what smolite does not implement: {'; '.join(refused)}.")
        fields = {ours: hf[key] for ours, key in _HF_NAMES.items() if hf.get(key) is not None}
        fields.setdefault("num_key_value_heads", fields.get("num_query_heads"))
        return cls.from_dict({**_HF_DEFAULTS, **fields, "rope_scaling": scaling, **hf.get("smolite", {})})


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


def _check_field(name: str, value: Any) -> None:
    """Refuses a value out of the field's range."""
    if name == "dropout":
        good, expected = isinstance(value, (int, float)) and 0 <= value < 1, "a number from 0 to below 1"
    elif name in ("rope_theta", "norm_epsilon"):
        good, expected = isinstance(value, (int, float)) and value > 0, "a positive number"
    else:
        good = isinstance(value, int) and not isinstance(value, bool) and value > 0
        expected = "a positive whole number"
    if not good:
        raise ValueError(f"`{name}` must be {expected}. Received: {value!r}.")


def _smollm2(**shape: Any) -> ModelConfig:
    shared = {"vocab_size": 49_152, "context_length": 8192, "rope_theta": 100_000.0, "norm_epsilon": 1e-5}
    return ModelConfig(**{**shared, **shape})


# Smolite sizes: heads of 64 features and a third as many key/value heads or fewer (short caches), every width a multiple
# of 32 (blockwise int4), and a vocabulary that takes no more than half of the parameters.
PRESETS: dict[str, ModelConfig] = {
    "smolite-small": ModelConfig(
        vocab_size=8192,
        num_layers=4,
        num_query_heads=4,
        num_key_value_heads=2,
        hidden_dim=256,
        intermediate_dim=704,
    ),
    "smolite-medium": ModelConfig(
        vocab_size=16_384,
        num_layers=9,
        num_query_heads=6,
        num_key_value_heads=2,
        hidden_dim=384,
        intermediate_dim=1024,
    ),
    "smolite-xl": ModelConfig(
        vocab_size=32_768,
        num_layers=16,
        num_query_heads=8,
        num_key_value_heads=2,
        hidden_dim=512,
        intermediate_dim=1376,
        context_length=1024,
    ),
    "smollm2-135m": _smollm2(num_layers=30, num_query_heads=9, num_key_value_heads=3, hidden_dim=576, intermediate_dim=1536),
    "smollm2-360m": _smollm2(num_layers=32, num_query_heads=15, num_key_value_heads=5, hidden_dim=960, intermediate_dim=2560),
    "smollm2-1.7b": _smollm2(
        num_layers=24,
        num_query_heads=32,
        num_key_value_heads=32,
        hidden_dim=2048,
        intermediate_dim=8192,
        rope_theta=130_000.0,
    ),
}
