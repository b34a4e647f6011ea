"""Where what may be made again is kept between runs: the user's own folder."""

import os
from pathlib import Path

OFF = "SDJAX_COMPILE_CACHE"
"""Environment variable that turns all of it off where it is 0."""


def cache_folder(name: str) -> Path | None:
    """The folder of this name in ~/.cache/sdjax, or in that of XDG_CACHE_HOME; it need not be
    there. None where SDJAX_COMPILE_CACHE is 0.
    """
    if os.environ.get(OFF) == "0":
        return None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdjax" / name
