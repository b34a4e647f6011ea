"""Networks of clips: sdjax against PyTorch diffusers, with the same random weights.

The U-Net with motion modules (AnimateDiff), the spatio-temporal U-Net of Stable Video Diffusion and
its temporal decoder, all narrower than the published ones, each evaluated once for one clip. Both
peers run on all cores.

    python -m benchmarks.clips
"""

import tempfile
from pathlib import Path

import tyro

from benchmarks.common import Peer, compare, cores, report
from sdjax.memory import HUGE_PAGES, keep_freed_memory
from sdjax.parallel import THREADS_PER_DEVICE

CONTEXT, TOLD = 32, 8
TASKS = ("motion modules", "spatio-temporal", "decoder")


def configurations(widths):
    """{task: config.json as a dict} of the networks, and the motion modules' under "motion"."""
    last = len(widths) - 1
    levels = ["CrossAttnDownBlock2D"] * last + ["DownBlock2D"]
    above = [name.replace("Down", "Up") for name in reversed(levels)]
    shared = {"block_out_channels": widths, "layers_per_block": 2, "cross_attention_dim": CONTEXT}
    video = {name: name.replace("2D", "SpatioTemporal") for name in (*levels, *above)}
    return {
        TASKS[0]: {**shared, "_class_name": "UNet2DConditionModel", "attention_head_dim": 4,
                   "down_block_types": levels, "up_block_types": above},
        "motion": {"block_out_channels": widths, "motion_num_attention_heads": 4},
        TASKS[1]: {**shared, "_class_name": "UNetSpatioTemporalConditionModel",
                   "num_attention_heads": 4, "addition_time_embed_dim": TOLD,
                   "projection_class_embeddings_input_dim": 3 * TOLD,
                   "down_block_types": [video[name] for name in levels],
                   "up_block_types": [video[name] for name in above]},
        TASKS[2]: {"_class_name": "AutoencoderKLTemporalDecoder", "block_out_channels": widths,
                   "down_block_types": ["DownEncoderBlock2D"] * len(widths), "layers_per_block": 2},
    }  # fmt: skip


def inputs(frames, side):
    """x float32 [1, frames, side, side, 8], context [1, 1, CONTEXT], numbers told [1, 3]."""
    import numpy as np

    random = np.random.RandomState(0)
    x = random.standard_normal((1, frames, side, side, 8)).astype(np.float32)
    context = random.standard_normal((1, 1, CONTEXT)).astype(np.float32)
    return x, context, np.float32([[6, 127, 0.02]])


def build_torch(folder, widths, frames, side, threads):
    """PyTorch's tasks; writes its random weights into `folder`."""
    keep_freed_memory()
    import diffusers
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    configs = configurations(widths)
    still = diffusers.UNet2DConditionModel.from_config(configs[TASKS[0]])
    adapter = diffusers.MotionAdapter.from_config(configs["motion"])
    moving = diffusers.UNetMotionModel.from_unet2d(still, adapter).eval()
    video = diffusers.UNetSpatioTemporalConditionModel.from_config(configs[TASKS[1]]).eval()
    vae = diffusers.AutoencoderKLTemporalDecoder.from_config(configs[TASKS[2]]).eval()
    with torch.no_grad():
        for network in (moving, video, vae):
            for parameter in network.parameters():
                parameter += 0.02 * torch.randn(parameter.shape)
    for task, network in zip(TASKS, (moving, video, vae), strict=True):
        torch.save(network.state_dict(), Path(folder) / f"{task}.pt")
    x, context, told = map(torch.from_numpy, inputs(frames, side))
    x = x.permute(0, 1, 4, 2, 3).contiguous()

    @torch.inference_mode()
    def motion():
        clip = x[:, :, :4].transpose(1, 2)
        made = moving(clip, torch.tensor([300]), context.repeat(frames, 1, 1)).sample
        return np.moveaxis(made.numpy(), 1, -1)

    @torch.inference_mode()
    def spatio_temporal():
        return np.moveaxis(video(x, torch.tensor([0.5]), context, told).sample.numpy(), 2, -1)

    @torch.inference_mode()
    def decoder():
        made = vae.decode(x[0, :, :4], num_frames=frames).sample
        return np.moveaxis(made.numpy(), 1, -1)[None]

    return dict(zip(TASKS, (motion, spatio_temporal, decoder), strict=True))


def build_sdjax(folder, widths, frames, side):
    """sdjax's tasks, with the weights in `folder`."""
    keep_freed_memory()
    import jax
    import numpy as np

    from sdjax.models import UNet, UNetConfig, VAEConfig
    from sdjax.models.motion import MotionConfig
    from sdjax.models.vae import VAE
    from sdjax.weights.motion_parts import without_buffers
    from sdjax.weights.names import params_from_state
    from sdjax.weights.single_file import read_file

    configs = configurations(widths)
    params = {
        task: params_from_state(without_buffers(read_file(Path(folder) / f"{task}.pt")[0]))
        for task in TASKS
    }
    still = UNetConfig.from_dict(configs[TASKS[0]])
    moving = UNet(still, motion=MotionConfig.from_dict(configs["motion"]))
    video = UNet(UNetConfig.from_dict(configs[TASKS[1]]))
    vae = VAE(VAEConfig.from_dict(configs[TASKS[2]]))
    x, context, told = inputs(frames, side)
    of_motion = jax.jit(lambda p, x: moving.apply({"params": p}, x, np.float32(300), context))
    of_video = jax.jit(lambda p, x: video.apply(
        {"params": p}, x, np.float32(0.5), context, {"time_ids": told}))  # fmt: skip
    of_vae = jax.jit(lambda p, z: vae.decode(p, z, frames))
    return {
        TASKS[0]: lambda: np.asarray(of_motion(params[TASKS[0]], x[..., :4])),
        TASKS[1]: lambda: np.asarray(of_video(params[TASKS[1]], x)),
        TASKS[2]: lambda: np.asarray(of_vae(params[TASKS[2]], x[0, ..., :4]))[None],
    }


def main(frames: int = 8, side: int = 24, widths: tuple[int, ...] = (64, 128), rounds: int = 7,
         save: bool = True):
    """Compare, print a table and write benchmarks/results/clips.json.

    Args:
        frames: of the clip. side: of its latents. widths: channels of each level.
        rounds: turns of each peer. save: whether to write the file.
    """
    count = cores()
    threads = {"OMP_NUM_THREADS": str(count), "JAX_PLATFORMS": "cpu",
               "JAX_NUM_CPU_DEVICES": "1", "NPROC": str(THREADS_PER_DEVICE * count),
               "GLIBC_TUNABLES": HUGE_PAGES}
    with tempfile.TemporaryDirectory() as folder:
        options = {"folder": folder, "widths": widths, "frames": frames, "side": side}
        peers = [Peer("torch", build_torch, threads, threads=count, **options)]
        peers.append(Peer("sdjax", build_sdjax, threads, **options))
    errors = {}
    for task in TASKS:
        theirs, ours = (peer.ask("value", task) for peer in peers)
        errors[task] = float(abs(ours - theirs).max() / abs(theirs).max())
        if errors[task] > 5e-5:
            raise SystemExit(f"the peers disagree on {task}: relative error {errors[task]:.1e}")
    timed = compare(peers, list(TASKS), rounds)
    for peer in peers:
        peer.close()
    settings = {"widths": widths, "frames": frames, "side": side, "cores": count,
                "relative_errors": errors}
    title = f"a clip of {frames} frames, latents {side}x{side}, {count} cores"
    return report("clips", title, timed, "torch", settings, dict.fromkeys(TASKS, 1.0), save)


if __name__ == "__main__":
    tyro.cli(main)
