"""Random numbers that are the same in every framework: threefry 2x32, 20 rounds.

A number depends on its key and counter alone, not on what was drawn before. The key belongs to a text (the seed, the
prompt, which of its samples), the counter is (step, token): the same seed gives the same text in tfnlp and in jaxnlp, and
for a prompt whatever batch it is in.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", https://doi.org/10.1145/2063384.2063405.
"""

import hashlib

import numpy as np

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


def threefry2x32(ops, key, counter):
    """Two words of random bits.

    Args:
        ops: one of the ops modules.
        key: two uint32 arrays.
        counter: two uint32 arrays; all four broadcast together.

    Returns:
        two uint32 arrays.
    """
    third = ops.bit_xor(ops.bit_xor(key[0], key[1]), ops.cast(PARITY, "uint32"))
    keys = ops.stack([key[0], key[1], third], 0)  # [3, ...]
    rotations = ops.cast(np.array(ROTATIONS), "uint32")  # [2, 4]
    x, y = counter[0] + key[0], counter[1] + key[1]
    shape = x.shape

    def four_rounds(state):
        group, x, y = state["group"], state["x"], state["y"]
        turns = ops.take(rotations, group % 2)
        for i in range(4):
            x = x + y
            y = ops.bit_xor(ops.bit_or(ops.shift_left(y, turns[i]), ops.shift_right(y, 32 - turns[i])), x)
        x = x + ops.take(keys, (group + 1) % 3)
        y = y + ops.take(keys, (group + 2) % 3) + ops.cast(group + 1, "uint32")
        return {"group": group + 1, "x": ops.reshape(x, shape), "y": ops.reshape(y, shape)}

    # A loop, for XLA takes minutes over twenty rounds in a row: fused, each would be computed once for each of its uses.
    state = {"group": ops.cast(0, "int32"), "x": x, "y": ops.broadcast_to(y, shape)}
    state = ops.while_loop(lambda state: state["group"] < 5, four_rounds, state)
    return state["x"], state["y"]


def gumbel(ops, keys, step, tokens):
    """Standard Gumbel noise: the largest of logits + noise is a draw from softmax(logits), the k largest are k draws
    without replacement (Kool et al. 2019, https://arxiv.org/abs/1903.06059).

    Args:
        keys: uint32 [rows, 2].
        step: int32, which token of the text is drawn.
        tokens: int32 [rows or 1, n], whose noise is asked for.

    Returns:
        float32 [rows, n].
    """
    key = keys[:, 0:1], keys[:, 1:2]
    counter = ops.cast(ops.broadcast_to(ops.cast(step, "int32"), tokens.shape), "uint32"), ops.cast(tokens, "uint32")
    bits, _ = threefry2x32(ops, key, counter)
    # 23 bits and a half: strictly between 0 and 1, and exact in float32
    uniform = (ops.cast(ops.cast(ops.shift_right(bits, 9), "int32"), "float32") + 0.5) * 2.0**-23
    return -ops.log(-ops.log(uniform))


def row_keys(seed: int, prompts: list[np.ndarray], samples: int) -> np.ndarray:
    """The keys of the texts.

    Args:
        seed: 0 or more.
        prompts: the ids of each prompt, without padding.
        samples: how many texts each prompt gets.

    Returns:
        uint32 [prompts * samples, 2]. Of equal prompts, the second goes on where the first stopped.
    """
    keys, seen = [], {}
    for prompt in prompts:
        content = np.asarray(prompt, "<i4").tobytes()
        first = seen.get(content, 0)
        seen[content] = first + samples
        for sample in range(first, first + samples):
            digest = hashlib.blake2b(content, digest_size=8, person=b"duonlp", salt=sample.to_bytes(8, "little"))
            digest.update(seed.to_bytes(16, "little"))
            keys.append(np.frombuffer(digest.digest(), "<u4"))
    return np.array(keys, np.uint32).reshape(-1, 2)
