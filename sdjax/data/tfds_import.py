"""tensorflow-datasets, which only some data sources need, or one line that says how to get it."""

import importlib
import logging

from sdjax.errors import SdjaxError

_NEEDED = ("array_record", "importlib_resources", "tensorflow_datasets.public_api")

logging.disable(logging.CRITICAL)  # the package logs why it cannot be imported, and goes on
try:
    for _name in _NEEDED:
        importlib.import_module(_name)
except Exception as error:  # whatever a package or what it needs comes up with
    first = (str(error).splitlines() or [""])[0]
    raise SdjaxError(
        "the data sources emoji and tfds:NAME need tensorflow-datasets, which cannot be imported "
        f"({type(error).__name__}: {first}): pip install tensorflow-datasets array_record "
        "importlib_resources"
    ) from error
finally:
    logging.disable(logging.NOTSET)

import tensorflow_datasets as tfds  # noqa: E402  after what may be missing

__all__ = ["tfds"]
