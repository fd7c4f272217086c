"""The process that converts: `python -m smolite.exporters JOB`, which `smolite.export` starts on TensorFlow."""

import importlib
import json
import sys
from pathlib import Path


def main(job: dict) -> None:
    """Loads a run and builds a target from it.

    Args:
        job: `module` of the target and whether it is `complete`, `run`, `path` to write, and the keyword arguments of the
            target's `build`.
    """
    from smolite import checkpoint

    run, path, module = job.pop("run"), Path(job.pop("path")), job.pop("module")
    print(f"{path.name}: loading {run}", flush=True)
    load = checkpoint.load if job.pop("complete") else checkpoint.load_model
    importlib.import_module(module).build(load(run, dtype="float32"), path, **job)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
