"""The row of a toy format: the weights of a run in a .npz file, run by the numpy reference."""

from smolite.exporters.target import Limits, Target

TARGET = Target(
    name="npz",
    runtime="numpy",
    library="numpy",
    file_names={None: "model.npz", "half": "model_half.npz"},
    packages={"numpy": "numpy"},
    builder="npz_target.npz:write",
    engine="npz_target.npz:NpzEngine",
    limits={"half": Limits(most_bits=0.002, least_agreement=0.9)},
    on_tensorflow=False,
    takes_lengths=False,
    config_check="npz_target.npz:check_config",
    proof="npz_target.npz:prove",
    estimate="npz_target.npz:estimate",
)
