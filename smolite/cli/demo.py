"""The demo: the whole way from the bundled dialogues to a phone file, in a few minutes."""

import shutil
from pathlib import Path

from smolite.data import ChatTemplate, Message
from smolite.exporters import TARGETS, TFLiteEngine, check_packages, export, verify
from smolite.generation import reply
from smolite.text import Tokenizer
from smolite.training import TrainingOptions, finetune

FORMATS = ("saved_model", "tflite")  # what the extra `export` brings
FILES = (("saved_model", None), ("tflite", None), ("tflite", "int8"))
QUESTIONS = ("안녕하세요!", "오늘 너무 피곤해요.", "저녁으로 뭐 먹을까?")


def run_demo(out: str | Path, *, epochs: int = 12) -> Path:
    """Trains on the bundled dialogues, exports, verifies, and answers three questions from the int8 TFLite file alone.

    Args:
        out: the run directory to make; an older one of the same name is replaced.
        epochs: passes over the dialogues.

    Returns:
        The run directory.

    Raises:
        ImportError: a package is missing.
        RuntimeError: a file does not say what the model says.
    """
    for format in FORMATS:
        check_packages(format)
    out = Path(out)
    shutil.rmtree(out.with_name(f"{out.name}.training"), ignore_errors=True)
    print("1. Train a model on the bundled dialogues", flush=True)
    options = TrainingOptions(epochs=epochs, batch_size=4, learning_rate=2e-3, restore_best_weights=False)
    finetune("sample", out, validation="sample-heldout", options=options, overwrite=True)

    print("\n2. Export it: SavedModel, TFLite float32, TFLite int8", flush=True)
    # Of an older run; what is not made again would be found stale.
    shutil.rmtree(out / "export", ignore_errors=True)
    for format, quantize in FILES:
        print(export(out, format=format, quantize=quantize, overwrite=True), flush=True)

    print("\n3. Verify every file in its own runtime", flush=True)
    report = verify(out)
    print(report.table(), flush=True)
    if not report.passed:
        raise RuntimeError("A file does not say what the model says; see the table above.")

    print("\n4. Chat from the int8 TFLite file alone", flush=True)
    chat_from_files(out / "export")
    print(f"\nThe run is in {out}, the files for devices in {out / 'export'}. Talk with it: smolite chat {out}")
    return out


def chat_from_files(folder: Path) -> None:
    """Answers `QUESTIONS` with nothing but the exported model and tokenizer."""
    engine = TFLiteEngine(folder / str(TARGETS["tflite"].file_names["int8"]))
    tokenizer = Tokenizer(folder / "tokenizer.model")
    for question in QUESTIONS:
        answer = reply(engine, [Message("user", question)], tokenizer=tokenizer, template=ChatTemplate())
        print(f"  {question} → {answer}")
