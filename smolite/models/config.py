"""The shape of a model: one frozen dataclass, its presets, and its Hugging Face form."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from smolite.models.hf_config import LLAMA_EXTRAS, OWN_FIELDS, from_hf, to_hf

# The kinds of block (`form`) and of position (`positions`).
FORMS = ("llama", "smolite-1")
POSITIONS = ("rotary", "learned")
# Added to the score of a position that must not be seen. Large, and in float16 not yet infinite, where a row that sees nothing,
# as padding may, would be no number.
MASKED_SCORE = -3e4


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
        form: `"llama"` (`DecoderBlock`), or `"smolite-1"` for the blocks of the first Smolite (`Smolite1Block`), which have
            biases and LayerNorm, and no norm after the last block.
        positions: `"rotary"`, or `"learned"` for a table of `context_length` position embeddings.
        embedding_norm: whether a LayerNorm follows the embedding.
        num_encoder_layers: blocks of the encoder; 0 for a decoder alone (`CausalLM`), more for a `Seq2SeqLM`.

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
    form: str = "llama"
    positions: str = "rotary"
    embedding_norm: bool = False
    num_encoder_layers: int = 0

    def __post_init__(self) -> None:
        if not self.head_dim:
            # Past the frozen dataclass: a default that follows from other fields.
            object.__setattr__(self, "head_dim", self._default_head_dim())
        if isinstance(self.rope_scaling, dict):
            object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
        for name in (field.name for field in dataclasses.fields(self) if field.name != "rope_scaling"):
            _check_field(name, getattr(self, name))
        if self.rope_scaling and self.positions == "learned":
            raise ValueError("`rope_scaling` needs rotary positions. Received: learned ones. Leave one of the two out.")
        if self.has_encoder and self.form != "llama":
            raise ValueError(f'An encoder needs `form` "llama". Received: {self.form!r}. Leave out one of the two.')
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
    def has_encoder(self) -> bool:
        """Whether an encoder reads a source, beside which the decoder writes; then the model is a `Seq2SeqLM`."""
        return self.num_encoder_layers > 0

    @property
    def is_llama(self) -> bool:
        """Whether the model is a Llama, as transformers, keras-hub and llama.cpp know it."""
        return not self._unlike_llama()

    def _unlike_llama(self) -> list[str]:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        names = [name for name in OWN_FIELDS if name not in LLAMA_EXTRAS]
        return [f"{name}={getattr(self, name)!r}" for name in names if getattr(self, name) != defaults[name]]

    def check_llama(self, runtime: str) -> None:
        """Refuses a model that is no Llama, for a runtime that knows no other.

        Raises:
            ValueError: `is_llama` is false; the field that differs is named.
        """
        if other := self._unlike_llama():
            raise ValueError(
                f"{runtime} runs Llamas only. Received: a model with {', '.join(other)}. Export it as tflite or saved_model, "
                "which take every form."
            )

    @property
    def num_parameters(self) -> int:
        """Trainable parameters in all; of a Llama V·D + num_layers · (2·D + 2·D·(Q + K)·H + 3·D·F) + D."""
        width, inside = self.hidden_dim, self.intermediate_dim
        attention = 2 * width * (self.num_query_heads + self.num_key_value_heads) * self.head_dim
        if self.form == "llama":
            block, final_norm = 2 * width + attention + 3 * width * inside, width
        else:
            biases = (self.num_query_heads + 2 * self.num_key_value_heads) * self.head_dim + width
            adapter = (width + 1) * (width // 2)
            mlp = 2 * (width // 2 + 1) * inside + (inside + 1) * width
            block, final_norm = 8 * width + attention + biases + adapter + mlp, 0
        first = self.vocab_size * width + (self.positions == "learned") * self.context_length * width
        encoder = self.num_encoder_layers * block + self.num_layers * (width + attention) + width
        rest = self.num_layers * block + final_norm + self.has_encoder * encoder
        return first + self.embedding_norm * 2 * width + rest

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
        return to_hf(self.to_dict(), llama=self.is_llama)

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> "ModelConfig":
        """The config of a Llama-shaped Hugging Face model (LlamaConfig, SmolLM2), or of one that smolite wrote.

        Args:
            hf: contents of its `config.json`.

        Raises:
            ValueError: an attribute has a value that is not implemented, or is not known; each is named.
        """
        return cls.from_dict(from_hf(hf))


_CHOICES: dict[str, tuple[Any, ...]] = {"form": FORMS, "positions": POSITIONS, "embedding_norm": (False, True)}


def _listed(choices: tuple[Any, ...]) -> str:
    return " or ".join(map(repr, choices))


def _check_field(name: str, value: Any) -> None:
    """Refuses a value out of the field's range."""
    if name == "dropout":
        good, expected = isinstance(value, (int, float)) and 0 <= value < 1, "a number from 0 to below 1"
    elif name in _CHOICES:
        good, expected = value in _CHOICES[name] and type(value) is type(_CHOICES[name][0]), _listed(_CHOICES[name])
    elif name == "num_encoder_layers":
        good, expected = isinstance(value, int) and not isinstance(value, bool) and value >= 0, "a whole number, 0 or above"
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


# Smolite sizes: heads of 64 features and half as many key/value heads or fewer (short caches), every width a multiple
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
    # The first Smolite: `intermediate_dim` is half of its d_ff, whose two halves were gate and value.
    "smolite-1": ModelConfig(
        vocab_size=32_768,
        num_layers=12,
        num_query_heads=8,
        num_key_value_heads=8,
        hidden_dim=256,
        intermediate_dim=512,
        context_length=100,
        dropout=0.1,
        form="smolite-1",
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
