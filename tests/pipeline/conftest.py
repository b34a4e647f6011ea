"""Small pipelines that the files here share: each file makes those that it asks for."""

import pytest

import sdjax


@pytest.fixture(scope="module")
def finished():
    """What a file does to the folder of each pipeline that it makes: nothing."""
    return lambda kind, folder: None


@pytest.fixture(scope="module")
def folders(tmp_path_factory, finished):
    """A function of a kind of `peers.make`: the folder of its pipeline, made once."""
    from tests.pipeline import peers  # not with the oldest versions

    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = peers.make(kind, tmp_path_factory.mktemp(kind))
            finished(kind, made[kind])
        return made[kind]

    return folder


@pytest.fixture(scope="module")
def models(folders):
    """A function of a kind: its pipeline here, read once."""
    made = {}

    def model(kind):
        if kind not in made:
            made[kind] = sdjax.StableDiffusion.from_pretrained(folders(kind))
        return made[kind]

    return model


@pytest.fixture(scope="module")
def folder(folders):
    return folders("sd1")


@pytest.fixture(scope="module")
def model(folder):
    return sdjax.StableDiffusion.from_pretrained(folder)


@pytest.fixture(scope="module")
def base(models):
    return models("sdxl")


@pytest.fixture(scope="module")
def refiner(models):
    return models("refiner")


@pytest.fixture(scope="module")
def controlnet(folder, tmp_path_factory):
    """(a ControlNet of diffusers for `folder`, ours)."""
    import diffusers

    from tests.pipeline import peers

    unet = peers.load("sd1", folder).unet
    path = peers.make_controlnet(unet, tmp_path_factory.mktemp("control"))
    return diffusers.ControlNetModel.from_pretrained(path), sdjax.Control.from_pretrained(path)
