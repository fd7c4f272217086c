"""The row of .gguf files."""

from smolite.exporters.target import Limits, Target

TARGET = Target(
    name="gguf",
    runtime="llama.cpp",
    library="cyllama.llama.llama_cpp",
    file_names={None: "model.gguf", "f16": "model_f16.gguf", "q8_0": "model_q8_0.gguf", "q4_0": "model_q4_0.gguf"},
    packages={"gguf": "gguf", "cyllama": "cyllama"},
    builder="smolite.exporters.gguf.build:write",
    engine="smolite.exporters.gguf.engine:LlamaCppEngine",
    limits={"q4_0": Limits(most_bits=0.15, least_agreement=0.5)},
    extra="gguf",
    on_tensorflow=False,
    takes_lengths=False,
    holds_tokenizer=True,
    config_check="smolite.exporters.gguf.form:check_config",
    proof="smolite.exporters.gguf.proof:prove",
    estimate="smolite.exporters.gguf.form:estimate",
)
