"""Where a model lies: a folder or file here, or a repository of the Hugging Face hub."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from sdjax.errors import SdjaxError
from sdjax.mirror import local_copy
from sdjax.weights.checkpoint import PARTS
from sdjax.weights.folder import STEMS, weight_files

# Where a part may lie in a repository: it may be one itself.
_PLACES = ("", *(f"{part}/" for part in PARTS))
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SETTINGS = (
    "model_index.json",
    "config.json",
    "scheduler/scheduler_config.json",
    "low_res_scheduler/scheduler_config.json",
    *(f"{part}/*.json" for part in PARTS),
    *(f"tokenizer{number}/*.{ending}" for number in ("", "_2") for ending in ("json", "txt")),
)


def locate(
    source: str | os.PathLike, variant: str | None = None, revision: str | None = None
) -> Path:
    """The path of a local folder or file, or of the local copy of a hub repository.

    source: a path, an address such as gs://bucket/model, of which a copy is made for as long as the
    program runs, or a hub id such as "owner/name": of a whole model, or of one part alone. Only
    the files that are read are downloaded, once, into huggingface_hub's cache; with
    HF_HUB_OFFLINE=1 or without a network, that cache alone is used.
    variant: "fp16" downloads those weights only, and plain ones of parts that lack them while
    others have them. revision: a branch, tag or commit.
    Raises SdjaxError where nothing is found, or the hub cannot be reached.
    """
    path = local_copy(source)
    if path.exists():
        return path
    repository = str(source)
    if not _HUB_ID.fullmatch(repository):
        raise SdjaxError(f"no such model folder or file: {source}")
    # Each part takes the first that it has, as in diffusers: pickled weights where there are no
    # others in the variant, and plain ones where only other parts have the variant.
    places = _PLACES
    for kind in dict.fromkeys((variant, None)):
        for files, ending in ((_safetensors(kind), ".safetensors"), (_pickles(kind), "")):
            names = [f"{place}{file}" for place in places for file in files]
            folder = _snapshot(repository, revision, (*_SETTINGS, *names))
            places = _without_weights(folder, places, kind, ending)
            if not places:
                return folder
        if places == _parts_of(folder, _PLACES):
            break  # no part has the variant
    form = f"{variant} variant" if variant else "plain form (a variant such as fp16 may be there)"
    raise SdjaxError(
        f"the hub's {repository}, or what the cache holds of it, has no weights in {form} "
        f"of {places[0].strip('/') or 'the model'}"
    )


def _safetensors(variant: str | None) -> list[str]:
    """A part's weights, shards included, as patterns of file names."""
    names = [f"{stem}.{variant}" if variant else stem for stem in STEMS]
    files = [f"{name}{rest}.safetensors" for name in names for rest in ("", "-0*-of-*")]
    files += [f"{stem}.*safetensors*index*.json" for stem in STEMS]
    if variant:  # as older versions named its shards
        files += [f"{stem}-0*-of-*.{variant}.safetensors" for stem in STEMS]
    return files


def _pickles(variant: str | None) -> list[str]:
    stems = (STEMS[0], "pytorch_model")
    names = [f"{stem}.{variant}" if variant else stem for stem in stems]
    files = [f"{name}{rest}.bin" for name in names for rest in ("", "-0*-of-*")]
    files += [f"{stem}.*bin*index*.json" for stem in stems]
    if variant:
        files += [f"{stem}-0*-of-*.{variant}.bin" for stem in stems]
    return files


def _parts_of(folder: Path, places: Sequence[str]) -> list[str]:
    """Those of the places in a downloaded repository where a part lies."""
    return [place for place in places if (folder / place / "config.json").is_file()]


def _without_weights(
    folder: Path, places: Sequence[str], variant: str | None, ending: str
) -> list[str]:
    """The parts in those places that lack weights of that variant and ending."""
    found = {place: weight_files(folder / place) for place in _parts_of(folder, places)}
    return [
        place
        for place, files in found.items()
        if not ((path := files.get(variant or "")) and ending in path.name)
    ]


def _snapshot(repository: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """The folder of a repository's files that match, downloaded where they are not in the cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    absent = f"no such model folder or file: {repository}"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except RevisionNotFoundError as error:
        raise SdjaxError(f"the hub's {repository} has no revision {revision}") from error
    except GatedRepoError as error:
        raise SdjaxError(
            f"the hub asks for a login to read {repository}: accept its conditions on its page, "
            "then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise SdjaxError(f"{absent}, nor a public repository of that name on the hub") from error
    except LocalEntryNotFoundError as error:
        # Another program may have downloaded other files of it: enough for us, perhaps.
        if (cached := getattr(error, "snapshot_path", None)) is not None:
            return Path(cached)
        where = f"revision {revision} of it" if revision else "it"
        raise SdjaxError(
            f"{absent}; as a hub id, {where} is not in the cache, and the hub cannot be reached "
            "(no network, or HF_HUB_OFFLINE is set)"
        ) from error
    except Exception as error:  # whatever else its HTTP library of the day raises
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise SdjaxError(f"{absent}; as a hub id it cannot be downloaded: {reason}") from error
