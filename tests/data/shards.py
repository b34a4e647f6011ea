"""Shards whose samples are known, of each kind."""

import io
import json
import tarfile

import numpy as np
from PIL import Image


def picture(number, width=8, height=8, kind="PNG"):
    """An encoded picture whose pixels tell its number."""
    file = io.BytesIO()
    colour = number % 251, number // 251 % 251, number // 251**2
    Image.new("RGB", (width, height), colour).save(file, kind)
    return file.getvalue()


def number_of(image):
    """The number that a picture tells, of uint8 [h, w, 3] or of floats in [-1, 1]."""
    if image.dtype != np.uint8:
        image = np.round((image + 1) * 127.5).astype(int)
    return int(image[0, 0].astype(int) @ (1, 251, 251**2))


def samples(first, count, size=lambda n: (8, 8), more=lambda n: {}, kind="PNG"):
    """As img2dataset has them: [{"__key__", "png", "txt", "json"}]."""
    found = []
    for n in range(first, first + count):
        width, height = size(n)
        known = {"caption": f"picture {n}", "width": width, "height": height, **more(n)}
        found.append({
            "__key__": f"{n:09}", kind.lower().replace("jpeg", "jpg"):
            picture(n, width, height, kind), "txt": f"picture {n}".encode(),
            "json": json.dumps(known).encode(),
        })
    return found


def tar_bytes(samples, form=tarfile.USTAR_FORMAT):
    """A tar file of samples, written by Python's own module."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for sample in samples:
            for ending, data in sample.items():
                if ending != "__key__":
                    member = tarfile.TarInfo(f"{sample['__key__']}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def write_tars(folder, sizes, **options):
    """So many samples in each shard of a folder, numbered from 0 on."""
    folder.mkdir(exist_ok=True, parents=True)
    first = 0
    for shard, size in enumerate(sizes):
        (folder / f"{shard:05}.tar").write_bytes(tar_bytes(samples(first, size, **options)))
        first += size
    return folder
