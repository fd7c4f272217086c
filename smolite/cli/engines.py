"""What `--engine` calls the files in a run's export folder that can be talked with."""

from smolite import serving
from smolite.checkpoint import Run
from smolite.exporters import engine_files
from smolite.generation import Engine


def open_engine(run: Run, name: str) -> Engine:
    """The engine called `name`: `keras`, or one of `engine_files()`."""
    return serving.open_engine(run, engine_files().get(name, name))
