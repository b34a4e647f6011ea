"""Pictures that belong to those of a folder: of the same names, in another folder."""

from pathlib import Path, PurePosixPath

import numpy as np

from sdjax.data.folder import ImageFolder
from sdjax.data.images import decode_image
from sdjax.errors import SdjaxError


def pictures_beside(source: ImageFolder, folder, index) -> list[np.ndarray]:
    """For each of these items the picture of its name in `folder`, uint8 [height, width, 3].

    Names may differ in what follows their last point. Raises SdjaxError that names what is missing.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise SdjaxError(f"expected a folder of pictures beside the data's, found none at {root}")
    there = {
        str(PurePosixPath(path.relative_to(root).as_posix()).with_suffix("")): path
        for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".txt"
    }
    names = [source.name(int(i)) for i in index]
    keys = [str(PurePosixPath(name).with_suffix("")) for name in names]
    if missing := [name for name, key in zip(names, keys, strict=True) if key not in there]:
        raise SdjaxError(
            f"{root} lacks {len(missing)} pictures of the data's names: {', '.join(missing[:5])}"
        )
    return [decode_image(there[key], str(there[key])) for key in keys]
