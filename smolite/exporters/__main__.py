"""The process that converts: `python -m smolite.exporters REQUEST`, which `smolite.export` starts on TensorFlow."""

import sys

from smolite import checkpoint
from smolite.exporters.request import ExportRequest


def main(request: ExportRequest) -> None:
    """Opens the run and builds its file."""
    print(f"{request.path.name}: loading {request.run}", flush=True)
    request.target.call("builder", checkpoint.open_run(request.run, dtype="float32"), request)


if __name__ == "__main__":
    main(ExportRequest.from_json(sys.argv[1]))
