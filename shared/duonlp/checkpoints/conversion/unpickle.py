"""A program that turns files of ``torch.save`` into safetensors; it runs in a process of its own and imports nothing of duonlp.

Usage: unpickle.py OUTPUT FILE..., which writes OUTPUT/model-00001-of-00002.safetensors and so on, one per file, and prints a line
of JSON: {"files": {written file: names of its tensors}} or {"error": why not}.

Files are read with ``weights_only=True``, which refuses everything but tensors and plain containers.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

SAFE_SINCE = (2, 6)
"""Version of torch whose ``weights_only`` is safe; before it, a file could run code all the same (CVE-2025-32434)."""

NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "int16": "I16",
    "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""Names of torch's dtypes in safetensors."""


class Refused(Exception):
    """A file that is not converted, with the reason."""


def load(file: str) -> dict[str, Any]:
    """Return the tensors of a file by name; raise Refused if it holds anything else."""
    import torch

    torch.serialization.clear_safe_globals()
    options = {"weights_only": True, "map_location": "cpu"}
    try:
        try:
            content = torch.load(file, mmap=True, **options)
        except RuntimeError:  # files before torch 1.6 cannot be mapped
            content = torch.load(file, **options)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "weights_only" in str(error).lower() or "weights only" in str(error).lower():
            reason = "it holds more than tensors, which loading could run as code"
        raise Refused(f"{file}: {reason[:300]}") from None
    if not isinstance(content, dict):
        raise Refused(f"{file}: it holds a {type(content).__name__}, not a dict of tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise Refused(
                f"{file}: its entry {str(name)[:100]!r} is a {type(value).__name__}, not a tensor with a name"
            )
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in NAMES or value.layout != torch.strided or value.is_quantized:
            raise Refused(
                f"{file}: the tensor {name[:100]!r} is {value.layout} {dtype}, which safetensors does not hold"
            )
    return content


def write(path: Path, tensors: dict[str, Any]) -> None:
    """Write a safetensors file, one tensor at a time."""
    import torch

    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {}
    offset = 0
    for name in order:
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        dtype = NAMES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        for name in order:
            # Views, shared and transposed tensors become values of their own.
            values = tensors[name].detach().resolve_conj().resolve_neg().contiguous().flatten()
            stream.write(values.view(torch.uint8).numpy().data if values.numel() else b"")


def main(output: str, files: list[str]) -> dict[str, Any]:
    """Convert files and return what the program prints."""
    import torch

    version = tuple(
        int("".join(filter(str.isdigit, part)) or 0) for part in torch.__version__.split("+")[0].split(".")[:2]
    )
    if version < SAFE_SINCE:
        return {
            "error": f"torch {torch.__version__} may run code from such a file; install version "
            f"{'.'.join(map(str, SAFE_SINCE))} or later"
        }
    written = {}
    try:
        for number, file in enumerate(files, 1):
            tensors = load(file)
            name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
            write(Path(output) / name, tensors)
            written[name] = list(tensors)
    except Refused as error:
        return {"error": str(error)}
    except OSError as error:
        return {"error": f"cannot write {output!r}: {error.strerror}; free disk space, or use another folder"}
    return {"files": written}


if __name__ == "__main__":
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    print(json.dumps(main(sys.argv[1], sys.argv[2:])))
