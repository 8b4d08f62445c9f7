"""The helper process that runs a graph of somebody else's; `io.onnx_process` starts it.

It is a program of its own that imports nothing of ours. Requests come as lines of JSON on stdin, answers go as lines
of JSON to the descriptor that the settings name, arrays through two shared files. It ends with its parent.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import threading
import time
from typing import Any

LONGEST_TEXT = 4000
MOST_PORTS = 200
LONGEST_NAMES = 65_536


def main() -> None:
    settings = json.loads(sys.argv[1])
    threading.Thread(target=_end_with, args=(settings["parent"],), daemon=True).start()
    answers = os.fdopen(settings["answers"], "w")
    worker = WORKERS[settings["engine"]](settings)
    while True:
        try:
            answer = worker.run() if worker.session else worker.open()
        except Exception as error:  # noqa: BLE001 - runtimes have a dozen classes, and the parent wants a sentence
            answer = {"error": f"{' '.join(str(error).split())[:LONGEST_TEXT]}" or type(error).__name__}
        if answer is None:
            return
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if not worker.session:
            return


class Worker:
    """One session of onnxruntime. `open` gives what goes in and comes out, `run` answers the next line of stdin, with
    None at its end."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.session: Any = None
        self.maps: dict[str, mmap.mmap] = {}

    def open(self) -> dict[str, Any]:
        import numpy  # noqa: F401 - what is imported is not counted
        import onnxruntime

        given = self.settings
        if not given["cuda"]:
            _limit_memory(given["memory"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = given["threads"]
        options.log_severity_level = 4
        options.add_session_config_entry("session.load_model_format", "ONNX")
        # Threads that go on spinning after a call would take the cores from the network that reads the people.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        wanted = ["CUDAExecutionProvider"] * given["cuda"] + ["CPUExecutionProvider"]
        providers = [each for each in wanted if each in onnxruntime.get_available_providers()]
        self.session = onnxruntime.InferenceSession(given["path"], options, providers=providers)
        ports = {"inputs": self.session.get_inputs(), "outputs": self.session.get_outputs()}
        if max(map(len, ports.values())) > MOST_PORTS:
            raise ValueError(f"more than {MOST_PORTS} inputs or outputs")
        names = self.session.get_modelmeta().custom_metadata_map.get("names", "")
        listed = {
            kind: [{"name": one.name, "type": one.type, "shape": list(one.shape)} for one in found]
            for kind, found in ports.items()
        }
        about = {"version": onnxruntime.__version__, "providers": self.session.get_providers()}
        return {**listed, "names": names[:LONGEST_NAMES], "about": about}

    def run(self) -> dict[str, Any] | None:
        import numpy as np

        line = sys.stdin.readline()
        if not line:
            return None
        asked = json.loads(line)
        data = self._mapped("given", asked["bytes"])
        given = {
            one["name"]: np.frombuffer(data, one["type"], int(np.prod(one["shape"])), one["at"]).reshape(one["shape"])
            for one in asked["inputs"]
        }
        found = self.infer(given, asked["wanted"])
        for name, array in zip(asked["wanted"], found, strict=True):
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
                raise ValueError(
                    f"its output {name[:60]} is {getattr(array, 'dtype', type(array).__name__)}, no numbers"
                )
        total = sum(array.nbytes for array in found)
        if total > asked["most"]:
            raise ValueError(f"it gave {total / 1e6:.0f} MB of numbers")
        data = self._mapped("found", total, write=True)
        at, arrays = 0, []
        for array in found:
            if array.nbytes:
                np.frombuffer(data, array.dtype, array.size, at)[:] = array.reshape(-1)
            arrays.append({"type": array.dtype.str, "shape": list(array.shape)})
            at += array.nbytes
        return {"arrays": arrays, "bytes": total}

    def infer(self, given: dict[str, Any], wanted: list[str]) -> list[Any]:
        """The outputs `wanted`, in that order."""
        return list(self.session.run(wanted, given))

    def _mapped(self, kind: str, size: int, write: bool = False) -> mmap.mmap:
        """A shared file of at least `size` bytes, grown where this process is the one that writes to it."""
        known = self.maps.get(kind)
        if known is None or len(known) < size:
            if write:
                os.ftruncate(self.settings[kind], max(size, 1))
            self.maps[kind] = known = mmap.mmap(self.settings[kind], 0)
        return known


class OpenVinoWorker(Worker):
    """The same for OpenVINO's own form, an XML file with its weights in the .bin beside it."""

    def open(self) -> dict[str, Any]:
        import numpy  # noqa: F401 - what is imported is not counted
        import openvino

        given, core = self.settings, openvino.Core()
        _limit_memory(given["memory"])
        model = core.read_model(given["path"])
        hints = {
            "INFERENCE_PRECISION_HINT": {"bfloat16": "bf16"}.get(given["precision"], "f32"),
            "INFERENCE_NUM_THREADS": given["threads"],
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.session = core.compile_model(model, "CPU", hints)
        ports = {"inputs": self.session.inputs, "outputs": self.session.outputs}
        if max(map(len, ports.values())) > MOST_PORTS:
            raise ValueError(f"more than {MOST_PORTS} inputs or outputs")
        listed = {
            kind: [
                {
                    "name": one.get_any_name(),
                    "type": one.get_element_type().get_type_name(),
                    "shape": [None if side.is_dynamic else side.get_length() for side in one.get_partial_shape()],
                }
                for one in found
            ]
            for kind, found in ports.items()
        }
        about = {
            "version": openvino.__version__.partition("-")[0],
            "computes_in": str(self.session.get_property("INFERENCE_PRECISION_HINT").get_type_name()),
            "offers": list(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        }
        return {**listed, "names": "", "about": about}

    def infer(self, given: dict[str, Any], wanted: list[str]) -> list[Any]:
        found = self.session(given)
        return [found[name] for name in wanted]


WORKERS = {"onnxruntime": Worker, "openvino": OpenVinoWorker}


def _limit_memory(allowed: int) -> None:
    """At most `allowed` bytes more than there are now; where the system knows no such limit, the parent watches."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = now + allowed if hard == resource.RLIM_INFINITY else min(now + allowed, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    except (OSError, ValueError):
        return


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
