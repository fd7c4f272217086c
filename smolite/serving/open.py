"""What can run a run: its Keras model, or one of the exported files, which needs neither Keras nor a backend."""

from smolite import generation
from smolite.checkpoint import Run
from smolite.exporters import TARGETS, Target, stale_artifacts
from smolite.generation import Engine

KERAS = "keras"


def engine_names(run: Run) -> list[str]:
    """What can run a run: `keras`, and the names of the files in its export folder."""
    return [KERAS, *(name for name in _targets() if (run.exports / name).exists())]


def open_engine(run: Run, name: str) -> Engine:
    """Opens the engine called `name`.

    Args:
        run: the run.
        name: one of `engine_names(run)`.

    Raises:
        FileNotFoundError: the exported file is not there.
        ValueError: no file that `export` makes has such a name, or the file is broken, or the run has changed since.
        ImportError: the package that runs it is missing.
    """
    if name == KERAS:
        return generation.engine_for_model(run.model, run.tokenizer)
    if name not in _targets():
        offered = ", ".join(engine_names(run))
        raise ValueError(f"The engine must be one of {offered}. Received: {name}. Choose one, or export the file first.")
    path, target = run.exports / name, _targets()[name]
    if not path.exists():
        raise FileNotFoundError(f"An exported file was expected. Received: {path}. Make it with `smolite export`.")
    if changed := stale_artifacts(path.parent, run.path, [name]):
        raise ValueError(
            f"A file of the run as it is now was expected. Received: {path}, made before {', '.join(changed[name])} changed. "
            "Make it again with `smolite export --overwrite`."
        )
    try:
        return target.open(path, run)
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} runs on {target.runtime}. {target.advice}") from error


def _targets() -> dict[str, Target]:
    talking = (target for target in TARGETS.values() if target.gives_logits)
    return {name: target for target in talking for name in target.file_names.values()}
