"""Writes docs/reference.md, the public names with their docstrings: python -m docs.make_reference

Signatures and fields are taken from the source, so that the page does not depend on versions.
"""

import ast
import importlib
import inspect
import textwrap
from pathlib import Path

import sdjax

PAGE = Path(__file__).with_name("reference.md")
MODULES = ("diffusion", "models", "weights", "text", "pipeline", "sound", "data", "training",
           "evaluation")
PLAIN = ("parallel", "memory")
"""Modules without `__all__`: what they define, and does not begin with an underscore."""


def public_names(module):
    """The names that a module offers, in its order."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    tree = ast.parse(inspect.getsource(module))
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and node.name[0] != "_"]


def node_of(value):
    """The syntax of a function or class."""
    return ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]


def signature(node, name=None, drop=0):
    """`name(arguments) -> result`, without the first `drop` arguments."""
    arguments = node.args
    for _ in range(drop):
        (arguments.posonlyargs or arguments.args).pop(0)
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{name or node.name}({ast.unparse(arguments)}){result}"


def fields(node):
    """Lines of a class's annotated fields, each with the docstring below it."""
    lines = []
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and not ast.unparse(field.target).startswith("_"):
            lines.append(ast.unparse(field))
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = " ".join(str(after.value.value).split())
                lines += textwrap.wrap(text, 96, initial_indent="    ", subsequent_indent="    ")
    return lines


def inherited(value):
    """The syntax of a class's bases of this package that are no public names themselves."""
    own = [base for base in value.__mro__[1:] if base.__module__.startswith("sdjax.")]
    return [node_of(base) for base in own if base.__name__ not in sdjax.__all__]


def described(lines, doc):
    """A block of signature, docstring and fields."""
    body = [*lines, ""] if doc and lines else lines
    text = "\n".join([*body, *(inspect.cleandoc(doc).splitlines() if doc else [])]).rstrip()
    return f"```text\n{text}\n```\n"


def entry(where, name):
    """The part of the page about one name."""
    value = getattr(where, name)
    head = f"#### `{where.__name__}.{name}`\n"
    if inspect.isclass(value):
        node = node_of(value)
        parts = [head, described(fields(node), ast.get_docstring(node))]
        for method in (one for part in (node, *inherited(value)) for one in part.body):
            if isinstance(method, ast.FunctionDef) and ast.get_docstring(method):
                if not method.name.startswith("_"):
                    kinds = {ast.unparse(d).split(".")[0] for d in method.decorator_list}
                    if "property" in kinds:
                        line = f"{name}.{method.name}"
                    else:
                        drop = 0 if "staticmethod" in kinds else 1
                        line = signature(method, f"{name}.{method.name}", drop)
                    parts.append(described([line], ast.get_docstring(method)))
        return "\n".join(parts)
    if inspect.isfunction(value):
        node = node_of(value)
        return "\n".join([head, described([signature(node, name)], ast.get_docstring(node))])
    return "\n".join([head, described([f"{name}: {type(value).__name__}"], None)])


def page():
    """The whole text."""
    top = [
        "# Reference\n",
        "Every public name with its docstring, made from the source by "
        "`python -m docs.make_reference`.\n",
    ]
    short = [name for name in sdjax.__all__ if name not in ("EMOJI", "__version__", "SdjaxError")]
    rows = [f"| `sdjax.{name}` | `{sdjax._MODULE_OF[name]}` |" for name in short]
    parts = [
        *top,
        "`sdjax.EMOJI` is the folder of the model that comes with the project, "
        "`sdjax.SdjaxError` what is raised for input that cannot be used. These names are those "
        "of the modules below:\n",
        "\n".join(["| name | module |", "|---|---|", *rows]) + "\n",
    ]
    for name in (*MODULES, *PLAIN):
        module = importlib.import_module(f"sdjax.{name}")
        parts.append(f"## `sdjax.{name}`\n")
        parts.append(f"{inspect.cleandoc(module.__doc__)}\n")
        parts += [entry(module, public) for public in public_names(module)]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
