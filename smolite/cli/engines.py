"""What `--engine` calls the files in a run's export folder that can be talked with."""

from smolite import serving
from smolite.checkpoint import Run
from smolite.exporters import TARGETS
from smolite.generation import Engine


def _name_engines() -> dict[str, str]:
    """Name → file. A name is the way to quantize, or of a float32 file the format; both where an earlier file has the name."""
    names: dict[str, str] = {}
    for format in ("tflite", "saved_model", "gguf"):
        for way, file in TARGETS[format].file_names.items():
            names[f"{format}_{way}" if way in names else way or format] = file
    return names


ENGINE_FILES = _name_engines()


def open_engine(run: Run, name: str) -> Engine:
    """The engine called `name`: `keras`, or one of `ENGINE_FILES`."""
    return serving.open_engine(run, ENGINE_FILES.get(name, name))
