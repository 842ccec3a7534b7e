"""Turn ``pytorch_model.bin`` into safetensors, in a process that loads nothing but tensors from it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from duonlp.checkpoints.conversion import unpickle
from duonlp.checkpoints.weight_files import INDEX, PICKLE, PICKLE_INDEX, WEIGHTS
from duonlp.errors import CheckpointError, MissingExtraError
from duonlp.util.json_text import to_json
from duonlp.util.reading import parse_json, read_json_object

INSTALL = "pip install torch"


def pickle_files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint in PyTorch's own format: one, or the shards that its index lists; [] if it has none.

    Raises:
        CheckpointError: There are both, the index is invalid, or a shard is missing.
    """
    single, index = folder / PICKLE, folder / PICKLE_INDEX
    if not index.is_file():
        return [single] if single.is_file() else []
    weight_map = read_json_object(index, error=CheckpointError, advice="download the checkpoint again").get(
        "weight_map"
    )
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index} has no weight_map from tensor names to file names; download the checkpoint again"
        )
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if Path(name).name != name or not name.endswith(".bin") or set(name) & {"\0", "\\"}:
            raise CheckpointError(f"{index} refers to {name!r}; a shard must be a .bin file in the same folder")
    present = [name for name in names if (folder / name).is_file()]
    if single.is_file() and PICKLE not in names:
        if present:
            raise CheckpointError(
                f"{folder} has both {PICKLE} and {PICKLE_INDEX} with {present[0]!r}; only one of them is the model: remove the "
                "other"
            )
        return [single]  # Transformers leaves the index when it saves one file over shards
    if lost := next((name for name in names if name not in present), None):
        raise CheckpointError(f"{index} lists the shard {lost!r}, which is missing; download or copy it")
    return [folder / name for name in names]


def to_safetensors(files: list[Path], output: Path) -> None:
    """Write the tensors of ``torch.save`` files to a folder as safetensors, with an index if there are several files.

    Args:
        files: The files.
        output: An existing folder.

    Raises:
        MissingExtraError: torch is not installed.
        CheckpointError: A file holds something else than tensors, is damaged, or cannot be written.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError(
            f"{files[0].name} can only be read by torch, which is not installed; run `{INSTALL}`, or convert the folder on "
            "another machine"
        )
    ignored = ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    environment = {name: value for name, value in os.environ.items() if name not in ignored} | {
        "CUDA_VISIBLE_DEVICES": ""
    }
    # -P keeps this folder off the child's path; -I would also hide a torch in the user's site-packages or on PYTHONPATH.
    command = [sys.executable, "-P", unpickle.__file__, str(output.resolve()), *(str(file.resolve()) for file in files)]
    process = subprocess.run(command, capture_output=True, env=environment, stdin=subprocess.DEVNULL, check=False)
    try:
        result = parse_json(process.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        lines = process.stderr.decode(errors="replace").strip().splitlines() or [f"status {process.returncode}"]
        raise CheckpointError(
            f"{files[0]} cannot be read: torch ended with {lines[-1][:300]}; download or save the checkpoint again"
        ) from None
    if "error" in result:
        raise CheckpointError(f"{result['error']}; nothing was converted")
    written = result["files"]
    if len(written) == 1:
        os.replace(output / next(iter(written)), output / WEIGHTS)
        return
    weight_map: dict[str, str] = {}
    for file, names in written.items():
        if both := next((name for name in names if name in weight_map), None):
            raise CheckpointError(f"two shards hold {both!r}; download the checkpoint again")
        weight_map |= dict.fromkeys(names, file)
    (output / INDEX).write_text(to_json({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
