"""Proof of what only a .tflite file has: its structure."""

from smolite.exporters.delivery.report import Row
from smolite.exporters.litert.flatbuffer import structure_problems
from smolite.exporters.verification.proof import FileCheck


def prove(file: FileCheck) -> list[Row]:
    """Whether signatures and operators are those that a runtime expects, with each weight once."""
    file.row.problems += structure_problems(file.path, file.run.config)
    return []
