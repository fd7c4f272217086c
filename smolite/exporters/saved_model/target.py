"""The row of SavedModels."""

from smolite.exporters.target import Target

TARGET = Target(
    name="saved_model",
    runtime="TensorFlow",
    library="tensorflow",
    file_names={None: "saved_model"},
    packages={"tensorflow": "tensorflow"},
    builder="smolite.exporters.saved_model.build:write",
    engine="smolite.exporters.saved_model.engine:SavedModelEngine",
    pair_engine="smolite.exporters.saved_model.pair_engine:SavedModelPairEngine",
)
