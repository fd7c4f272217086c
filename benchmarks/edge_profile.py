"""The time of each kind of operator in a .tflite file, by LiteRT's own profiler, which only its C interface turns on.

As a worker of edge.py it prints nothing and sends what it found. Every operator is a call of XNNPACK, or one of LiteRT's own
where XNNPACK has none. Caches are bound as input and output, as `TFLiteEngine` does it, and inputs are zeros.
"""

import ctypes
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from table import markdown, number
from turns import Link, Worker

_Handle = ctypes.c_void_p
_OPERATOR, _XNNPACK_OPERATOR, _STEP = 2, 8, 1  # types of events
_CPU, _WRITE = 1, 1
_PRODUCT, _REST = "Fully Connected", "rest, and the profiler"


class Event(ctypes.Structure):
    """LiteRT 2.3's `ProfiledEventData`; times in microseconds."""

    _fields_ = (
        ("tag", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("start", ctypes.c_uint64),
        ("elapsed", ctypes.c_uint64),
        ("memory", ctypes.c_int64 * 6),
        ("metadata", ctypes.c_uint64 * 2),
        ("source", ctypes.c_int),
    )


class ProfiledModel:
    """A .tflite file in LiteRT with its profiler on.

    Args:
        path: the file.
        threads: of the processor.
    """

    def __init__(self, path: str, threads: int):
        import ai_edge_litert

        folder = Path(ai_edge_litert.__file__).parent
        self._library = ctypes.CDLL(str(folder / "libLiteRt.so"))
        self._kept: list[Any] = []  # what LiteRT holds pointers to
        self._environment, self._model, self._compiled, self._profiler = (_Handle() for _ in range(4))
        options = _Handle()
        self._call("CreateEnvironment", 0, None, ctypes.byref(self._environment))
        self._call("CreateModelFromFile", self._environment, ctypes.c_char_p(path.encode()), ctypes.byref(self._model))
        self._call("CreateOptions", ctypes.byref(options))
        self._call("SetOptionsHardwareAccelerators", options, _CPU)
        self._add(options, "runtime_options_string", "enable_profiling = true\n")
        self._add(options, "xnnpack", f"num_threads = {threads}\n")
        self._call("CreateCompiledModel", self._environment, self._model, options, ctypes.byref(self._compiled))
        self._call("CompiledModelGetProfiler", self._compiled, ctypes.byref(self._profiler))
        self._caches: dict[str, Any] = {}

    def signatures(self) -> list[str]:
        """Names, in the order of the file."""
        indices = range(self._size("NumModelSignatures", self._model))
        return [self._name("GetSignatureKey", self._signature(index)) for index in indices]

    def prepare(self, index: int):
        """A function that runs a signature once."""
        arguments = [self._compiled, ctypes.c_size_t(index)]
        for kind in ("Input", "Output"):
            buffers = self._buffers(index, kind)
            arguments += [ctypes.c_size_t(len(buffers)), (_Handle * len(buffers))(*buffers)]
        return lambda: self._call("RunCompiledModel", *arguments)

    def events(self, run) -> list[tuple[str, int, int]]:
        """(name, type, microseconds) of everything that happens in one run, in order."""
        count = ctypes.c_int()
        self._call("StartProfiler", self._profiler)
        run()
        self._call("StopProfiler", self._profiler)
        self._call("GetNumProfilerEvents", self._profiler, ctypes.byref(count))
        found = (Event * count.value)()
        self._call("GetProfilerEvents", self._profiler, count, found)
        events = [(event.tag.decode(), event.type, event.elapsed) for event in sorted(found, key=lambda event: event.start)]
        self._call("ResetProfiler", self._profiler)
        return events

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, f"LiteRt{name}")(*arguments)
        if status:
            raise RuntimeError(f"LiteRT's {name} failed with status {status}.")

    def _add(self, options: _Handle, name: str, text: str) -> None:
        option, content, free = _Handle(), ctypes.create_string_buffer(text.encode()), ctypes.CFUNCTYPE(None, _Handle)(id)
        self._kept += [content, free]
        self._call("CreateOpaqueOptions", ctypes.c_char_p(name.encode()), content, free, ctypes.byref(option))
        self._call("AddOpaqueOptions", options, option)

    def _signature(self, index: int) -> _Handle:
        signature = _Handle()
        self._call("GetModelSignature", self._model, ctypes.c_size_t(index), ctypes.byref(signature))
        return signature

    def _name(self, function: str, *arguments: Any) -> str:
        text = ctypes.c_char_p()
        self._call(function, *arguments, ctypes.byref(text))
        return (text.value or b"").decode()

    def _size(self, what: str, handle: _Handle) -> int:
        size = ctypes.c_size_t()
        self._call(f"Get{what}", handle, ctypes.byref(size))
        return size.value

    def _buffers(self, index: int, kind: str) -> list[int | None]:
        """A buffer of zeros for every input or output; those of the caches are made once for all signatures."""
        signature, buffers = self._signature(index), []
        for place in map(ctypes.c_size_t, range(self._size(f"NumSignature{kind}s", signature))):
            name = self._name(f"GetSignature{kind}Name", signature, place)
            buffer = self._caches.get(name) or self._zeros(index, kind, signature, place)
            if name.startswith("kv_cache"):
                self._caches[name] = buffer
            buffers.append(buffer.value)
            self._kept.append(buffer)
        return buffers

    def _zeros(self, index: int, kind: str, signature: _Handle, place: ctypes.c_size_t) -> _Handle:
        tensor, needs, buffer, address = (_Handle() for _ in range(4))
        shape = ctypes.create_string_buffer(256)  # LiteRT's own structure, handed on as it is
        own = ctypes.c_size_t(index)
        self._call(f"GetSignature{kind}TensorByIndex", signature, place, ctypes.byref(tensor))
        self._call("GetRankedTensorType", tensor, shape)
        self._call(f"GetCompiledModel{kind}BufferRequirements", self._compiled, own, place, ctypes.byref(needs))
        self._call("CreateManagedTensorBufferFromRequirements", self._environment, shape, needs, ctypes.byref(buffer))
        self._call("LockTensorBuffer", buffer, ctypes.byref(address), _WRITE)
        ctypes.memset(address, 0, self._size("TensorBufferPackedSize", buffer))
        self._call("UnlockTensorBuffer", buffer)
        return buffer


def main(job: dict[str, Any], link: Link) -> None:
    """Profiles a file: seconds by operator, how many there are, and of the whole run without the profiler's events."""
    model = ProfiledModel(job["path"], job["threads"])
    found = {}
    for index, name in enumerate(model.signatures()):
        run = model.prepare(index)
        seconds = []
        for _ in range(job["calls"] + 2):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        runs = [model.events(run) for _ in range(job["calls"])]
        found[name] = {"plain": median(seconds[2:]), "operators": operators_of(runs)}
    link.send(signatures=found)


def operators_of(runs: Sequence[Sequence[tuple[str, int, int]]]) -> dict[str, tuple[int, float]]:
    """Name → how often in a run, and the median of its seconds in a run.

    The last product with weights, in `decode` the head, stands by itself. The rest is what a run takes beside its operators,
    with the profiler's own work.
    """
    counts: Counter[str] = Counter()
    seconds: dict[str, list[float]] = defaultdict(list)
    for events in runs:
        operators = [(name, time) for name, kind, time in events if kind in (_OPERATOR, _XNNPACK_OPERATOR)]
        last = max((place for place, (name, _) in enumerate(operators) if name.startswith(_PRODUCT)), default=None)
        if last is not None:
            operators[last] = (f"the last {operators[last][0]}", operators[last][1])
        totals: Counter[str] = Counter()
        counts = Counter(name for name, _ in operators)
        for name, microseconds in operators:
            totals[name] += microseconds
        whole = sum(time for name, kind, time in events if kind == _STEP)
        totals[_REST] = max(whole - totals.total(), 0)
        for name, microseconds in totals.items():
            seconds[name].append(microseconds / 1e6)
    return {name: (counts[name], median(column)) for name, column in seconds.items()}


def profile(files: Mapping[tuple[str, str], Path], *, threads: Sequence[int], calls: int = 20) -> str:
    """Tables of all our .tflite files: a row for each kind of operator that takes a share of a hundredth or more."""
    tables = []
    for (side, way), path in files.items():
        for number_of in threads if side == "smolite .tflite" else ():
            job = {"path": str(path), "threads": number_of, "calls": calls}
            with Worker("edge_profile.py", job, backend="numpy") as worker:
                found = worker.facts["signatures"]
            tables += [f"#### {way}, {name}, {words(number_of)}\n\n{table_of(part)}" for name, part in found.items()]
    return "\n\n".join(tables)


def words(threads: int) -> str:
    """1 → `"1 thread"`, 2 → `"2 threads"`."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


def table_of(part: Mapping[str, Any]) -> str:
    """The operators of a signature, those that take longest first."""
    rows = sorted(part["operators"].items(), key=lambda item: -item[1][1])
    whole = sum(seconds for _, (_, seconds) in rows)
    cells = [[name, str(count or ""), number(seconds * 1e3), f"{seconds / whole:.0%}"] for name, (count, seconds) in rows]
    shown = [row for row, (_, (_, seconds)) in zip(cells, rows, strict=True) if seconds >= whole / 100]
    table = markdown(["operator", "in a run", "ms a run", "share"], shown)
    return f"{number(part['plain'] * 1e3)} ms a run, {number(whole * 1e3)} with the profiler's notes.\n\n{table}"


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Link())
