"""Damage safetensors files and indexes: a load gives the values of the undamaged checkpoint, or refuses."""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.architectures import config_from_hf
from duonlp.architectures._common import DECODER_WORDS, OUTPUT, POSITION_TABLES, WORDS
from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.checkpoints.safetensors_file import DTYPES, TensorToWrite, list_tensors, write_tensors
from duonlp.checkpoints.save import save_checkpoint
from duonlp.checkpoints.weight_files import INDEX, WEIGHTS
from duonlp.errors import CheckpointError, CheckpointWarning
from duonlp.parameters import initial_value, parameters
from tests.attack.harness import HELD, Budget, Outcome, attack

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}
SEQ2SEQ = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
SEQ2SEQ |= {
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "vocab_size": 40,
    "max_position_embeddings": 30,
    "pad_token_id": 0,
}
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "tied": ({"model_type": "bert", **SIZE}, "masked-lm"),
    "untied": ({"model_type": "bert", **SIZE, "tie_word_embeddings": False}, "masked-lm"),
    "fused": ({"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 40}, "causal-lm"),
    "shared table": ({"model_type": "bart", **SEQ2SEQ}, "seq2seq-lm"),
    "computed positions": ({"model_type": "pegasus", **SEQ2SEQ}, "seq2seq-lm"),
}
"""Models by what is special about their tensors: config.json and head."""

JUNK = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    2**64,
    1e300,
    0.5,
    "",
    "F32",
    "I32",
    "F16",
    [],
    [-1, 4],
    [2**40, 2**40],
    {},
    "\x00",
)


def read(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Return all parameters of one of MODELS."""
    checkpoint = open_checkpoint(folder)
    try:
        head = MODELS[name][1]
        plan = checkpoint.plan(checkpoint.transformer_config(head), head)
        return {source.path: np.array(source.read()) for source in plan}
    finally:
        checkpoint.close()


def write(folder: Path, name: str, limit: int) -> None:
    """Save one of MODELS with random values."""
    hf, head = MODELS[name]
    cfg = config_from_hf(dict(hf))
    spec = parameters(cfg, head)
    save_checkpoint(folder, cfg, head, lambda path: _value(path, spec[path]), np.float32, max_shard_size=limit)


def _value(path: str, parameter: Any) -> np.ndarray:
    """Return values that differ between tensors of the same shape."""
    seed = sum(path.encode())
    return initial_value(path, parameter) + np.random.default_rng(seed).random(parameter.shape, np.float32)


# -- damage ----------------------------------------------------------------------------------------------------------------


def split(file: Path) -> tuple[dict[str, Any], bytes]:
    """Return the header and the values of a safetensors file."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(file: Path, header: dict[str, Any] | bytes, values: bytes) -> None:
    """Write a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + values)


def choose(rng: np.random.Generator, values: Any) -> Any:
    """Return one of several values."""
    values = list(values)
    return values[rng.integers(len(values))]


def weights_of(folder: Path, rng: np.random.Generator) -> Path:
    """Return one of the safetensors files of a folder."""
    return choose(rng, sorted(folder.glob("*.safetensors")))


def cut(folder: Path, rng: np.random.Generator) -> None:
    """Truncate a file, or append bytes."""
    file = weights_of(folder, rng)
    data = file.read_bytes()
    keep = int(choose(rng, (0, 1, 7, 8, 9, len(data) // 2, len(data) - 1, rng.integers(len(data)))))
    file.write_bytes(choose(rng, (data[:keep], data + b"\0" * (keep + 1), data + data)))


def header_bytes(folder: Path, rng: np.random.Generator) -> None:
    """Change bytes of a header or of its length, or fill them with NULs."""
    file = weights_of(folder, rng)
    data = bytearray(file.read_bytes())
    length = int.from_bytes(data[:8], "little")
    for _ in range(rng.integers(1, 4)):
        place, count = rng.integers(8 + length), choose(rng, (1, 1, 8, 100))
        data[place : place + count] = choose(rng, (bytes(count), rng.bytes(count)))
    file.write_bytes(data)


def entry(folder: Path, rng: np.random.Generator) -> None:
    """Put junk into an entry of a header, or remove a part of it."""
    file = weights_of(folder, rng)
    header, values = split(file)
    name = choose(rng, [n for n in header if n != "__metadata__"])
    key = choose(rng, ("dtype", "shape", "data_offsets", "extra"))
    action = rng.integers(5)
    if action == 0:
        header[name] = choose(rng, JUNK)
    elif action == 1:
        header[name].pop(key, None)
    elif action == 2 and key != "dtype" and header[name].get(key):
        header[name][key][rng.integers(len(header[name][key]))] = choose(rng, JUNK)
    else:
        header[name][key] = choose(rng, JUNK)
    if rng.random() < 0.2:
        header["__metadata__"] = choose(rng, JUNK)
    join(file, header, values)


def names(folder: Path, rng: np.random.Generator) -> None:
    """Rename or remove tensors, or let two entries share values."""
    file = weights_of(folder, rng)
    header, values = split(file)
    own = [n for n in header if n != "__metadata__"]
    first, second = choose(rng, own), choose(rng, own)
    action = rng.integers(5)
    if action == 0:
        header[first + choose(rng, (".", " ", "\x00", "\udc80", "s"))] = header.pop(first)
    elif action == 1:
        header.pop(first)
    elif action == 2:
        header[first] = header[second]
    elif action == 3:
        header["unknown"] = header[first]
    else:
        header[first]["data_offsets"] = header[second]["data_offsets"]
    join(file, header, values)


def duplicate_key(folder: Path, rng: np.random.Generator) -> None:
    """Describe two tensors twice in one header, with their own values and with each other's."""
    file = weights_of(folder, rng)
    header, values = split(file)
    own = [n for n in header if n != "__metadata__"]
    name = choose(rng, own)
    other = choose(rng, [n for n in own if header[n]["shape"] == header[name]["shape"]])
    # A reader that takes the last of two descriptions exchanges the two tensors.
    pairs = [(n, header[n]) for n in header] + [(name, header[other]), (other, header[name])]
    text = ",".join(f"{json.dumps(n)}:{json.dumps(v)}" for n, v in pairs)
    join(file, b"{" + text.encode() + b"}", values)


def deep(folder: Path, rng: np.random.Generator) -> None:
    """Nest a header or an index deeply, or fill it with digits."""
    file = choose(rng, [*folder.glob("*.safetensors"), folder / INDEX])
    text = choose(
        rng, (b"[" * 100_000, b'{"a":' * 100_000, b'{"a":' + b"9" * 100_000 + b"}", b"{" + b"\0" * 10_000_000)
    )
    join(file, text, b"") if file.suffix == ".safetensors" else file.write_bytes(text)


def tensors(folder: Path, rng: np.random.Generator) -> bool | str:
    """Write the tensors anew: as integers, transposed, or under second names with other values.

    The latter must be refused, except for a tied copy or a table of positions, whose name is returned.
    """
    file = weights_of(folder, rng)
    stored = {name: tensor.read() for name, tensor in list_tensors(file).items()}
    name = choose(rng, sorted(stored))
    value, action = stored[name], rng.integers(6)
    if action == 0:
        dtype = choose(rng, [d for d in DTYPES.values() if d.kind in "iub"])
        stored[name] = value.astype(dtype)
    elif action == 1:
        stored[name] = value.T if value.ndim > 1 and value.shape[0] != value.shape[1] else value[:-1]
    elif action == 2:
        prefix = name.split(".")[0] + "."
        others = {name.removeprefix(prefix), "bert." + name, "model." + name, "transformer." + name} - {name}
        stored[choose(rng, sorted(others))] = value + 1
    elif action == 3:
        gamma = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        stored[gamma if gamma != name else "foreign"] = value + 1
    elif action == 4:  # tied copies and computed positions
        computed = json.loads((folder / "config.json").read_text())["model_type"] == "pegasus"
        copy = choose(rng, [name for name in COPIES if name not in stored or (computed and "positions" in name)])
        table = choose(rng, [v for v in stored.values() if v.ndim == 2] or [value])
        stored[copy] = choose(
            rng, (table + 1, np.zeros_like(table), np.full_like(table, np.nan), table.astype(np.int64))
        )
    else:
        stored[name] = value.astype(np.float64)  # the same values
    write_tensors(file, [TensorToWrite(n, v.shape, v.dtype, lambda v=v: v) for n, v in stored.items()])
    return copy if action == 4 else action in (2, 3)


COPIES = (
    "cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "cls.predictions.bias", "lm_head.weight",
    "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "model.shared.weight",
    "model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight", "embeddings.word_embeddings.weight",
)  # fmt: skip
"""Tensors that are copies in some of MODELS."""


def index(folder: Path, rng: np.random.Generator) -> None:
    """Change an index: other shards, other tensors, junk, or bytes."""
    file = folder / INDEX
    if not file.exists():  # beside a single file
        shard = choose(rng, ("model-00001-of-00001.safetensors", WEIGHTS, "../x.safetensors", "other.safetensors"))
        file.write_text(json.dumps({"weight_map": {choose(rng, COPIES): shard}}))
        if rng.random() < 0.5 and shard.startswith(("model-", "other")):
            write_tensors(
                folder / shard, [TensorToWrite("x", (2,), np.dtype(np.float32), lambda: np.ones(2, np.float32))]
            )
        return
    saved = json.loads(file.read_text())
    weight_map = saved["weight_map"]
    name, shards = choose(rng, sorted(weight_map)), sorted(set(weight_map.values()))
    action = rng.integers(8)
    if action == 0:
        weight_map[name] = choose(rng, shards)
    elif action == 1:
        weight_map[name] = choose(
            rng, ("../a.safetensors", "/etc/passwd", "\x00.safetensors", "a\udc80.safetensors", ".", WEIGHTS)
        )
    elif action == 2:
        weight_map.pop(name)
    elif action == 3:
        weight_map["foreign"] = choose(rng, shards)
    elif action == 4:
        weight_map[name] = choose(rng, JUNK)
    elif action == 5:
        saved[choose(rng, ("weight_map", "metadata"))] = choose(rng, JUNK)
    elif action == 6:
        data = bytearray(file.read_bytes())
        data[rng.integers(len(data))] = rng.integers(256)
        file.write_bytes(data)
        return
    else:  # the first entry of the same name is hidden
        text = json.dumps(saved)
        file.write_text(
            text.replace('"weight_map": {', f'"weight_map": {{{json.dumps(name)}: {json.dumps(shards[0])}, ', 1)
        )
        return
    file.write_text(json.dumps(saved))


def shards(folder: Path, rng: np.random.Generator) -> None:
    """Exchange, copy or remove files, or add a foreign one."""
    files = sorted(folder.glob("*.safetensors"))
    first, second = choose(rng, files), choose(rng, files)
    action = rng.integers(6)
    if action == 0:
        a, b = first.read_bytes(), second.read_bytes()
        first.write_bytes(b)
        second.write_bytes(a)
    elif action == 1:
        second.write_bytes(first.read_bytes())
    elif action == 2:
        first.unlink()
    elif action == 3 and first != second:  # a tensor of one shard, with other values, in another one
        stored = {name: tensor.read() for name, tensor in list_tensors(second).items()}
        stored |= {name: tensor.read() + 1 for name, tensor in [next(iter(list_tensors(first).items()))]}
        write_tensors(second, [TensorToWrite(n, v.shape, v.dtype, lambda v=v: v) for n, v in stored.items()])
    else:  # another model beside this one
        foreign = folder / choose(rng, (WEIGHTS, "model-00001-of-00001.safetensors", "other.safetensors"))
        if not foreign.exists():
            stored = {n: t.read() for file in files for n, t in list_tensors(file).items()}
            write_tensors(foreign, [TensorToWrite(n, v.shape, v.dtype, lambda v=v: v + 1) for n, v in stored.items()])


DAMAGE: tuple[Callable[[Path, np.random.Generator], bool | str | None], ...] = (
    cut, header_bytes, entry, names, duplicate_key, deep, tensors, index, shards,
)  # fmt: skip
"""Ways to damage the weights of a folder, which return True if no load may succeed, or the name of a tensor that may be used
for what it is taken to copy; another one joins by being listed."""


def use_of_copy(
    folder: Path, copy: str, found: dict[str, np.ndarray], expected: dict[str, np.ndarray], warned: int
) -> str:
    """Return what is wrong with parameters that were loaded from a folder with a forged copy, or "".

    Args:
        folder: The folder.
        copy: Name of the forged copy.
        found: The parameters.
        expected: Those of the intact checkpoint.
        warned: Number of warnings.
    """
    stored = {n: t for file in folder.glob("*.safetensors") for n, t in list_tensors(file).items()}
    value, users = stored[copy].read(), []
    for path, parameter in found.items():
        intact = expected.get(path, expected[WORDS].T if path == OUTPUT else expected.get(WORDS))
        if path in (WORDS, DECODER_WORDS, OUTPUT, *POSITION_TABLES) and np.array_equal(
            parameter, value.T if path == OUTPUT else value, equal_nan=True
        ):
            users.append(path)
        elif path not in POSITION_TABLES and not np.array_equal(parameter, intact):
            return f"other values in {path}"
    if not users:
        return f"{copy} was accepted and is not used"
    return "" if warned == (users[0] not in POSITION_TABLES) else f"{warned} warnings about {copy}"


@attack("weights files")
def damaged_weights(budget: Budget) -> Iterator[Outcome]:
    """Damage the weights of a small checkpoint in one way per case."""
    intact = {}
    for name in MODELS:
        for limit in (10**9, 4000):
            source = budget.folder / f"{name} {limit}"
            write(source, name, limit)
            intact[name, limit] = source, read(source, name)
    folder = budget.folder / "damaged"
    for number in budget:
        name, limit = choose(budget.rng, intact)
        source, expected = intact[name, limit]
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        damage = DAMAGE[number % len(DAMAGE)]
        result = damage(folder, budget.rng)
        verdict, detail = HELD, ""
        try:
            with warnings.catch_warnings(record=True) as record:
                warnings.simplefilter("always")
                found = read(folder, name)
            warned = sum(issubclass(w.category, CheckpointWarning) for w in record)
            if isinstance(result, str):
                detail = use_of_copy(folder, result, found, expected, warned)
                verdict = "wrong" if detail else HELD
                yield Outcome(f"case {number}: {name}, {result} forged", verdict, detail)
                continue
            different = [path for path, value in expected.items() if not np.array_equal(found[path], value)]
            if different or set(found) != set(expected):
                verdict, detail = "wrong", f"other values in {different[:3]}"
            elif result:
                verdict, detail = "wrong", "tensors that contradict each other were accepted"
        except CheckpointError:
            pass
        except Exception as error:
            verdict, detail = "traceback", f"{type(error).__name__}: {error}"
        case = f"case {number}: {name}, shards of {limit} bytes, {damage.__name__}"
        yield Outcome(case, verdict, detail)
