"""Pictures a second of one core from tar shards: read, decoded, cut, resized and put into batches,
beside PyTorch's DataLoader with the package webdataset on the same shards.

    python -m benchmarks.loader

Both sides shuffle, cut out the middle square, resize by Lanczos' filter and give float32 in [-1, 1];
each has one process on one core, the same for both, and they work turn about. JPEGs of more than
twice the wanted size are decoded smaller here, which Pillow can do and webdataset's decoder does not
ask for: the larger ones are measured apart.
"""

import io
import os
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import tyro
from PIL import Image, ImageOps

from benchmarks.common import Peer, compare, report

SIZE, BATCH = 256, 64
PICTURES = {"384x512": (512, 384), "768x1024": (1024, 768)}  # name: (width, height)
WANTED = 1.0  # of webdataset's time


def write_shards(folder: Path, size, shards: int, samples: int):
    """JPEGs as of photographs: smooth, with some grain; about 0.9 bits a pixel."""
    random, width, height = np.random.default_rng(0), *size
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for sample in range(samples):
                small = random.integers(0, 255, (height // 32, width // 32, 3)).astype(np.uint8)
                large = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
                grain = random.normal(0, 3, (height, width, 1))
                pixels = np.clip(np.asarray(large) + grain, 0, 255).astype(np.uint8)
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "JPEG", quality=90)
                for ending, data in (("jpg", file.getvalue()), ("txt", b"a picture")):
                    member = tarfile.TarInfo(f"{shard:05}{sample:04}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def one_core():
    """Stays on one core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def build_ours(folder):
    """Tasks that draw batches with sdjax."""
    from sdjax.data import DataConfig, loader, open_source

    one_core()

    def batches(name):
        # Without a thread that reads ahead while the other side is timed.
        config = DataConfig(f"tar:{folder}/{name}", image_size=SIZE, threads=0)
        return loader(open_source(config), config, BATCH)

    made = {name: batches(name) for name in PICTURES}
    return {name: lambda name=name: next(made[name])["image"].shape for name in PICTURES}


def build_webdataset(folder):
    """Tasks that draw batches with PyTorch and webdataset."""
    import torch
    import webdataset

    one_core()
    torch.set_num_threads(1)

    def prepared(image):
        image = ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.asarray(image, np.float32) / np.float32(127.5) - 1)

    def batches(name):
        urls = sorted(map(str, Path(folder, name).glob("*.tar")))
        data = (
            webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(256).decode("pilrgb")
            .to_tuple("jpg", "txt").map_tuple(prepared, str).repeat().batched(BATCH)
        )  # fmt: skip
        return iter(torch.utils.data.DataLoader(data, batch_size=None, num_workers=0))

    made = {name: batches(name) for name in PICTURES}
    return {name: lambda name=name: next(made[name])[0].shape for name in PICTURES}


def main(shards: int = 4, samples: int = 128, rounds: int = 7, save: bool = True):
    """Writes shards, measures, prints and writes the results."""
    with tempfile.TemporaryDirectory() as folder:
        for name, size in PICTURES.items():
            Path(folder, name).mkdir()
            write_shards(Path(folder, name), size, shards, samples)
        alone = {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
        peers = [Peer("sdjax", build_ours, alone, folder=folder),
                 Peer("webdataset", build_webdataset, alone, folder=folder)]
        results = compare(peers, list(PICTURES), rounds=rounds)
        for peer in peers:
            peer.close()
    for row in results.values():
        for result in row.values():
            result["pictures_per_second_a_core"] = round(BATCH / result["median_s"], 1)
    settings = {"pictures": PICTURES, "to": SIZE, "batch": BATCH, "shards": shards,
                "samples": samples}
    report("loader", "Batches of 64 pictures from tar shards, one core", results, "webdataset",
           settings, target=dict.fromkeys(PICTURES, WANTED), save=save)


if __name__ == "__main__":
    tyro.cli(main)
