"""Where a model lies: a folder or file here, or a repository of the Hugging Face hub."""

import os
import re
from pathlib import Path

from sdjax.errors import SdjaxError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def locate(
    source: str | os.PathLike, variant: str | None = None, revision: str | None = None
) -> Path:
    """The path of a local folder or file, or of the local copy of a hub repository.

    source: a path, or a hub id such as "owner/name". A repository is downloaded once into
    huggingface_hub's cache; with HF_HUB_OFFLINE=1 only that cache is used.
    variant: "fp16" downloads those weights only. revision: a branch, tag or commit.
    Raises SdjaxError where nothing is found, or the hub cannot be reached.
    """
    path = Path(source)
    if path.exists():
        return path
    text = str(source)
    if not _HUB_ID.fullmatch(text):
        raise SdjaxError(f"no such model folder or file: {source}")

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    suffix = f".{variant}" if variant else ""
    weights = [f"*/*{suffix}.safetensors", f"*/*{suffix}-0*.safetensors", "*/*.index*.json"]
    try:
        folder = snapshot_download(
            text,
            revision=revision,
            allow_patterns=["model_index.json", "*/*.json", "*/merges.txt", *weights],
            ignore_patterns=None if variant else ["*.fp16*", "*.non_ema*", "*.ema*"],
        )
    except RevisionNotFoundError as error:
        raise SdjaxError(f"the hub's {text} has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise SdjaxError(
            f"no such model folder or file: {text}, nor a public repository of that name on the hub"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise SdjaxError(
            f"no such model folder or file: {text}; as a hub id it is not in the cache, and the "
            "hub cannot be reached (no network, or HF_HUB_OFFLINE is set)"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SdjaxError(
            f"no such model folder or file: {text}; as a hub id it cannot be downloaded: {reason}"
        ) from error
    return Path(folder)
