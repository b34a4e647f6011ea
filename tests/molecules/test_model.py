"""EDM's loss and sampler against its formulas, and the model around them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.errors import SdjaxError
from sdjax.molecules import sampling
from sdjax.training import DenoisingConfig, ScheduleConfig
from sdjax.training.loop.step import image_keys
from sdjax.training.objectives.denoising import noised
from sdjax.training.objectives.molecules import MoleculeObjective
from sdjax.weights.names import state_from_params
from tests.molecules.small import small_model, small_run

SIZES = np.array([5, 3, 4])
MASK = (np.arange(5) < SIZES[:, None])[..., None].astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return small_model()


def edm_levels(steps, precision=1e-5):
    """α and σ of e3_diffusion_for_molecules at t = 0 … T, in float64."""
    x = np.arange(steps + 1) / steps
    squares = (1 - x**2) ** 2
    squares = np.cumprod(np.append(1.0, np.clip(squares[1:] / squares[:-1], 0.001, 1)))
    squares = (1 - 2 * precision) * squares + precision
    return np.sqrt(squares), np.sqrt(1 - squares)


def centred(x, mask):
    places = x[..., :3] - (x[..., :3] * mask).sum(1, keepdims=True) / mask.sum(1, keepdims=True)
    return np.concatenate([places, x[..., 3:]], -1) * mask


def drawn(seed, width=9):
    x = np.random.default_rng(seed).standard_normal((3, 5, width)).astype(np.float32)
    return centred(x, MASK).astype(np.float32)


def test_the_loss_is_edms():
    """½·Σ(ε − ε̂)²/(9·N) at t > 0; at t = 0, where features are read from z₀, places' alone."""
    run = small_run(denoising=DenoisingConfig(
        ScheduleConfig("polynomial_2", num_timesteps=2), "epsilon", stratified=False))
    objective, keys = MoleculeObjective(run), image_keys(0, 0, 0, 3)
    params, x = objective.init(jax.random.key(0)), drawn(0)
    found, _ = jax.jit(objective.loss)(params, {}, {"x": x, "mask": MASK}, keys)
    given = noised(run.denoising, run.denoising.schedule.build(), x, keys,
                   project=sampling.projection(MASK))
    noise, t = np.asarray(given.noise, np.float64), np.asarray(given.t)
    assert set(t) == {0, 1}, "both kinds are looked at"
    np.testing.assert_allclose(noise, centred(noise, MASK), atol=1e-6)
    alpha, sigma = (level[t][:, None, None] for level in edm_levels(1))
    z = alpha * x + sigma * noise
    np.testing.assert_allclose(given.x_t, z, atol=1e-5)
    predicted = sampling.predict(run.network, params["egnn"], z.astype(np.float32),
                                 jnp.asarray(t / 1.0), jnp.asarray(MASK))
    error = (noise - np.asarray(predicted)) ** 2
    error[t == 0, :, 3:] = 0
    wanted = 0.5 * error.sum((1, 2)) / (9 * 5)
    np.testing.assert_allclose(found, wanted.mean(), rtol=1e-5)


def test_a_trajectory_is_edms(model):
    """z_s = z_t/α_ts − σ²_ts/(α_ts σ_t)·ε̂ + σ_ts σ_s/σ_t·ε, in float64 with the same noise; at the
    end x from x̂₀ and features from z₀.
    """
    steps = 20
    alpha, sigma = edm_levels(steps)
    table = model.table()
    keys = jax.random.split(jax.random.key(3), 3)
    predict = jax.jit(lambda x, t: sampling.predict(
        model.network, model.params, x, t / steps, jnp.asarray(MASK)))
    found = jax.jit(lambda keys: sampling.sample(
        model.network, model.params, table, jnp.float32(steps), jnp.asarray(MASK), None, keys, 9)
    )(keys)

    def noise(number):
        key = [jax.random.fold_in(key, number[0]) for key in keys]
        key = key if len(number) == 1 else [jax.random.fold_in(k, number[1]) for k in key]
        return centred(np.stack([jax.random.normal(k, (5, 9)) for k in key]).astype(float), MASK)

    z = noise((0,))
    for row, t in enumerate(range(steps, 0, -1)):
        s = t - 1
        kept = alpha[t] / alpha[s]
        added = 1 - kept**2
        predicted = np.asarray(predict(z.astype(np.float32), jnp.float32(t)), float)
        z = z / kept - added / (kept * sigma[t]) * predicted
        z = z + np.sqrt(added) * sigma[s] / sigma[t] * noise((1, row))
        z = centred(z, MASK)
    predicted = np.asarray(predict(z.astype(np.float32), jnp.float32(0)), float)
    x = (z - sigma[0] * predicted) / alpha[0]
    scale = np.abs(x).max()
    np.testing.assert_allclose(found[..., :3] / scale, x[..., :3] / scale, atol=2e-5)
    np.testing.assert_allclose(found[..., 3:] / scale, z[..., 3:] / alpha[0] / scale, atol=2e-5)
    assert np.abs((np.asarray(found)[..., :3]).sum(1)).max() < 1e-4 * scale


def test_a_molecule_depends_on_its_seed_alone(model):
    together = model.generate(3, seed=5)
    assert [len(one.numbers) for one in together] == model.drawn(3, seed=5)[0].tolist()
    for seed in (5, 7):
        (alone,) = model.generate(1, seed=seed)
        other = together[seed - 5]
        assert alone.symbols == other.symbols
        np.testing.assert_allclose(alone.positions, other.positions, atol=1e-4)


def test_sampler_steps_and_sizes_are_traced(model):
    model.generate(2, seed=0)
    before = model._program.__closure__
    with jax.log_compiles():
        count = compiled(lambda: [
            model.generate(2, seed=3, sampler="unipc", steps=5),
            model.generate(2, seed=4, sampler="ddim", steps=10, atoms=3),
        ])
    assert before == model._program.__closure__ and not count


def compiled(function):
    """How many programs of a name of ours `function` compiles."""
    import logging

    found = []

    class Count(logging.Handler):
        def emit(self, record):
            if "Compiling made" in record.getMessage() or "pmap(made)" in record.getMessage():
                found.append(record.getMessage())

    handler = Count()
    logging.getLogger("jax").addHandler(handler)
    try:
        function()
    finally:
        logging.getLogger("jax").removeHandler(handler)
    return len(found)


def test_it_is_saved_and_read(model, tmp_path):
    model.save_pretrained(tmp_path)
    other = sdjax.MoleculeDiffusion.from_pretrained(tmp_path)
    for name in ("features", "sizes", "sampler", "steps", "condition", "scheduler"):
        assert getattr(other, name) == getattr(model, name), name
    for one, two in zip(model.generate(2), other.generate(2)):
        np.testing.assert_array_equal(one.positions, two.positions)


def test_a_property_is_asked_for(tmp_path):
    model = small_model(condition=True)
    model.save_pretrained(tmp_path)
    other = sdjax.MoleculeDiffusion.from_pretrained(tmp_path)
    assert other.condition == model.condition
    sizes, values = other.drawn(50)
    assert set(sizes) == {3, 5} and values.min() >= 0 and values.max() <= 2
    np.testing.assert_allclose(other.condition.told([2.0]), [[2.0]])
    low, high = (other.generate(1, value=value)[0] for value in (0.0, 2.0))
    assert np.abs(low.positions - high.positions).max() > 1e-3


def test_edms_own_file_is_read(tmp_path):
    """As `torch.save` writes the state dict of its EnVariationalDiffusion."""
    torch = pytest.importorskip("torch")
    run = small_run(egnn=dataclasses.replace(small_run().egnn, hidden_nf=6, n_layers=2))
    params = MoleculeObjective(run).init(jax.random.key(1))["egnn"]
    alpha, sigma = edm_levels(20)
    state = {f"dynamics.egnn.{key}": torch.tensor(np.array(tensor.load()))
             for key, tensor in state_from_params(params).items()}
    state["gamma.gamma"] = torch.tensor(np.log(sigma**2 / alpha**2), dtype=torch.float32)
    state["buffer"] = torch.zeros(1)
    path = tmp_path / "generative_model_ema.npy"
    torch.save(state, path)
    model = sdjax.MoleculeDiffusion.from_pretrained(path)
    assert model.network.config == run.network.config and model.features == run.features
    np.testing.assert_allclose(model.schedule.alphas_cumprod, alpha**2, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
    assert model.steps == 21 and model.largest == 29

    state["gamma.l1.weight"] = torch.ones(1, 1)
    torch.save(state, path)
    with pytest.raises(SdjaxError, match="a learned noise schedule"):
        sdjax.MoleculeDiffusion.from_pretrained(path)
    torch.save({"unet.weight": torch.ones(1)}, path)
    with pytest.raises(SdjaxError, match="no EGNN was found"):
        sdjax.MoleculeDiffusion.from_pretrained(path)


@pytest.mark.parametrize(("options", "said"), [
    ({"count": 0}, "count must be at least 1"), ({"atoms": 0}, "atoms must be at least 1"),
    ({"value": 1.0}, "not trained on a property"), ({"steps": 50}, "steps"),
    ({"sampler": "unipcc"}, "unipcc"), ({"batch_size": 0}, "batch_size"),
])
def test_what_cannot_be_asked_for(model, options, said):
    with pytest.raises(SdjaxError, match=said):
        model.generate(**options)


def test_a_folder_of_another_model_is_named(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(SdjaxError, match="holds a StableDiffusionPipeline, expected a Molecule"):
        sdjax.MoleculeDiffusion.from_pretrained(tmp_path)


def test_a_damaged_folder_is_named(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "molecules.json").write_text('{"features": {}}')
    with pytest.raises(SdjaxError, match="molecules.json is not what"):
        sdjax.MoleculeDiffusion.from_pretrained(tmp_path)
