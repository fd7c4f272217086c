"""Writes a .litertlm file of a Hugging Face folder with litert-torch; edge.py runs it with the Python that has it.

    python -m venv litert-torch
    litert-torch/bin/pip install torch==2.13.0        # of the kind without CUDA, where there is a choice
    litert-torch/bin/pip install litert-torch==0.10.0 tensorflow==2.21.0        # which it imports and does not name
    litert-torch/bin/python benchmarks/litert_torch_export.py FOLDER OUT.litertlm dynamic_wi8_afp32 1280 128

It needs nothing of this package. The arguments: folder, file to write, recipe of ai-edge-quantizer (`none` for float32), slots
of the cache, and the prefill lengths. Everything else is as litert-torch does it by default.
"""

import shutil
import sys
import tempfile
from pathlib import Path


def main(source: str, out: str, recipe: str, cache_length: str, *prefill_lengths: str) -> None:
    """Exports the folder and moves the one file that matters to its place."""
    from litert_torch.generative.export_hf import export

    with tempfile.TemporaryDirectory(dir=Path(out).parent) as folder:
        export.export(
            model=source,
            output_dir=folder,
            quantization_recipe=recipe,
            cache_length=int(cache_length),
            prefill_lengths=[int(length) for length in prefill_lengths],
        )
        shutil.move(Path(folder, "model.litertlm"), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
