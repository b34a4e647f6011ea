"""The stack machine of pickles, which knows only data and runs nothing.

A pickle is a program for a small stack machine that may call any function. This one carries out
the machine itself and knows containers, numbers, text and tensors. Nothing is imported or called;
any other global may be mentioned but not used, or the file is refused by the name of that global.
"""

import contextlib
import math
import pickletools
import struct
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.weights.tensors import LazyTensor

_STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "UntypedStorage": np.dtype(np.uint8),  # bytes, whose tensors say what they are of
}
_NEW_DTYPES = {
    "torch float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "torch float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "torch uint16": np.dtype(np.uint16),
    "torch uint32": np.dtype(np.uint32),
    "torch uint64": np.dtype(np.uint64),
}
_REBUILD = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor")
_REBUILD_NEW = "torch._utils _rebuild_tensor_v3"  # of dtypes that have no storage of their own
_REBUILD_OTHER = "torch._utils _rebuild_"  # quantised, sparse, nested, …
_PARAMETER = ("torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state")
_TYPED = "torch._tensor _rebuild_from_type_v2"  # a tensor with attributes
_PARAMETERS = "torch.nn.modules.container ParameterDict"
_DICTS = (
    "collections OrderedDict",
    "collections defaultdict",
    "pytorch_lightning.utilities.parsing AttributeDict",
    "lightning_fabric.utilities.data AttributeDict",
    _PARAMETERS,
)
# Harmless values of training states: read over, kept as marks without content.
_INERT = (
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray scalar",
    "numpy.core.multiarray _reconstruct",
    "numpy._core.multiarray _reconstruct",
    "numpy dtype",
    "torch Size",
    "torch device",
    "torch.serialization _get_layout",
    "__builtin__ set",
    "builtins set",
    "_codecs encode",
    "argparse Namespace",
    "pathlib PosixPath",
    "pathlib WindowsPath",
    "omegaconf.dictconfig DictConfig",
    "omegaconf.listconfig ListConfig",
    "omegaconf.base ContainerMetadata",
    "omegaconf.base Metadata",
    "omegaconf.nodes AnyNode",
)
_AXES = 32  # that a tensor has at most, as in NumPy before version 2
_SCALARS = (str, bytes, int, float, bool, type(None))
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
)


@contextlib.contextmanager
def translated(path: Path):
    """Whatever a damaged file makes the standard library raise, as SdjaxError."""
    try:
        yield
    except SdjaxError:
        raise
    except OSError as error:
        raise SdjaxError(f"cannot read {path}: {error.strerror or error}") from error
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise SdjaxError(f"{path} is not a whole PyTorch checkpoint: {reason}") from error


class Global:
    """A name that the pickle mentions."""

    def __init__(self, name: str):
        self.name = name


class Storage:
    """A block of numbers that tensors are views of."""

    def __init__(self, dtype: np.dtype, key: str, size: int):
        self.dtype, self.key, self.size = dtype, key, size


class ParameterDict(dict):
    """PyTorch's module that maps names to parameters: A1111 keeps a learned word in one."""


class Machine:
    """Carries out the opcodes of a pickle that only describe data."""

    def __init__(self, path: Path, read, check):
        self.path, self.read, self.check = path, read, check
        self.storages: dict[str, Storage] = {}

    def run(self, file):
        """The value of the next pickle in a file, which is left just behind it."""
        self.stack: list = []
        self.marks: list[int] = []  # how high the stack was at each mark
        self.memo: dict = {}
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return self.stack.pop()
            self._step(opcode.name, argument)
        raise SdjaxError(f"{self.path} is truncated: its pickle has no end")

    def _step(self, name: str, argument) -> None:
        stack = self.stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            stack.append(argument)
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[int(argument)])
        elif name == "POP":
            if self.marks and self.marks[-1] == len(stack):
                self.marks.pop()
            else:
                stack.pop()
        elif name == "POP_MARK":
            self._marked()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("TUPLE", "LIST", "DICT", "FROZENSET"):
            items = self._marked()
            if name == "DICT":
                stack.append({})
                self._set(items)
            else:
                stack.append(tuple(items) if name == "TUPLE" else items)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            items = tuple(stack[-count:])
            del stack[-count:]
            stack.append(items)
        elif name in ("APPEND", "APPENDS"):
            items = self._marked() if name == "APPENDS" else [stack.pop()]
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            self._set(self._marked() if name == "SETITEMS" else [stack.pop(-2), stack.pop()])
        elif name == "ADDITEMS":
            self._marked()
        elif name == "GLOBAL":
            stack.append(Global(argument))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(Global(f"{module} {attribute}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._call(function, arguments))
        elif name == "BINPERSID":
            stack.append(self._persistent(stack.pop()))
        elif name == "BUILD":
            self._build(stack.pop(), stack[-1])
        else:
            raise SdjaxError(f"{self.path} uses the pickle instruction {name}, which is refused")

    def _marked(self) -> list:
        """The items above the last mark, taken off with it."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _set(self, items: list) -> None:
        """Keys and values in turn, into the dictionary on top of the stack."""
        # To hash a tuple of tuples of … is the one thing here that could end the process.
        if not all(isinstance(key, (*_SCALARS, Global)) for key in items[::2]):
            raise SdjaxError(f"{self.path} has a dictionary whose keys are not names or numbers")
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _call(self, function, arguments):
        name = function.name if isinstance(function, Global) else repr(type(function).__name__)
        if name in _REBUILD:
            return self._tensor(*arguments[:4])
        if name == _REBUILD_NEW:
            return self._tensor(self._viewed(arguments[0], arguments[6]), *arguments[1:4])
        if name in _PARAMETER:
            return arguments[0]
        if name == _TYPED:
            return self._call(arguments[0], arguments[2])
        if name in _DICTS and all(isinstance(argument, Global) for argument in arguments):
            return ParameterDict() if name == _PARAMETERS else {}
        if name in _INERT:
            return Global(name)
        if name.startswith(_REBUILD_OTHER):
            raise SdjaxError(
                f"{self.path} holds a tensor of a kind that is not read "
                f"({name.removeprefix(_REBUILD_OTHER)}): save it with plain tensors"
            )
        raise SdjaxError(
            f"{self.path} would call {name.replace(' ', '.')} when unpickled: refused; use a "
            "safetensors version of this checkpoint"
        )

    def _build(self, state, target) -> None:
        parameters = state.get("_parameters") if isinstance(state, dict) else None
        if isinstance(target, ParameterDict) and isinstance(parameters, dict):
            target.update(parameters)  # the others are attributes that every module has
        if isinstance(target, Global) and target.name not in _INERT:
            raise SdjaxError(
                f"{self.path} would set the state of {target.name.replace(' ', '.')}: refused"
            )

    def _persistent(self, reference) -> Storage | Global:
        """What a file of PyTorch keeps beside its pickle: storages, and the classes of modules."""
        if reference[0] == "module" and isinstance(reference[1], Global):
            return reference[1]
        kind, storage_type, key, _, size, *view = reference
        name = storage_type.name.split()[-1]
        sound = type(key) is str and type(size) is int and size >= 0 and view in ([], [None])
        known = name in _STORAGES
        if kind == "storage" and name.endswith("Storage") and not known:
            raise self._unread(name.removesuffix("Storage"))
        if kind != "storage" or not known or not sound:
            raise SdjaxError(f"{self.path} refers to something that is not a tensor storage")
        if key not in self.storages:
            storage = self.storages[key] = Storage(_STORAGES[name], key, size)
            self.check(storage)
        return self.storages[key]

    def _viewed(self, storage: Storage, dtype: Global) -> Storage:
        """The bytes of a storage as numbers of a dtype."""
        if dtype.name not in _NEW_DTYPES:
            raise self._unread(dtype.name.split()[-1])
        numbers = _NEW_DTYPES[dtype.name]
        return Storage(numbers, storage.key, storage.size // numbers.itemsize)

    def _unread(self, dtype: str) -> SdjaxError:
        return SdjaxError(
            f"{self.path} holds tensors of {dtype}, which are not read: expected floats of 64, 32, "
            "16 or 8 bits (bfloat16, float8_e4m3fn and float8_e5m2 among them), integers or bools"
        )

    def _tensor(self, storage: Storage, offset: int, shape, strides) -> LazyTensor:
        axes = len(shape)
        if axes != len(strides) or axes > _AXES or not all(
            type(n) is int and 0 <= n < 2**63 for n in (offset, *shape, *strides)
        ):
            raise SdjaxError(f"{self.path} holds a tensor of impossible shape and strides")
        last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if math.prod(shape) > storage.size or (0 not in shape and offset + last >= storage.size):
            raise SdjaxError(f"{self.path} holds a tensor that reaches beyond its storage")

        def load() -> np.ndarray:
            with translated(self.path):
                flat = self.read(storage)[offset:]
            steps = [stride * storage.dtype.itemsize for stride in strides]
            # As bits: NumPy cannot lay out numbers of 8-bit floats.
            bits = flat.view(f"u{storage.dtype.itemsize}")
            view = np.lib.stride_tricks.as_strided(bits, shape, steps, writeable=False)
            return np.ascontiguousarray(view).view(storage.dtype).reshape(shape)

        return LazyTensor(tuple(shape), storage.dtype, load)


_CONSTANTS = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
}
_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8".split()
)
