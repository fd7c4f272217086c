"""Where the parameters of a model are: a table by block."""

from collections.abc import Sequence
from dataclasses import dataclass

from smolite.models.config import ModelConfig


@dataclass(frozen=True)
class ParameterRow:
    """The parameters of one kind of layer.

    Args:
        name: what they do.
        formula: of one layer, in the letters of `layers.py`.
        each: parameters of one layer.
        times: layers of the kind.
    """

    name: str
    formula: str
    each: int
    times: int = 1

    @property
    def total(self) -> int:
        """Parameters of all layers of the kind."""
        return self.each * self.times


def parameter_table(config: ModelConfig) -> list[ParameterRow]:
    """The parameters of a Llama by kind of layer; in all V·D + num_layers · (2·D + 2·D·(Q + K)·H + 3·D·F) + D.

    Example: `smollm2-135m` has 49,152 · 576 = 28,311,552 in its table, 30 blocks of 3,540,096, and 576 in the final norm:
    134,515,008.

    Args:
        config: the shape.

    Raises:
        ValueError: the model is not a Llama.
    """
    if not config.is_llama:
        raise ValueError(
            f"The table is for Llama-shaped models. Received: the form {config.form!r}, positions {config.positions!r}. Use "
            "`num_parameters` of the config for the number in all."
        )
    width, inside, head = config.hidden_dim, config.intermediate_dim, config.head_dim
    queries, keys, blocks = config.num_query_heads * head, config.num_key_value_heads * head, config.num_layers
    return [
        ParameterRow("token embedding and output", "V·D", config.vocab_size * width),
        ParameterRow("attention norm", "D", width, blocks),
        ParameterRow("query", "D·Q·H", width * queries, blocks),
        ParameterRow("key", "D·K·H", width * keys, blocks),
        ParameterRow("value", "D·K·H", width * keys, blocks),
        ParameterRow("attention output", "Q·H·D", queries * width, blocks),
        ParameterRow("feed-forward norm", "D", width, blocks),
        ParameterRow("gate", "D·F", width * inside, blocks),
        ParameterRow("up", "D·F", width * inside, blocks),
        ParameterRow("down", "F·D", inside * width, blocks),
        ParameterRow("final norm", "D", width),
    ]


def show_parameters(config: ModelConfig) -> str:
    """The table as Markdown, with its sum and shares."""
    rows = parameter_table(config)
    total = sum(row.total for row in rows)
    lines = [
        [row.name, row.formula, f"{row.each:,}", f"{row.times}", f"{row.total:,}", f"{row.total / total:.1%}"] for row in rows
    ]
    block = sum(row.each for row in rows[1:-1])
    ends = [
        ["a block", "2·D + 2·D·(Q + K)·H + 3·D·F", f"{block:,}", f"{config.num_layers}", f"{block * config.num_layers:,}", ""],
        ["in all", "", "", "", f"{total:,}", "100.0%"],
    ]
    shape = {
        "V": config.vocab_size,
        "D": config.hidden_dim,
        "Q": config.num_query_heads,
        "K": config.num_key_value_heads,
        "H": config.head_dim,
        "F": config.intermediate_dim,
    }
    letters = ", ".join(f"{letter} {size:,}" for letter, size in shape.items())
    return f"{letters}\n\n{_markdown(['part', 'formula', 'each', 'times', 'parameters', 'share'], [*lines, *ends])}"


def _markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    body = [heads, ["---", "---", *["---:"] * (len(heads) - 2)], *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in body)
