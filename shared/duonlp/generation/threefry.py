"""Random numbers that are identical in every framework: threefry 2x32 with 20 rounds.

A number depends only on its key and counter, not on earlier draws. The key identifies a text (seed, prompt,
sample) and the counter is (step, token). So the same seed gives the same text in tfnlp and jaxnlp, and a
prompt's text does not depend on its batch.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", https://doi.org/10.1145/2063384.2063405.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from duonlp.typing import Array, Ops

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


def threefry2x32(ops: Ops, key: Sequence[Array], counter: Sequence[Array]) -> tuple[Array, Array]:
    """Return two words of random bits per key and counter.

    Args:
        ops: duonlp.numpy_ops, or an engine's ops module.
        key: Two uint32 arrays.
        counter: Two uint32 arrays; all four broadcast together.

    Returns:
        Two uint32 arrays.
    """
    third = ops.bit_xor(ops.bit_xor(key[0], key[1]), ops.cast(PARITY, "uint32"))
    keys = ops.stack([key[0], key[1], third], 0)  # [3, ...]
    rotations = ops.cast(np.array(ROTATIONS), "uint32")  # [2, 4]
    x, y = counter[0] + key[0], counter[1] + key[1]
    shape = x.shape

    def four_rounds(state: dict[str, Array]) -> dict[str, Array]:
        group, x, y = state["group"], state["x"], state["y"]
        turns = ops.take(rotations, group % 2)
        for i in range(4):
            x = x + y
            y = ops.bit_xor(ops.bit_or(ops.shift_left(y, turns[i]), ops.shift_right(y, 32 - turns[i])), x)
        x = x + ops.take(keys, (group + 1) % 3)
        y = y + ops.take(keys, (group + 2) % 3) + ops.cast(group + 1, "uint32")
        return {"group": group + 1, "x": ops.reshape(x, shape), "y": ops.reshape(y, shape)}

    # XLA takes minutes to compile twenty unrolled rounds: it fuses them and recomputes each once per use. Hence a loop.
    state = {"group": ops.cast(0, "int32"), "x": x, "y": ops.broadcast_to(y, shape)}
    state = ops.while_loop(lambda state: state["group"] < 5, four_rounds, state)
    return state["x"], state["y"]


def gumbel(ops: Ops, keys: Array, step: Array, tokens: Array) -> Array:
    """Return standard Gumbel noise.

    The argmax of logits + noise is a draw from softmax(logits), and the k largest are k draws without
    replacement (Kool et al. 2019, https://arxiv.org/abs/1903.06059).

    Args:
        ops: duonlp.numpy_ops, or an engine's ops module.
        keys: uint32 [rows, 2].
        step: int32, index of the new token that is drawn.
        tokens: int32 [rows or 1, n], the tokens to return noise for.

    Returns:
        float32 [rows, n].
    """
    key = keys[:, 0:1], keys[:, 1:2]
    counter = ops.cast(ops.broadcast_to(ops.cast(step, "int32"), tokens.shape), "uint32"), ops.cast(tokens, "uint32")
    bits, _ = threefry2x32(ops, key, counter)
    # 23 bits plus one half: strictly between 0 and 1, and exact in float32
    uniform = (ops.cast(ops.cast(ops.shift_right(bits, 9), "int32"), "float32") + 0.5) * 2.0**-23
    return -ops.log(-ops.log(uniform))


def row_keys(seed: int, prompts: Sequence[np.ndarray], samples: int) -> np.ndarray:
    """Return one key per text.

    Args:
        seed: 0 or more.
        prompts: Ids of each prompt, without padding.
        samples: Number of texts per prompt.

    Returns:
        uint32 [prompts * samples, 2]. A repeated prompt continues the sample numbering of its first occurrence.
    """
    keys: list[np.ndarray] = []
    next_sample: dict[bytes, int] = {}
    for prompt in prompts:
        content = np.asarray(prompt, "<i4").tobytes()
        first = next_sample.get(content, 0)
        next_sample[content] = first + samples
        for sample in range(first, first + samples):
            digest = hashlib.blake2b(content, digest_size=8, person=b"duonlp", salt=sample.to_bytes(8, "little"))
            digest.update(seed.to_bytes(16, "little"))
            keys.append(np.frombuffer(digest.digest(), "<u4"))
    return np.array(keys, np.uint32).reshape(-1, 2)
