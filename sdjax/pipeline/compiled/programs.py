"""From noise to latents: the sampler's table carried out by the networks."""

import functools
import itertools

import jax
import jax.numpy as jnp

from sdjax import diffusion, parallel
from sdjax.diffusion.guidance import per_item, rescaled
from sdjax.models.embeddings import sinusoidal_embedding
from sdjax.models.ip_adapter import placed
from sdjax.pipeline.compiled.arrays import Deep, Images, Networks, Seen, Settings
from sdjax.windows import over_windows


def begin(deep: Deep | None, table: diffusion.Table, x: jax.Array) -> diffusion.Underway:
    """What `noise_to_latents` goes on from, of unit-variance x [N, h, w, C].

    deep: of features that evaluations share, None where they share none.
    """
    evaluation = jnp.zeros(len(x), jnp.int32)
    if deep is None:
        return diffusion.begin(table, x, evaluation)
    shape = len(x), deep.branches, *x.shape[1:3], deep.channels
    return diffusion.begin(table, x, (evaluation, jnp.zeros(shape, deep.dtype)))


def noise_to_latents(
    networks: Networks,
    across: bool,
    params,
    settings: Settings,
    images: Images,
    latents: diffusion.Underway,
    remat: bool = False,
) -> diffusion.Underway:
    """Runs the sampler's table on latents [N, h, w, C], which end in the U-Net's scale.

    across: see `Place`. remat: whether a gradient computes the predictions of each evaluation anew
    and keeps only x. params: {"unet": a tree, "controls": a tuple of trees}. latents: from
    `begin`, or where an earlier part of the table left them.
    """
    count, branches = images.branches.which.shape[:2]
    denoise = functools.partial(_predictions, networks, params, images)
    if settings.reuse_every is None:
        predicted = _each_time(denoise)
    else:
        predicted = _with_deep(denoise, settings.reuse_every)
    if remat:
        predicted = jax.checkpoint(predicted)

    def guided(x, t, state):
        predictions, state = predicted(x, t, state)
        predictions = predictions.reshape(count, branches, *x.shape[1:])
        if across:
            everywhere = jax.lax.all_gather(predictions[:, 0], parallel.AXIS)
            even = jax.lax.axis_index(parallel.AXIS) // 2 * 2
            predictions = jnp.stack([everywhere[even], everywhere[even + 1]], axis=1)
        if images.weights is None:
            return predictions[:, 0], state
        return _combined(predictions, images.weights, settings.guidance_rescale), state

    def keep(x, level):
        mask, x_0, noise = images.kept
        signal, rest = (per_item(level[..., i], x) for i in (0, 1))
        return (1 - mask) * (signal * x_0 + rest * noise) + mask * x

    noise = None if images.noise is None else jnp.swapaxes(images.noise, 0, 1)
    return diffusion.sample(
        guided,
        settings.table,
        latents,
        images.keys,
        noise=noise,
        keep=None if images.kept is None else keep,
        axis_name=parallel.AXIS if across else None,
    )


def _each_time(denoise):
    """(x, t, evaluation) -> (predictions, the next evaluation)."""
    return lambda x, t, evaluation: (denoise(x, t, evaluation), evaluation + 1)


def _with_deep(denoise, every):
    """The same with a state of the evaluation and the deep features [N, B, h, w, C] of the last
    whole one: each image's evaluations 0, every, 2 · every, … are whole.
    """

    def predicted(x, t, state):
        evaluation, deep = state
        due = evaluation % every == 0
        known = deep.reshape(-1, *deep.shape[2:])

        def shallow():
            return denoise(x, t, evaluation, deep=known)

        def whole():
            found, left = denoise(x, t, evaluation, keeps_deep=True)
            left = left.reshape(deep.shape)

            def mixed():  # images of other tables than their neighbours'
                of_each = jnp.repeat(due, deep.shape[1])
                own = jnp.where(per_item(of_each, found), found, shallow())
                return own, jnp.where(per_item(due, deep), left, deep)

            return jax.lax.cond(due.all(), lambda: (found, left), mixed)

        predictions, deep = jax.lax.cond(due.any(), whole, lambda: (shallow(), deep))
        return predictions, (evaluation + 1, deep)

    return predicted


def _predictions(networks: Networks, params, images: Images, x, t, evaluation, **deep):
    """The network's predictions [N · B, h, w, C] for x [N, h, w, C]: each branch of each image.

    deep: of the U-Net, with what it returns then.
    """
    prompt, which, time_ids, channels, controls, features, references = images.branches
    count, branches = which.shape[:2]

    def flat(array):
        array = jnp.broadcast_to(array, (count, branches, *array.shape[2:]))
        return array.reshape(count * branches, *array.shape[2:])

    def repeated(array):
        return jnp.repeat(array, branches, axis=0)

    def current_of(values):
        return jnp.take_along_axis(values, evaluation[:, None, None], axis=2).reshape(-1)

    t, text = repeated(jnp.broadcast_to(t, count)), current_of(which)

    def current(leaf):
        leaf = flat(leaf)
        return leaf[:, 0] if leaf.shape[1] == 1 else leaf[jnp.arange(len(text)), text]

    context, pooled = jax.tree.map(current, prompt)
    added = distilled = None
    if time_ids is not None:
        added = {"time_ids": flat(time_ids)}
        added |= {} if pooled is None else {"text_embeds": pooled}
    if networks.unet.config.time_cond_proj_dim is not None:
        # A network distilled with guidance takes its scale as an input (arXiv 2210.03142).
        distilled = sinusoidal_embedding(
            repeated(1000 * (images.guidance_scale - 1)),
            networks.unet.config.time_cond_proj_dim,
            cosine_first=False,
            frequency_shift=1,
        )
    labels = None if images.labels is None else repeated(images.labels)
    if networks.unet.config.class_embed_type == "simple_projection":
        labels = pooled  # all that the prompt is to such a network
    shown: tuple[jax.Array, ...] = ()
    for one in features:
        scale = current_of(one.scale).reshape(-1, *(1,) * (x.ndim - 1))
        own = tuple(scale * flat(level) for level in one.levels)
        shown = tuple(itertools.starmap(jnp.add, itertools.zip_longest(shown, own, fillvalue=0)))
    variables, looked_at = {"params": params["unet"]}, {}
    if references:
        layers = [jax.tree.map(flat, one.layers) for one in references]
        counts = [current_of(one.scale) for one in references]
        looked_at = {"references": placed(networks.unet.config, layers, counts)}
    scales = [current_of(control.scale)[:, None] * flat(control.layers) for control in controls]

    def seen(places: Seen):
        """The predictions for a window of the latents."""
        x, residuals = places.x, None
        frames = x.shape[1:-3]  # none of a picture

        def folded(array):
            return array.reshape(-1, *array.shape[1 + len(frames) :])

        def each(array):
            return jnp.repeat(array, frames[0], axis=0) if frames else array
        for network, weights, scale, picture in zip(
            networks.controls, params["controls"], scales, places.pictures, strict=True
        ):
            given = folded(x), *jax.tree.map(each, (t, context)), folded(picture)
            own = network.apply({"params": weights}, *given, jax.tree.map(each, added))
            *down, middle = (
                residual * each(scale[:, i]).reshape(-1, 1, 1, 1)
                for i, residual in enumerate((*own[0], own[1]))
            )
            own = tuple(down), middle
            residuals = own if residuals is None else jax.tree.map(jnp.add, residuals, own)
        if places.channels is not None:
            x = jnp.concatenate([x, places.channels], axis=-1)
        known = {**variables, **jax.tree.map(each, looked_at)}
        features = jax.tree.map(folded, places.features)
        return networks.unet.apply(
            known, x, t, context, added, distilled, labels, residuals, features, **deep
        )

    places = Seen(
        repeated(x),
        None if channels is None else flat(channels),
        tuple(flat(control.picture) for control in controls),
        shown,
    )
    return over_windows(seen, places, networks.windows, "even")


def _combined(predictions, weights, rescale) -> jax.Array:
    """Guidance over the branches of predictions [N, B, h, w, C]: [N, h, w, C]."""
    first, others = predictions[:, 0], predictions[:, 1:]
    guided = first + (weights * (others - first[:, None])).sum(axis=1)
    if others.shape[1] == 1:
        conditional = others[:, 0]
    else:
        total = weights.sum(axis=1, keepdims=True)
        shares = weights / jnp.where(total == 0, 1, total)
        conditional = first + (shares * (others - first[:, None])).sum(axis=1)
    return rescaled(guided, conditional, rescale)
