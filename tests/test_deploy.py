"""The cluster's files: valid by Kubernetes' own schemas, and with commands that exist."""

from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

DEPLOY = Path(__file__).parent.parent / "deploy"
FILES = sorted(DEPLOY.glob("*.yaml"))


def documents(path):
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_document_is_valid(path):
    for document in documents(path):
        kubernetes_validate.validate(document, "1.31", strict=True)


def test_the_validator_refuses_a_misspelt_field():
    (*_, job) = documents(DEPLOY / "gpus.yaml")
    job["spec"]["backoffLimits"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.31", strict=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_training_is_one_that_the_recipe_takes(path):
    from sdjax.training.recipes.recipe import load_config, with_overrides

    (job,) = (document for document in documents(path) if document["kind"] == "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    command, config, *options = container["args"]
    assert command == "train"
    recipe = load_config(config.removeprefix("--config="))
    own = [option for option in options if not option.startswith("--workdir=")]
    assert len(own) == len(options) - 1
    assert with_overrides(recipe, own).model
    rules = job["spec"]["podFailurePolicy"]["rules"]
    codes = {rule["action"]: rule["onExitCodes"]["values"] for rule in rules[:2]}
    assert codes == {"FailJob": [2], "Ignore": [3]}  # of sdjax.cli.main
