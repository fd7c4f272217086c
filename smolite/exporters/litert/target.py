"""The row of .tflite files."""

from smolite.exporters.litert.ways import LIMITS, WAYS
from smolite.exporters.target import Target

TARGET = Target(
    name="tflite",
    runtime="LiteRT",
    library="ai_edge_litert.compiled_model",
    file_names={None: "model.tflite", **{way: f"model_{way}.tflite" for way in WAYS}},
    packages={"tensorflow": "tensorflow", "ai_edge_litert": "ai-edge-litert", "ai_edge_quantizer": "ai-edge-quantizer"},
    builder="smolite.exporters.litert.build:write",
    engine="smolite.exporters.litert.engine:TFLiteEngine",
    pair_engine="smolite.exporters.litert.pair_engine:TFLitePairEngine",
    limits=LIMITS,
    takes_windows=True,
    config_check="smolite.exporters.litert.ways:check_config",
    proof="smolite.exporters.litert.proof:prove",
    estimate="smolite.exporters.litert.sizes:estimate",
)
