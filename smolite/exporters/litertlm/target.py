"""The row of .litertlm files: a .tflite file with all that LiteRT-LM asks for."""

from smolite.exporters.litert import target as litert
from smolite.exporters.litert.ways import LIMITS, WAYS
from smolite.exporters.target import Target

TARGET = Target(
    name="litertlm",
    runtime="LiteRT-LM",
    library="litert_lm",
    file_names={None: "model.litertlm", **{way: f"model_{way}.litertlm" for way in WAYS}},
    packages={**litert.TARGET.packages, "litert_lm_builder": "litert-lm-builder", "litert_lm": "litert-lm-api"},
    builder="smolite.exporters.litertlm.build:write",
    engine="smolite.exporters.litertlm.engine:LiteRTLMEngine",
    limits=LIMITS,
    extra="litertlm",
    takes_growing_cache=True,
    holds_tokenizer=True,
    gives_logits=False,
    config_check="smolite.exporters.litertlm.form:check_config",
    run_check="smolite.exporters.litertlm.build:check_run",
    proof="smolite.exporters.litertlm.proof:prove",
    estimate="smolite.exporters.litertlm.form:estimate",
    prompt_of="smolite.exporters.litertlm.private_markers:prompt_of",
    slots_of="smolite.exporters.litertlm.engine:count_slots",
    speeds_of="smolite.exporters.litertlm.engine:measure_speeds",
)
