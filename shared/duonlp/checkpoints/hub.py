"""Download checkpoints from the Hugging Face Hub."""

import re
from contextlib import suppress
from pathlib import Path

from duonlp.checkpoints.weight_files import INDEX, WEIGHTS, list_names
from duonlp.errors import CheckpointError

DOWNLOAD = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
LEGACY = ("tf_model*.h5", "flax_model*.msgpack")
"""Weights to download from a repository without safetensors: the first of these that it has."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def download(name: str, revision: str | None, local_files_only: bool) -> Path:
    """Return the folder of a Hub model in the cache, after downloading what it lacks.

    Raises:
        CheckpointError: the model does not exist, or is not in the cache while offline.
    """
    # Subfolders can hold other formats (onnx/, openvino/), but also the pooling of sentence-transformers.
    folder = _snapshot(name, revision, local_files_only, [*DOWNLOAD, "1_Pooling/config.json"])
    for pattern in LEGACY:
        if any(any(folder.glob(weights)) for weights in ("*.safetensors", *LEGACY)):
            break
        # The folder is named after the commit, which `revision` may no longer mean.
        _snapshot(
            name, folder.name if re.fullmatch("[0-9a-f]{40}", folder.name) else revision, local_files_only, [pattern]
        )
    return folder


def _snapshot(name: str, revision: str | None, local_files_only: bool, patterns: list[str]) -> Path:
    """Return the folder of a Hub model after downloading the files that match a pattern; see :func:`download`."""
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    at = f" at revision {revision!r}" if revision else ""
    try:
        return Path(
            snapshot_download(
                name, revision=revision, local_files_only=local_files_only, allow_patterns=patterns,
                ignore_patterns=["onnx/*", "openvino/*"],
            )
        )  # fmt: skip
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError) as error:
        raise CheckpointError(
            f"no accessible model {name!r}{at} on the Hub; check the name, or log in if it is private ({error})"
        ) from None
    except (OSError, hub.HTTPError) as error:
        # An HTTPError with a response is also an OSError; one without a response means that the Hub was unreachable.
        unreachable = (hub.LocalEntryNotFoundError, ConnectionError, TimeoutError)  # includes OfflineModeIsEnabled
        if isinstance(error, unreachable) or not isinstance(error, OSError):
            raise CheckpointError(
                f"no folder {name!r}, and the Hub model {name!r}{at} is not in the cache and the Hub is unreachable "
                f"({type(error).__name__}); pass a folder, or go online once to download it"
            ) from None
        raise CheckpointError(f"the Hub model {name!r}{at} could not be downloaded: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{name!r} is neither a folder nor a Hub id ({error})") from None


def no_safetensors_message(name: str, revision: str | None, local_files_only: bool) -> str:
    """Explain why a Hub model has no weights; pickles are not downloaded, so the folder alone does not show them."""
    files = []
    if not local_files_only:
        from huggingface_hub import HfApi

        with suppress(Exception):  # the list only improves the message
            files = HfApi().list_repo_files(name, revision=revision)
    weights = sorted(
        file for file in files if any(Path(file).match(pattern) for pattern in (*PICKLES, "*.h5", "*.msgpack"))
    )
    has = f"it has {list_names(weights)}, but " if weights else ""
    return (
        f"the Hub model {name!r} has neither {WEIGHTS} nor {INDEX}, and no tf_model.h5 or flax_model.msgpack; {has}other formats "
        "are never downloaded or read: download the repository with `hf download`, convert it with `duonlp convert FOLDER OUT`, "
        "or pass the revision of a conversion such as revision='refs/pr/1' (see the model's pull requests)"
    )
