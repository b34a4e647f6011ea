"""`data encode` of a recipe: its networks, then `encode`."""

from sdjax.errors import SdjaxError
from sdjax.folders import check_writable
from sdjax.parallel import Placement
from sdjax.stores import check_store, scheme_of
from sdjax.training.adaptations import Networks
from sdjax.training.objectives.latent import LatentRun
from sdjax.training.objectives.tuning import TuningRun
from sdjax.weights import VAE

from .base import based
from .encoded import encode


def encode_recipe(recipe, out: str, dtype: str = "float32") -> int:
    """Encodes the data of a recipe into `out`, see `encode`: by the model that it trains on top of,
    or by the autoencoder that it is given.
    """
    check_store(out)
    if scheme_of(out) is None:
        check_writable(out)
    if recipe.placement != Placement():
        raise SdjaxError("data encode puts a copy of the networks on each device: leave placement "
                         "out")
    if isinstance(recipe.diffusion, TuningRun):
        recipe, model = based(recipe)
        return encode(recipe, Networks.of(model), model.params, out, dtype)
    if isinstance(recipe.diffusion, LatentRun) and recipe.pretrained is not None:
        vae, params = VAE.from_pretrained(recipe.pretrained)
        recipe.check_autoencoder(vae.config)
        networks = Networks(None, vae, {}, {})
        return encode(recipe, networks, {"vae": params}, out, dtype)
    raise SdjaxError("data encode wants an autoencoder: a recipe on top of a model, or one from "
                     "noise with pretrained")
