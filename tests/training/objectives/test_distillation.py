"""Losses of distillations against their formulas, written down again in PyTorch: the papers' and
those of the public training examples, on the same draws."""

import copy
from types import SimpleNamespace

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import sdjax
from sdjax.training import DMD2, ECT, LCM, Progressive, TuningRun, adaptations
from sdjax.training.loop.step import image_keys
from sdjax.models.embeddings import sinusoidal_embedding
from sdjax.training.objectives.denoising import ScheduleConfig
from sdjax.training.objectives.distillation import Task
from sdjax.training.objectives.latent_loss import clean_latents
from sdjax.training.objectives.tuning import empty_ids, tuned
from sdjax.weights.names import state_from_params
from tests.pipeline import peers as pipelines
from tests.training.adaptations.peers import Peer, to_torch

BATCH, SIDE, WIDTH = 3, 8, 16
SCALES = (1.1, 1.4)
"""Of guidance where the student is told it: 1000·w is known to 1e-4 in float32 so."""
VELOCITY = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
            "_class_name": "DDIMScheduler"}


KINDS = ["small", pytest.param("unet", marks=pytest.mark.full)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """() -> a random model and its peer, made once."""
    made = []

    def make():
        if not made:
            folder = pipelines.make("sd1", tmp_path_factory.mktemp("sd1") / "model")
            made.append((sdjax.StableDiffusion.from_pretrained(folder),
                         Peer(pipelines.load("sd1", folder))))
        return made[0]

    return make


def column(values):
    """[b] as it multiplies latents."""
    return torch.as_tensor(np.array(values)).reshape(-1, 1, 1, 1)


class Both:
    """What PyTorch's side of any student needs."""

    def alpha_sigma(self, t):
        """√ᾱ and √(1 − ᾱ); t = −1 is the picture. Both as they are stored: 1 − ᾱ in float32 has
        lost digits where there is little noise."""
        return column(self.tables[0][t]), column(self.tables[1][t])

    def know(self, schedule):
        self.tables = [torch.from_numpy(np.append(np.array(table), end)) for table, end in (
            (schedule.sqrt_alphas_cumprod, np.float32(1)),
            (schedule.sqrt_one_minus_alphas_cumprod, np.float32(0)))]

    def x_0_and_noise(self, said, x, alpha, sigma):
        if self.velocity:
            return alpha * x - sigma * said, sigma * x + alpha * said
        return (x - sigma * said) / alpha, said

    def guided(self, x, t, scale):
        """Teacher's prediction as DMD2's and the LCM example's code asks for it."""
        with torch.no_grad():
            said = self.teacher(x, t, self.text)[0]
            nothing = self.teacher(x, t, self.empty)[0]
        return nothing + column(scale) * (said - nothing)

    def latents(self, array):
        return to_torch(np.asarray(array))


class TorchSmall(torch.nn.Module):
    """A network of one hidden layer at each place, called as diffusers' U-Net is."""

    def __init__(self, tree):
        super().__init__()
        for name, own in tree.items():
            layer = torch.nn.Linear(*own["kernel"].shape, bias=False)
            layer.weight.data = torch.from_numpy(np.array(own["kernel"]).T.copy())
            setattr(self, name, layer)
        self.mid_block = torch.nn.Identity()

    def forward(self, x, t, text, timestep_cond=None):
        beside = self.time(t.float()[:, None] / 1000) + self.text(text)
        if timestep_cond is not None:
            beside = beside + self.scale(timestep_cond)
        hidden = torch.tanh(self.mix(x.permute(0, 2, 3, 1)) + beside[:, None, None])
        hidden = self.mid_block(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return (self.out(hidden).permute(0, 3, 1, 2),)


def small(tree, x, t, text, told=None):
    """The same network here: (prediction, hidden layer)."""
    beside = (t[:, None] / 1000) @ tree["time"]["kernel"] + text @ tree["text"]["kernel"]
    if told is not None:
        beside = beside + told @ tree["scale"]["kernel"]
    hidden = jnp.tanh(x @ tree["mix"]["kernel"] + beside[:, None, None])
    return hidden @ tree["out"]["kernel"], hidden


class Small(Both):
    """A distillation of the small network, whose losses compile in no time."""

    def __init__(self, _, distillation, scheduler=None, **run):
        random = np.random.default_rng(0)
        self.velocity = scheduler is not None
        schedule = ScheduleConfig(zero_terminal_snr=self.velocity).build()
        self.know(schedule)
        self.method, hidden = distillation, 6

        def drawn():
            sizes = {"mix": 4, "time": 1, "text": 3, "out": hidden}
            if distillation.scale_embedding:
                sizes["scale"] = distillation.scale_embedding
            return {name: {"kernel": random.normal(
                size=(width, 4 if name == "out" else hidden)).astype(np.float32) / width**0.5}
                for name, width in sizes.items()}

        base = drawn()
        base.pop("scale", None)
        self.teacher = TorchSmall(base).requires_grad_(False)
        beside = distillation.beside(
            jax.random.key(0), {"unet": drawn()}, {"unet": base},
            SimpleNamespace(config=SimpleNamespace(block_out_channels=(hidden,))))
        if "fake" in beside:
            beside["fake"] = {**drawn()}
        self.params = {"student": {"unet": drawn()}, **beside}
        self.ema = {"student": {"unet": drawn()}}
        self.text = torch.from_numpy(random.normal(size=(BATCH, 3)).astype(np.float32))
        self.empty = torch.zeros(BATCH, 3)
        self.x_0 = random.normal(size=(BATCH, SIDE, SIDE, 4)).astype(np.float32)
        self.keys = image_keys(0, 0, 0, BATCH)
        text, empty = self.text.numpy(), self.empty.numpy()

        def student(tree, x, t, scale):
            told = None if scale is None else sinusoidal_embedding(
                1000 * (scale - 1), WIDTH, cosine_first=False, frequency_shift=1)
            return small(tree["unet"], x, t, text, told)[0]

        def teacher(x, t, scale):
            said = small(base, x, t, text)[0]
            nothing = small(base, x, t, empty)[0]
            return said if scale is None else (
                nothing + scale.reshape(-1, 1, 1, 1) * (said - nothing))

        def task(state):
            return Task(
                schedule, "v_prediction" if self.velocity else "epsilon", jnp.asarray(self.x_0),
                self.keys, student, teacher,
                lambda tree, x, t, middle: small(tree, x, t, text), state,
            )

        self.task = task({})
        self.program = jax.jit(jax.value_and_grad(
            lambda params, state: distillation.loss(task(state), params), has_aux=True))

    def ours(self, step=0):
        state = {"step": jnp.int32(step), "ema": self.ema}
        state = {name: state[name] for name in self.method.given}
        (loss, metrics), gradient = self.program(self.params, state)
        return loss, metrics, gradient

    def network(self, tree, width=None):
        return TorchSmall(tree)


def given_by(kind, model, *arguments, **options):
    """A `Small`, or a `Given` of random U-Nets."""
    return (Small if kind == "small" else Given)(
        None if kind == "small" else model(), *arguments, **options)


class Given(Both):
    """One distillation with its student moved off the teacher; ours and PyTorch's."""

    def __init__(self, model, distillation, adaptation=None, scheduler=None, **run):
        self.model, self.peer = model
        adaptation = adaptations.Full() if adaptation is None else adaptation
        config = TuningRun(adaptation=adaptation, distillation=distillation, **run)
        settings = self.model.scheduler_config | (scheduler or {})
        self.objective = tuned(config, adaptations.Networks.of(self.model), settings)
        base = {k: jax.tree.map(np.asarray, v) for k, v in self.model.params.items()}
        frozen = {**base, **empty_ids(self.objective.networks)}
        random = np.random.default_rng(0)

        def moved(tree):
            return jax.tree.map(
                lambda x: x + np.float32(0.02) * random.normal(size=x.shape).astype(np.float32),
                tree)

        begun = self.objective.init(jax.random.key(0), frozen)
        self.params, self.ema = moved(begun), moved(begun)
        self.begun, self.frozen = begun, self.objective.kept(frozen)
        tokenizer = self.model.tokenizers[0]
        mean = random.normal(size=(BATCH, SIDE, SIDE, 4)).astype(np.float32)
        self.batch = {"mean": mean, "std": np.zeros_like(mean),
                      "ids": tokenizer.encode(["a large red circle", "a blue square", "red"])}
        self.keys = image_keys(0, 0, 0, BATCH)
        self.x_0 = clean_latents(self.model.vae, frozen, self.batch, self.keys)
        self.task = self.objective.task(
            self.params, self.frozen, self.batch, self.keys, self.x_0, {})
        self.program = jax.jit(jax.value_and_grad(self.objective.loss, has_aux=True))
        noise = diffusers.DDIMScheduler.from_config(settings)
        self.know(self.objective.within.schedule)
        torch.testing.assert_close(
            self.tables[0][:-1] ** 2, noise.alphas_cumprod, atol=2e-5, rtol=2e-5)
        self.velocity = settings["prediction_type"] == "v_prediction"
        self.teacher = self.peer.parts["unet"]
        ids = torch.from_numpy(np.asarray(self.batch["ids"])).long()
        empty = torch.from_numpy(np.asarray(frozen["empty_ids"])).long()
        with torch.no_grad():
            self.text = self.peer.parts["text_encoder"](ids)[0]
            self.empty = self.peer.parts["text_encoder"](empty.expand_as(ids))[0]

    def ours(self, step=0):
        state = {"step": jnp.int32(step), "ema": self.ema}
        given = {name: state[name] for name in self.objective.given}
        (loss, metrics), gradient = self.program(
            self.params, {**self.frozen, **given}, self.batch, self.keys)
        return loss, metrics, gradient

    def network(self, tree, width=None):
        """PyTorch's U-Net with the parameters of a tree, all trained."""
        unet = diffusers.UNet2DConditionModel.from_config(
            self.teacher.config, time_cond_proj_dim=width).train(False)
        unet.load_state_dict({k: torch.from_numpy(np.array(v.load(), order="C"))
                              for k, v in state_from_params(tree).items()})
        return unet


def check(loss, wanted, gradient, networks):
    """Loss within 1e-5, and the gradient of each parameter within 1e-4 of it."""
    assert float(loss) == pytest.approx(wanted.item(), rel=1e-5)
    for name, network in networks.items():
        found = state_from_params(gradient[name])
        named = {k: p.grad for k, p in network.named_parameters()}
        assert set(found) == set(named)
        whole = np.sqrt(sum(float((g**2).sum()) for g in named.values() if g is not None))
        for key, expected in named.items():
            ours = found[key].load()
            expected = np.zeros_like(ours) if expected is None else expected.numpy()
            error = np.linalg.norm(ours - expected)
            assert error <= 1e-4 * max(np.linalg.norm(expected), 1e-3 * whole), key


def embedding(w, width):
    """The example's embedding of w: sines, then cosines, of 1000·w.

    Ours is compared and then taken: angles of hundreds are known to 1e-4 at best.
    """
    rates = torch.exp(torch.arange(width // 2) * -(np.log(10000.0) / (width // 2 - 1)))
    angles = 1000 * torch.as_tensor(np.array(w))[:, None] * rates
    wanted = torch.cat([angles.sin(), angles.cos()], dim=1)
    ours = sinusoidal_embedding(1000 * w, width, cosine_first=False, frequency_shift=1)
    np.testing.assert_allclose(ours, wanted, atol=1e-3)
    return torch.from_numpy(np.array(ours))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheduler", [None, VELOCITY], ids=["epsilon", "velocity"])
def test_lcm_is_its_formula(model, kind, scheduler):
    method = LCM(scale_embedding=WIDTH, guidance_scale=SCALES)
    given = given_by(kind, model, method, scheduler=scheduler)
    loss, _, gradient = given.ours()
    index = np.asarray(given.task.whole("level", 0, 50))
    scale = np.asarray(given.task.scale(SCALES))
    assert ((scale >= SCALES[0]) & (scale <= SCALES[1])).all()
    noise, x_0 = given.latents(given.task.noise()), given.latents(given.x_0)

    # w = scale − 1: the teacher's step is c + w·(c − u).
    grid = np.round(np.arange(1, 51) * 20).astype(int) - 1
    start = torch.from_numpy(grid[index])
    end = torch.clamp(start - 20, min=0)
    alpha, sigma = given.alpha_sigma(start)
    z = alpha * x_0 + sigma * noise
    told = embedding(scale - np.float32(1), WIDTH)

    def boundary(t):
        t = column(t.numpy().astype(np.float32)) * 10.0
        return 0.25 / (t**2 + 0.25), t / (t**2 + 0.25) ** 0.5

    def f(network, x, t):
        said = network(x, t, given.text, timestep_cond=told)[0]
        skip, out = boundary(t)
        return skip * x + out * given.x_0_and_noise(said, x, *given.alpha_sigma(t))[0]

    student = given.network(given.params["student"]["unet"], WIDTH)
    target = given.network(given.ema["student"]["unet"], WIDTH)
    found = f(student, z, start)
    clean, direction = given.x_0_and_noise(given.guided(z, start, scale), z, alpha, sigma)
    before = torch.from_numpy(np.concatenate([[0], grid[:-1]])[index])
    less, rest = given.alpha_sigma(before)
    further = less * clean + rest * direction
    with torch.no_grad():
        wanted = f(target, further, end)
    expected = (torch.sqrt((found - wanted) ** 2 + 0.001**2) - 0.001).mean()
    expected.backward()
    check(loss, expected, {"unet": gradient["student"]["unet"]}, {"unet": student})


@pytest.mark.full
def test_lcm_of_a_lora_has_itself_as_target(model):
    lora = adaptations.LoRA(rank=2, targets=("attn2.to_k", "attn2.to_q"))
    given = Given(model(), LCM(target="online", distance="l2"), lora)
    loss, _, gradient = given.ours()
    index, scale = np.asarray(given.task.whole("level", 0, 50)), given.task.scale((6.0, 16.0))
    noise, x_0 = given.latents(given.task.noise()), given.latents(given.x_0)
    peer = Peer.__new__(Peer)
    peer.parts, peer.trained = {"unet": copy.deepcopy(given.teacher)}, {}
    peer.train_lora(given.params["student"], 2, 16.0)
    start = torch.from_numpy(20 * (index + 1) - 1)
    end = torch.clamp(start - 20, min=0)
    (alpha, sigma), (lower, less) = given.alpha_sigma(start), given.alpha_sigma(end)
    z = alpha * x_0 + sigma * noise

    def f(x, t):
        clean, _ = given.x_0_and_noise(
            peer.parts["unet"](x, t, given.text)[0], x, *given.alpha_sigma(t))
        tau = 10.0 * column(t.numpy().astype(np.float32))
        return 0.25 / (tau**2 + 0.25) * x + tau / torch.sqrt(tau**2 + 0.25) * clean

    clean, direction = given.x_0_and_noise(given.guided(z, start, scale), z, alpha, sigma)
    with torch.no_grad():
        wanted = f(lower * clean + less * direction, end)
    expected = ((f(z, start) - wanted) ** 2).mean()
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    found = state_from_params(gradient["student"]["unet"])
    for key, parameter in peer.trained.items():
        error = np.linalg.norm(found[key.removeprefix("unet.")].load() - parameter.grad.numpy())
        assert error <= 1e-4 * np.linalg.norm(parameter.grad), key


@pytest.mark.parametrize("kind", KINDS)
def test_progressive_is_its_formula_in_every_stage(model, kind):
    method = Progressive(start_steps=8, round_steps=4, guidance_steps=2, guidance_scale=SCALES,
                         scale_embedding=WIDTH)
    given = given_by(kind, model, method, scheduler=VELOCITY, steps=10)
    scale = np.asarray(given.task.scale(SCALES))
    told = embedding(scale - np.float32(1), WIDTH)
    noise, x_0 = given.latents(given.task.noise()), given.latents(given.x_0)
    level = given.alpha_sigma

    def say(network, x, t):
        said = network(x, torch.clamp(t, min=0), given.text, timestep_cond=told)[0]
        return given.x_0_and_noise(said, x, *level(t))

    def trailing(numbers, steps):
        return torch.from_numpy(np.round(np.asarray(numbers) * 1000 / steps).astype(int) - 1)

    for step, steps in ((1, None), (5, 4), (9, 2)):
        loss, _, gradient = given.ours(step)
        student = given.network(given.params["student"]["unet"], WIDTH)
        teacher = given.network(given.params["teacher"]["unet"], WIDTH)
        if steps is None:
            t = torch.from_numpy(np.array(given.task.whole("renoise", 0, 1000))).long()
            alpha, sigma = level(t)
            z = alpha * x_0 + sigma * noise
            wanted = given.x_0_and_noise(given.guided(z, t, scale), z, alpha, sigma)[0]
        else:
            i = np.asarray(given.task.whole("level", 0, steps)) + 1
            t, middle, end = (trailing(n, 2 * steps) for n in (2 * i, 2 * i - 1, 2 * i - 2))
            alpha, sigma = level(t)
            z = alpha * x_0 + sigma * noise
            with torch.no_grad():
                clean, direction = say(teacher, z, t)
                half = level(middle)[0] * clean + level(middle)[1] * direction
                clean, direction = say(teacher, half, middle)
            last, less = level(end)
            reached = last * clean + less * direction
            wanted = (reached - less / sigma * z) / (last - less / sigma * alpha)
        found, _ = say(student, z, t)
        weight = torch.clamp(alpha**2 / sigma**2, min=1)
        expected = (weight * (found - wanted) ** 2).mean()
        expected.backward()
        check(loss, expected, {"unet": gradient["student"]["unet"]}, {"unet": student})
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["teacher"]))


@pytest.mark.parametrize("kind", KINDS)
def test_progressive_without_a_first_stage_takes_the_guided_models_steps(model, kind):
    method = Progressive(start_steps=4, round_steps=4, guidance_scale=(3.0, 3.0),
                         weighting="snr_plus_one")
    given = given_by(kind, model, method, steps=4)
    loss, metrics, gradient = given.ours(0)
    assert metrics["student_steps"] == 2
    i = np.asarray(given.task.whole("level", 0, 2)) + 1
    t, middle, end = (torch.from_numpy(250 * n - 1) for n in (2 * i, 2 * i - 1, 2 * i - 2))
    noise, x_0 = given.latents(given.task.noise()), given.latents(given.x_0)
    scale = np.full(BATCH, 3, np.float32)
    (a, s), (am, sm), (ae, se) = (given.alpha_sigma(n) for n in (t, middle, end))
    z = a * x_0 + s * noise
    clean, direction = given.x_0_and_noise(given.guided(z, t, scale), z, a, s)
    half = am * clean + sm * direction
    clean, direction = given.x_0_and_noise(given.guided(half, middle, scale), half, am, sm)
    reached = ae * clean + se * direction
    wanted = (reached - se / s * z) / (ae - se / s * a)
    student = given.network(given.params["student"]["unet"])
    found, _ = given.x_0_and_noise(student(z, t, given.text)[0], z, a, s)
    expected = ((a**2 / s**2 + 1) * (found - wanted) ** 2).mean()
    expected.backward()
    check(loss, expected, {"unet": gradient["student"]["unet"]}, {"unet": student})


@pytest.mark.parametrize("kind", KINDS)
def test_ect_is_its_formula_in_two_stages(model, kind):
    given = given_by(kind, model, ECT(double_every=5, huber_c=0.03))
    normal = np.asarray(given.task.draw("level", jax.random.normal))
    noise, x_0 = given.latents(given.task.noise()), given.latents(given.x_0)
    known = (given.tables[1] / given.tables[0])[:-1].numpy()
    sigma = np.clip(np.exp(-1.1 + 2.0 * normal), known[0], known[-1]).astype(np.float32)
    for step, stage in ((4, 0), (12, 2)):
        loss, metrics, gradient = given.ours(step)
        assert metrics["stage"] == stage
        # t_to_r of the authors' code, q = 2, k = 8, b = 1.
        t = torch.from_numpy(sigma)
        r = torch.clamp(t * (1 - (1 + 8 * torch.sigmoid(-t)) / 2 ** (stage + 1)), min=0)
        student = given.network(given.params["student"]["unet"])

        def denoised(sigma, student=student):
            at = np.interp(np.log(np.maximum(sigma.numpy(), 1e-9)), np.log(known), np.arange(1000))
            alpha = 1 / torch.sqrt(1 + column(sigma) ** 2)
            x = alpha * (x_0 + column(sigma) * noise)
            said = student(x, torch.from_numpy(at).float(), given.text)[0]
            return given.x_0_and_noise(said, x, alpha, alpha * column(sigma))[0]

        with torch.no_grad():
            wanted = denoised(r)
            wanted = torch.where(column(r) > 0, wanted, x_0)
        square = ((denoised(t) - wanted) ** 2).flatten(1).sum(1)
        expected = ((torch.sqrt(square + 0.03**2) - 0.03) / (t - r)).mean()
        expected.backward()
        check(loss, expected, {"unet": gradient["student"]["unet"]}, {"unet": student})


class TorchJudge(torch.nn.Module):
    """The judge, written down again."""

    def __init__(self, tree):
        super().__init__()
        channels = tree["norm_0"]["scale"].shape[0]
        for i in range(2):
            own = torch.nn.Conv2d(channels, channels, 4, stride=2, padding=2)
            setattr(self, f"conv_{i}", own)
            setattr(self, f"norm_{i}", torch.nn.GroupNorm(1, channels, eps=1e-6))
        self.out = torch.nn.Linear(channels, 1)
        self.load_state_dict({k: torch.from_numpy(np.array(v.load(), order="C"))
                              for k, v in state_from_params(tree).items()})

    def forward(self, x):
        for i in range(2):
            x = getattr(self, f"norm_{i}")(getattr(self, f"conv_{i}")(x))
            x = torch.nn.functional.silu(x)
        return self.out(x.mean((2, 3)))[:, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_dmd2_is_its_formula_with_a_judge_and_between_the_students_updates(model, kind):
    method = DMD2(steps=2, guidance_scale=(3.0, 3.0), student_every=2, gan_weight=0.1,
                  judge_weight=0.5)
    given = given_by(kind, model, method)
    task = given.task
    taken = np.asarray(task.whole("level", 0, 2))
    assert set(taken) == {0, 1}
    first, x_0 = given.latents(task.noise()), given.latents(given.x_0)
    keys = task.draw("renoise", lambda key: key)
    again = given.latents(jax.vmap(lambda key: jax.random.normal(
        jax.random.fold_in(key, 0), (SIDE, SIDE, 4)))(keys))
    t_match = torch.from_numpy(np.array(task.whole("match", 20, 981))).long()
    t_fake = torch.from_numpy(np.array(task.whole("fake", 0, 1000))).long()
    t_judge = torch.from_numpy(np.array(task.whole("judge", 0, 1000))).long()
    match, fake_noise = given.latents(task.noise("real")), given.latents(task.noise("fake"))
    for step in (0, 1):
        loss, metrics, gradient = given.ours(step)
        student = given.network(given.params["student"]["unet"])
        fake = given.network(given.params["fake"])
        judge = TorchJudge(given.params["judge"])
        late = torch.full((BATCH,), 999)
        early = torch.full((BATCH,), 499)

        def make(network, x, t):
            return given.x_0_and_noise(network(x, t, given.text)[0], x, *given.alpha_sigma(t))[0]

        with torch.no_grad():
            z = first
            alpha, sigma = given.alpha_sigma(early)
            renoised = alpha * make(student, z, late) + sigma * again
        one = torch.from_numpy(taken == 1)
        x = torch.where(column(one), renoised, z)
        t = torch.where(one, early, late)
        picture = make(student, x, t)

        def denoise(network, picture, t, noise):
            alpha, sigma = given.alpha_sigma(t)
            noisy = alpha * picture + sigma * noise
            said = network(noisy, t, given.text)[0]
            return said, given.x_0_and_noise(said, noisy, alpha, sigma)[0], noisy

        def judged(fake, judge, picture, noise):
            kept = []
            hook = fake.mid_block.register_forward_hook(lambda *found: kept.append(found[2]))
            denoise(fake, picture, t_judge, noise)
            hook.remove()
            return judge(kept[0])

        softplus = torch.nn.functional.softplus
        said, _, _ = denoise(fake, picture.detach(), t_fake, fake_noise)
        own = ((said - fake_noise) ** 2).mean()
        verdict = softplus(-judged(fake, judge, x_0, match)).mean() + softplus(
            judged(fake, judge, picture.detach(), fake_noise)).mean()
        fixed, still = copy.deepcopy(fake), copy.deepcopy(judge)
        for network in (fixed, still):
            network.requires_grad_(False)
        expected = own + 0.5 * verdict
        if step == 0:
            with torch.no_grad():
                _, p_fake, noisy = denoise(fixed, picture, t_match, match)
                real = given.guided(noisy, t_match, np.full(BATCH, 3, np.float32))
                p_real = given.x_0_and_noise(real, noisy, *given.alpha_sigma(t_match))[0]
                push = (picture - p_real) - (picture - p_fake)
                push = push / (picture - p_real).abs().mean((1, 2, 3), keepdim=True)
            matching = 0.5 * torch.nn.functional.mse_loss(picture, (picture - push).detach())
            expected = expected + matching + 0.1 * softplus(
                -judged(fixed, still, picture, fake_noise)).mean()
        expected.backward()
        check(loss, expected, {"unet": gradient["student"]["unet"], "fake": gradient["fake"],
                               "judge": gradient["judge"]},
              {"unet": student, "fake": fake, "judge": judge})
        assert float(metrics["fake"]) == pytest.approx(own.item(), rel=1e-5)
