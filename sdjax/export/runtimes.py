"""The targets' runtimes: an exported program's file as a function of NumPy arrays.

Each is imported when a program of its target is opened.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.errors import SdjaxError

PACKAGES = {
    "jax": ("jax",), "litert": ("ai_edge_litert.interpreter",), "iree": ("iree.runtime",),
    "onnx": ("onnxruntime",),
}  # fmt: skip
_NAMES = {
    "ai_edge_litert": "ai-edge-litert", "iree": "iree-base-runtime", "onnxruntime": "onnxruntime"
}

Program = Callable[..., dict[str, np.ndarray]]


def opened(target: str, path: Path, program: Mapping[str, Any]) -> Program:
    """The program in a file, as a function of its inputs by name to its outputs by name.

    program: its entry of the settings, with the names of its inputs and outputs. Raises SdjaxError
    where the runtime is missing.
    """
    (package,) = PACKAGES[target]
    try:
        runtime = importlib.import_module(package)
    except ImportError as error:
        name = package.partition(".")[0]
        raise SdjaxError(
            f"programs for {target} need its runtime: pip install {_NAMES.get(name, name)}"
        ) from error
    return _OPEN[target](runtime, path, program)


def _ordered(program: Mapping[str, Any], run: Callable) -> Program:
    """A function of arrays in their order as one by name."""
    inputs, outputs = (program[side] for side in ("inputs", "outputs"))

    def call(**given):
        made = run(*(np.asarray(given[name], one["dtype"]) for name, one in inputs.items()))
        return dict(zip(outputs, map(np.asarray, made), strict=True))

    return call


def _litert(runtime, path: Path, program: Mapping[str, Any]) -> Program:
    interpreter = runtime.Interpreter(str(path), num_threads=program.get("threads"))
    signature = interpreter.get_signature_runner()

    def call(**given):
        made = signature(**{
            name: np.asarray(given[name], one["dtype"]) for name, one in program["inputs"].items()
        })
        return {name: np.array(made[name]) for name in program["outputs"]}

    call.interpreter = interpreter  # which owns the memory of the signature
    return call


def _iree(runtime, path: Path, program: Mapping[str, Any]) -> Program:
    config = runtime.Config("local-task")
    module = runtime.VmModule.mmap(config.vm_instance, str(path))
    context = runtime.SystemContext(vm_modules=[module], config=config)
    main = context.modules[module.name]["main"]

    def run(*inputs):
        made = main(*inputs)
        made = made if isinstance(made, tuple) else (made,)
        return [one.to_host() for one in made]

    return _ordered(program, run)


def _onnx(runtime, path: Path, program: Mapping[str, Any]) -> Program:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return _ordered(
        program, lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))
    )


def _jax(runtime, path: Path, program: Mapping[str, Any]) -> Program:
    from jax import export
    from safetensors.numpy import load_file

    made = export.deserialize(bytearray(path.read_bytes()))
    params = runtime.device_put(load_file(path.with_suffix(".safetensors")))
    call = runtime.jit(made.call)
    return _ordered(program, lambda *inputs: call(params, *inputs))


_OPEN = {"jax": _jax, "litert": _litert, "iree": _iree, "onnx": _onnx}
