"""Training step and network evaluation of a DDPM U-Net: sdjax against PyTorch diffusers.

The network is that of DDPM for CIFAR-10 (arXiv 2006.11239; the configuration of
google/ddpm-cifar10-32) with widths 64, 128, 128 instead of 128, 256, 256, 256: 6.5 million
parameters. Both peers have the same weights. A training step is all that a run does: noise,
forward, backward, clipping, AdamW, moving average. PyTorch runs in channels_last with a thread a
core, sdjax as its command line does: an XLA device a core, memory in huge pages and kept for the
next call. As PyTorch has its memory from the same library, it runs both without and with these two.

    python -m benchmarks.ddpm_vs_torch
"""

import tempfile
from pathlib import Path

import tyro

from benchmarks.common import Peer, compare, cores, report
from sdjax.memory import HUGE_PAGES, keep_freed_memory
from sdjax.parallel import THREADS_PER_DEVICE

WANTED = {"train": 1.0, "forward": 0.9}


def network(widths, size):
    """The config.json of the network, attention at the second level as in DDPM."""
    levels = range(len(widths))
    return {
        "_class_name": "UNet2DModel", "sample_size": size, "in_channels": 3, "out_channels": 3,
        "block_out_channels": widths, "layers_per_block": 2, "norm_num_groups": 32,
        "down_block_types": ["AttnDownBlock2D" if i == 1 else "DownBlock2D" for i in levels],
        "up_block_types": ["AttnUpBlock2D" if i == 1 else "UpBlock2D" for i in levels[::-1]],
        "norm_eps": 1e-6, "flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0,
        "attention_head_dim": None,
    }


def inputs(batch, size):
    """What the forward task evaluates: x float32 [batch, size, size, 3] and t int64 [batch]."""
    import numpy as np

    random = np.random.RandomState(0)
    x = random.standard_normal((batch, size, size, 3)).astype(np.float32)
    return x, random.randint(0, 1000, batch)


def build_torch(config, weights, batch, size, threads, keep_memory=False, compiled=False):
    """PyTorch's tasks; writes its random weights to the file `weights`."""
    if keep_memory:
        keep_freed_memory()
    import numpy as np
    import torch
    from diffusers import DDPMScheduler, UNet2DModel
    from safetensors.torch import save_file

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = UNet2DModel.from_config(config)
    save_file(model.state_dict(), weights)
    model = model.to(memory_format=torch.channels_last)
    run = torch.compile(model) if compiled else model
    average = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-4, (0.9, 0.99), fused=True)
    scheduler = DDPMScheduler()
    x, t = inputs(batch, size)
    x = torch.from_numpy(np.moveaxis(x, -1, 1)).contiguous(memory_format=torch.channels_last)
    t = torch.from_numpy(t)

    def train():
        noise, steps = torch.randn_like(x), torch.randint(0, 1000, (batch,))
        prediction = run(scheduler.add_noise(x, noise, steps), steps).sample
        loss = torch.nn.functional.mse_loss(prediction, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(model.parameters()), 0.001)
        return loss.item()

    @torch.inference_mode()
    def forward():
        return np.moveaxis(run(x, t).sample.numpy(), 1, -1)

    return {"train": train, "forward": forward}


def build_sdjax(config, weights, batch, size):
    """sdjax's tasks, with the weights of the file `weights`."""
    keep_freed_memory()
    import jax
    import numpy as np

    from sdjax.models import UNet, UNetConfig
    from sdjax.parallel import replicate, shard_batch
    from sdjax.training.loop.config import OptimizerConfig, RunConfig
    from sdjax.training.loop.optimizers import make_optimizer
    from sdjax.training.loop.state import TrainState
    from sdjax.training.loop.step import make_step
    from sdjax.training.objectives.denoising import DenoisingConfig, ScheduleConfig, losses, noised
    from sdjax.weights.names import params_from_state
    from sdjax.weights.tensors import read_safetensors

    unet = UNet(UNetConfig.from_dict(config))
    params = params_from_state(read_safetensors(weights)[0])
    denoising = DenoisingConfig(ScheduleConfig("linear", 1e-4, 0.02), "epsilon")
    schedule = denoising.schedule.build()

    def loss(params, frozen, images, keys):
        given = noised(denoising, schedule, images, keys)
        prediction = unet.apply({"params": params}, given.x_t, given.t)
        return losses(denoising, schedule, given, prediction).mean(), {}

    run = RunConfig(steps=100_000, batch_size=batch,
                    optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=0))
    optimizer = make_optimizer(run.optimizer, run.steps)
    step = make_step(loss, optimizer, run)
    state = replicate(TrainState.create(params, optimizer))
    forward_params = replicate(params)
    evaluate = jax.pmap(lambda p, x, t: unet.apply({"params": p}, x, t), in_axes=(None, 0, 0))
    x, t = inputs(batch, size)
    shards = shard_batch((x, t))

    def train():
        nonlocal state
        state, metrics = step(state, {}, shard_batch(x, (1, 1)))
        return float(metrics["loss"][0])

    def forward():
        return np.asarray(evaluate(forward_params, *shards)).reshape(x.shape)

    return {"train": train, "forward": forward}


def main(batch: int = 32, size: int = 32, widths: tuple[int, ...] = (64, 128, 128),
         rounds: int = 15, calls: int = 1, compiled: bool = False, save: bool = True):
    """Compare, print a table and write benchmarks/results/ddpm_vs_torch.json.

    Args:
        batch: images in a step. size: side of an image. widths: channels of each level.
        rounds: turns of each peer. calls: calls in a turn.
        compiled: one peer more, torch.compile of the same.
        save: whether to write the file.
    """
    config, count = network(widths, size), cores()
    threads = {"OMP_NUM_THREADS": str(count), "JAX_PLATFORMS": "cpu",
               "JAX_NUM_CPU_DEVICES": str(count), "NPROC": str(THREADS_PER_DEVICE * count)}
    pages = {"GLIBC_TUNABLES": HUGE_PAGES}
    with tempfile.TemporaryDirectory() as folder:
        options = {"config": config, "weights": str(Path(folder) / "weights.safetensors"),
                   "batch": batch, "size": size}
        variants = {"torch": {}, "torch, memory kept": {"keep_memory": True}}
        if compiled:
            variants["torch.compile, memory kept"] = {"keep_memory": True, "compiled": True}
        peers = [Peer(name, build_torch, {**threads, **(pages if variant else {})}, threads=count,
                      **options, **variant)
                 for name, variant in variants.items()]
        peers.append(Peer("sdjax", build_sdjax, {**threads, **pages}, **options))
    # Before any training, all peers have the same weights.
    results = [peer.ask("value", "forward") for peer in peers]
    error = max(float(abs(r - results[0]).max() / abs(results[0]).max()) for r in results)
    if error > 1e-4:
        raise SystemExit(f"the peers disagree: relative error {error:.1e}")
    timed = compare(peers, list(WANTED), rounds, calls)
    for peer in peers:
        peer.close()
    settings = {"network": config, "batch": batch, "cores": count, "relative_error": error}
    title = f"DDPM U-Net, {size}x{size}, batch {batch}, {count} cores"
    return report("ddpm_vs_torch", title, timed, "torch", settings, WANTED, save)


if __name__ == "__main__":
    tyro.cli(main)
