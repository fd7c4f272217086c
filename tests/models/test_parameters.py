"""Referee: the variables of the Keras model, counted."""

import dataclasses

import pytest
from reference import AWKWARD_CONFIGS

from smolite.models.causal_lm import CausalLM
from smolite.models.config import PRESETS
from smolite.models.parameters import parameter_table, show_parameters


@pytest.mark.parametrize("config", AWKWARD_CONFIGS.values(), ids=AWKWARD_CONFIGS)
def test_each_row_is_what_the_model_has(config):
    model, rows = CausalLM(config), parameter_table(config)
    block = model.blocks[0]
    attention, mlp = block.attention, block.mlp
    layers = [model.token_embedding, block.attention_norm, attention.query, attention.key, attention.value]
    layers += [attention.output_projection, block.mlp_norm, mlp.gate, mlp.up, mlp.down, model.final_norm]
    assert [row.each for row in rows] == [layer.count_params() for layer in layers]
    assert sum(row.total for row in rows) == model.count_params() == config.num_parameters


def test_smollm2_has_as_many_parameters_as_its_authors_say():
    rows = {row.name: row for row in parameter_table(PRESETS["smollm2-135m"])}
    assert sum(row.total for row in rows.values()) == 134_515_008
    assert rows["token embedding and output"].total == 28_311_552 and rows["final norm"].total == 576
    blocks = [row for row in rows.values() if row.times == 30]
    assert sum(row.each for row in blocks) == 3_540_096 and len(blocks) == 9


def test_the_table_can_be_read():
    text = show_parameters(PRESETS["smollm2-135m"])
    assert text.startswith("V 49,152, D 576, Q 9, K 3, H 64, F 1,536\n\n| part | formula | each |")
    assert "| key | D·K·H | 110,592 | 30 | 3,317,760 | 2.5% |" in text
    assert "| a block | 2·D + 2·D·(Q + K)·H + 3·D·F | 3,540,096 | 30 | 106,202,880 |  |" in text
    assert text.endswith("| in all |  |  |  | 134,515,008 | 100.0% |")


def test_other_forms_are_refused():
    config = dataclasses.replace(PRESETS["smolite-small"], positions="learned")
    with pytest.raises(ValueError, match="for Llama-shaped models. Received: the form 'llama', positions 'learned'. Use"):
        parameter_table(config)
