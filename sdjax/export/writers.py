"""A program's file for each target; their compilers are imported when they are needed."""

import contextlib
import importlib
import io
from pathlib import Path

import jax
import numpy as np
from jax import export

from sdjax.errors import SdjaxError
from sdjax.export.programs import Exported
from sdjax.models.attention_kernels import compiling_for

EXTRAS = {
    "jax": ("flatbuffers",),
    "litert": ("litert_converter", "ai_edge_litert", "ai_edge_quantizer"),
    "iree": ("iree.compiler",),
    "onnx": ("jax2onnx",),
}
"""Target -> what must be importable; the extra of pyproject.toml has the same name."""
LARGEST = 2**31  # bytes of a file of LiteRT or ONNX
PLATFORMS = {
    "jax": {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"},
    "iree": {"host": None, "android-arm64": "aarch64-linux-android29"},
}
"""Target -> platform -> what JAX or LLVM call it; the first is the default."""


def check(target: str, dtype: str, platform: str | None) -> str | None:
    """The platform; SdjaxError where a target's compiler is missing or cannot do what is asked."""
    if dtype == "int8" and target != "litert":
        raise SdjaxError(f"--dtype int8 is for --target litert, got {target}: leave it out")
    known = PLATFORMS.get(target, {})
    if platform is not None and platform not in known:
        choice = f"one of {', '.join(known)}" if known else "left out"
        raise SdjaxError(f"--platform of {target} must be {choice}, got {platform}")
    for package in EXTRAS.get(target, ()):
        if package == "ai_edge_quantizer" and dtype != "int8":
            continue
        try:
            importlib.import_module(package)
        except ImportError as error:
            own = ", in an environment of its own (docs/export.md)" if target == "onnx" else ""
            raise SdjaxError(
                f'--target {target} needs the package {package.partition(".")[0]}: '
                f'pip install "sdjax[{target}]"{own}'
            ) from error
    return platform if platform is not None or not known else next(iter(known))


def check_size(target: str, name: str, program: Exported) -> None:
    """SdjaxError where a program's parameters do not fit into one file of the target."""
    size = sum(leaf.size * 4 for leaf in jax.tree.leaves(program.params))
    if target in ("litert", "onnx") and size >= LARGEST:
        raise SdjaxError(
            f"{name} has {size / 1e9:.1f} GB of float32 parameters and a file of {target} holds "
            "2.1 GB at most: choose --target jax or iree"
        )


def write(
    target: str, name: str, program: Exported, path: Path, dtype: str, platform: str | None
) -> None:
    """Writes a program's file."""
    with compiling_for(platform if target == "jax" else "cpu"):
        if target == "onnx":
            return _onnx(name, program, path)
        if target == "jax":
            return _jax(program, path, platform)
        lowered = _lowered(program.closed(), program.inputs.values())
    if target == "iree":
        return _iree(lowered, path, platform)
    return _litert(name, program, lowered, path, dtype)


def _lowered(function, inputs, platform: str = "cpu") -> export.Exported:
    return export.export(jax.jit(function), platforms=[platform])(*inputs)


def _jax(program: Exported, path: Path, platform: str) -> None:
    """Serialised StableHLO, its parameters beside it under their names."""
    from jax.tree_util import keystr, tree_flatten_with_path
    from safetensors.numpy import save_file

    leaves, structure = tree_flatten_with_path(program.params)
    names = [keystr(place, simple=True, separator="/") for place, _ in leaves]

    def function(named, *inputs):
        params = jax.tree.unflatten(structure, [named[name] for name in names])
        return program.function(params, *inputs)

    named = {name: np.asarray(leaf) for name, (_, leaf) in zip(names, leaves, strict=True)}
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), named)
    lowered = _lowered(
        function, (shapes, *program.inputs.values()), PLATFORMS["jax"][platform]
    )
    path.write_bytes(lowered.serialize())
    save_file(named, path.with_suffix(".safetensors"))


def _litert(name: str, program: Exported, lowered, path: Path, dtype: str) -> None:
    """A LiteRT flatbuffer, by the converter's own interface, which has no public one for StableHLO:
    hence its pinned version."""
    from litert_converter import converter_api_ext as converter
    from litert_converter.mlir import ir, passmanager

    context = ir.Context()
    converter.prepare_mlir_context(context)
    passes = (
        "vhlo-legalize-stablehlo,reconcile-unrealized-casts,"
        "func.func(stablehlo-legalize-composite-to-call),inline,strip-debuginfo"
    )
    with context:
        module = ir.Module.parse(lowered.mlir_module_serialized)
        passmanager.PassManager.parse(f"builtin.module({passes})").run(module.operation)
        converter.set_signature(
            module.operation, name, list(program.inputs), list(program.outputs)
        )
        converter.run_convert_to_tfl_passes(
            module, passmanager.PassManager(), converter.ConvertToTFLConfig()
        )
        made = converter.export_flatbuffer_to_bytes(module.operation)
    path.write_bytes(made)
    if dtype == "int8":
        _quantize(path)


def _quantize(path: Path) -> None:
    """A LiteRT file's weights in int8, a scale a channel; what is computed stays float32."""
    from ai_edge_quantizer import quantizer, recipe

    wide = path.with_suffix(".float32")
    path.rename(wide)
    try:
        one = quantizer.Quantizer(str(wide))
        one.load_quantization_recipe(recipe.weight_only_wi8_afp32())
        with contextlib.redirect_stdout(None), contextlib.redirect_stderr(io.StringIO()):
            one.quantize().export_model(str(path))
    finally:
        wide.unlink()


def _iree(lowered, path: Path, platform: str) -> None:
    from iree import compiler

    triple = PLATFORMS["iree"][platform]
    where = [f"--iree-llvmcpu-target-triple={triple}"] if triple else [
        "--iree-llvmcpu-target-cpu=host"
    ]
    made = compiler.compile_str(
        lowered.mlir_module_serialized, target_backends=["llvm-cpu"], input_type="stablehlo",
        extra_args=where,
    )  # fmt: skip
    path.write_bytes(made)


def _onnx(name: str, program: Exported, path: Path) -> None:
    import jax2onnx

    jax2onnx.to_onnx(
        program.closed(), list(program.inputs.values()), model_name=name, return_mode="file",
        output_path=str(path),
    )  # fmt: skip
