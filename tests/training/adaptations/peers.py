"""The training of PyTorch's networks, as diffusers' scripts have it, on given draws."""

import copy

import numpy as np
import peft
import torch

from sdjax.training.objectives.denoising import noised
from sdjax.weights.names import state_from_params


def to_torch(array):
    """NHWC as PyTorch has it."""
    array = np.asarray(array)
    return torch.from_numpy(array.transpose(0, 3, 1, 2).copy() if array.ndim == 4 else array.copy())


class Word(torch.nn.Module):
    """An embedding table with further rows of its own."""

    def __init__(self, table, vectors):
        super().__init__()
        self.table = table.weight.detach()
        self.vectors = torch.nn.Parameter(torch.from_numpy(np.array(vectors)))

    def forward(self, ids):
        return torch.nn.functional.embedding(ids, torch.cat([self.table, self.vectors]))


class Peer:
    """Networks of a diffusers pipeline, and the parameters that are trained, by our names."""

    def __init__(self, pipeline):
        self.parts = {
            name: copy.deepcopy(getattr(pipeline, name)).train(False)
            for name in ("unet", "vae", "text_encoder", "text_encoder_2")
            if getattr(pipeline, name, None) is not None
        }
        for network in self.parts.values():
            network.requires_grad_(False)
        self.scheduler = pipeline.scheduler
        self.trained = {}

    def take(self, params):
        """Puts the weights of a pipeline here into PyTorch's, those of few bits wide."""
        for part, own in params.items():
            named = dict(self.parts[part].named_parameters())
            for key, tensor in state_from_params(own).items():
                name = key if key in named else f"text_model.{key}"
                named[name].data = torch.from_numpy(np.array(tensor.load()))

    def train_all(self, tree):
        """Trains what the tree holds; values are taken from it."""
        for part, own in tree.items():
            named = dict(self.parts[part].named_parameters())
            for key, tensor in state_from_params(own).items():
                name = key if key in named else f"text_model.{key}"
                self._train(f"{part}.{key}", named[name], tensor.load())

    def train_lora(self, tree, rank, alpha, conv=None, dora=False):
        """Trains low-rank factors by peft."""
        for part, own in tree.items():
            state = state_from_params(own)
            modules = sorted({key.rpartition(".lora_")[0] for key in state if ".lora_" in key})
            ranks = {} if conv is None else {
                key.removesuffix(".lora_down.weight"): conv for key, tensor in state.items()
                if tensor.shape[2:] not in ((), (1, 1)) and key.endswith("lora_down.weight")
            }
            peft.inject_adapter_in_model(peft.LoraConfig(
                r=rank, lora_alpha=alpha, target_modules=modules, use_dora=dora,
                rank_pattern={name: values[0] for name, values in ranks.items()},
                alpha_pattern={name: values[1] for name, values in ranks.items()},
            ), self.parts[part])
            named = dict(self.parts[part].named_parameters())
            for key, tensor in state.items():
                theirs = (key.replace("lora_down", "lora_A.default")
                          .replace("lora_up", "lora_B.default")
                          .replace(".magnitude", ".lora_magnitude_vector.default.weight"))
                parameter = named[theirs]
                self._train(f"{part}.{key}", parameter, tensor.load().reshape(parameter.shape))

    def train_words(self, tree):
        """Trains rows of the text encoders' tables."""
        for part, vectors in tree.items():
            embeddings = self.parts[part].get_input_embeddings()
            word = Word(embeddings, vectors)
            self.parts[part].set_input_embeddings(word)
            self.trained[part] = word.vectors

    def train_controlnet(self, tree, network):
        """Trains a ControlNet of diffusers'."""
        network.requires_grad_(False)
        self.parts["controlnet"] = network.train(False)
        self.train_all(tree)

    def _train(self, name, parameter, value):
        value = torch.from_numpy(np.array(value, order="C"))
        assert parameter.shape == value.shape, name
        parameter.data = value
        parameter.requires_grad_(True)
        self.trained[name] = parameter

    def loss(self, objective, batch, keys, channels=None):
        """The mean squared error of the prediction, on the draws that ours makes of these keys.

        channels: beside x, from (peer) as torch has them.
        """
        mean = np.asarray(batch["mean"])
        scale = self.parts["vae"].config.scaling_factor
        latents = mean * np.float32(scale)
        given = noised(objective.config.denoising, objective.schedule, latents, keys)
        x_0, noise, t = to_torch(given.x_0), to_torch(given.noise), to_torch(given.t).long()
        x = self.scheduler.add_noise(x_0, noise, t)
        context, added = self.context(batch)
        residuals = {}
        if "controlnet" in self.parts:
            down, middle = self.parts["controlnet"](
                x, t, context, to_torch(batch["control"]), added_cond_kwargs=added,
                return_dict=False,
            )
            residuals = {"down_block_additional_residuals": down,
                         "mid_block_additional_residual": middle}
        if channels is not None:
            x = torch.cat([x, channels], dim=1)
        prediction = self.parts["unet"](
            x, t, context, added_cond_kwargs=added, return_dict=False, **residuals
        )[0]
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        target = self.scheduler.get_velocity(x_0, noise, t) if velocity else noise
        return torch.nn.functional.mse_loss(prediction, target)

    def context(self, batch):
        """What the U-Net attends to, and SDXL's further inputs."""
        ids = {
            part: torch.from_numpy(np.asarray(batch[name])).long()
            for part, name in (("text_encoder", "ids"), ("text_encoder_2", "ids_2"))
            if name in batch
        }
        if "ids_2" not in batch:
            return self.parts["text_encoder"](ids["text_encoder"])[0], None
        outputs = [self.parts[name](own, output_hidden_states=True) for name, own in ids.items()]
        context = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return context, {"text_embeds": outputs[-1][0],
                         "time_ids": torch.from_numpy(np.asarray(batch["time_ids"]))}
