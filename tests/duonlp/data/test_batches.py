"""The training stream: every block once per epoch, for any number of hosts and from any position."""

import numpy as np
import pytest

from duonlp.data.blocks.batches import Batches, held_out_batches
from duonlp.data.objectives.language_modelling import objective
from duonlp.errors import InputError
from tests.duonlp.data.objective_blocks import blocks as sentences
from tests.duonlp.data.objective_blocks import tokenizer


class CountedBlocks:
    """Replacement for blocks on disk, in which every token of block i is i."""

    def __init__(self, count: int, segments: bool = False):
        self.count, self.segments = count, segments

    def __len__(self):
        return self.count

    def read(self, indices):
        rows = {"input_ids": np.repeat(np.asarray(indices, dtype=np.int32)[:, None], 4, axis=1)}
        if self.segments:
            rows["segment_ids"] = np.broadcast_to(np.asarray([1, 1, 2, 2], dtype=np.int32), rows["input_ids"].shape)
        return rows


def position_labels(input_ids, segment_ids, positions, seed):
    """Return a batch whose labels are the stream positions, as an objective."""
    return {"input_ids": input_ids, "labels": np.repeat(positions[:, None], 4, axis=1).astype(np.int32)}


def stream(batches: Batches, steps: int) -> np.ndarray:
    """Return the blocks of the first steps in order, int32 [steps * batch_size]."""
    return np.concatenate([batches[step]["input_ids"][:, 0] for step in range(steps)])


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_epoch_has_every_block_once(shuffle):
    seen = stream(Batches(CountedBlocks(10), position_labels, 4, seed=3, shuffle=shuffle), 15)  # 60 rows, 6 epochs
    epochs = seen.reshape(6, 10)
    assert (np.sort(epochs, axis=1) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == (6 if shuffle else 1)
    assert shuffle or epochs[0].tolist() == list(range(10))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_host_batches_concatenate_to_the_global_batch(hosts):
    blocks = CountedBlocks(37, segments=True)
    whole = Batches(blocks, objective("causal-lm"), 8, seed=1)
    parts = [Batches(blocks, objective("causal-lm"), 8, seed=1, host_index=h, host_count=hosts) for h in range(hosts)]
    for step in range(12):
        batch = whole[step]
        assert set(batch) == {"input_ids", "labels", "segment_ids"}
        for key, value in batch.items():
            assert value.shape == (8, 4) and value.dtype == np.int32
            assert np.array_equal(value, np.concatenate([part[step][key] for part in parts]))


@pytest.mark.parametrize("batch_size", [3, 4, 10])
def test_the_stream_resumes_exactly_with_another_batch_size(batch_size):
    blocks = CountedBlocks(10)
    whole = stream(Batches(blocks, position_labels, 2, seed=5), 60)
    first = Batches(blocks, position_labels, 5, seed=5)
    position = first.next_block(2)
    rest = Batches(blocks, position_labels, batch_size, seed=5, first_block=position)
    assert position == 15 and np.array_equal(stream(first, 3), whole[:15])
    steps = 105 // batch_size
    assert np.array_equal(stream(rest, steps), whole[15 : 15 + steps * batch_size])
    assert rest[1]["labels"][:, 0].tolist() == list(range(15 + batch_size, 15 + 2 * batch_size))
    assert rest.next_block(0) == 15 + batch_size


def test_steps_are_reproducible_and_randomly_accessible():
    batches = Batches(CountedBlocks(10), position_labels, 4, seed=2)
    assert np.array_equal(batches[7]["input_ids"], batches[7]["input_ids"])
    assert batches[10**12]["input_ids"].shape == (4, 4)
    assert (stream(batches, 10) != stream(Batches(CountedBlocks(10), position_labels, 4, seed=3), 10)).any()
    for step, batch in zip(range(3), batches):
        assert np.array_equal(batch["input_ids"], batches[step]["input_ids"])


def test_held_out_batches_have_every_block_once():
    batches = held_out_batches(CountedBlocks(10), objective("causal-lm"), 4)
    read = list(batches)
    assert len(batches) == len(read) == 3 and all(batch["input_ids"].shape == (4, 4) for batch in read)
    labelled = np.concatenate([batch["input_ids"][(batch["labels"] != -100).any(axis=1), 0] for batch in read])
    assert labelled.tolist() == list(range(10))
    assert (read[2]["labels"][2:] == -100).all() and read[2]["labels"].dtype == np.int32
    assert len(held_out_batches(CountedBlocks(3), objective("causal-lm"), 8)) == 1
    with pytest.raises(IndexError):
        batches[3]
    with pytest.raises(IndexError):
        batches[-1]


@pytest.mark.parametrize("hosts", [2, 4])
def test_held_out_batches_of_hosts(hosts):
    blocks = CountedBlocks(10)
    whole = held_out_batches(blocks, objective("causal-lm"), 8)
    parts = [held_out_batches(blocks, objective("causal-lm"), 8, host_index=h, host_count=hosts) for h in range(hosts)]
    for index in range(len(whole)):
        for key, value in whole[index].items():
            assert np.array_equal(value, np.concatenate([part[index][key] for part in parts]))


@pytest.mark.parametrize("name", ["span-corruption", "text-infilling", "gap-sentences"])
def test_batches_of_encoder_decoder_objectives(name):
    """All batches have one shape, hosts share a batch, and filling rows have no labels."""

    class Sentences:
        def __len__(self):
            return 10

        def read(self, indices):
            return {"input_ids": sentences(10, 24, stops=0.2)[indices]}

    denoising = objective(name, tokenizer())
    (source, target), held_out = denoising.lengths(24), held_out_batches(Sentences(), denoising, 8)
    for batch in (*held_out, Batches(Sentences(), denoising, 8)[3]):
        shapes = {key: value.shape for key, value in batch.items()}
        assert shapes == dict.fromkeys(("input_ids", "attention_mask"), (8, source)) | dict.fromkeys(
            ("decoder_input_ids", "labels"), (8, target)
        )
    labelled = (held_out[1]["labels"] != -100).any(axis=1)
    assert labelled.tolist() == [True] * 2 + [False] * 6
    whole = Batches(Sentences(), denoising, 8)
    parts = [Batches(Sentences(), denoising, 8, host_index=host, host_count=2) for host in range(2)]
    for key, value in whole[1].items():
        assert np.array_equal(value, np.concatenate([part[1][key] for part in parts]))


@pytest.mark.parametrize(
    ("blocks", "batch_size", "options", "message"),
    [
        (0, 4, {}, "no blocks"),
        (10, 11, {}, "11 but there are only 10 blocks"),
        (10, 0, {}, "batch_size is 0"),
        (10, -4, {}, "batch_size is -4"),
        (10, 6, {"host_count": 4}, "such as 8"),
        (10, 4, {"host_index": 2, "host_count": 2}, "host_index is 2"),
        (10, 4, {"host_count": 0}, "host_count 0"),
        (10, 4, {"first_block": -1}, "first_block is -1"),
        (10, 4, {"seed": -1}, "seed is -1"),
    ],
)
def test_invalid_settings_are_an_error(blocks, batch_size, options, message):
    with pytest.raises(InputError, match=message):
        Batches(CountedBlocks(blocks), position_labels, batch_size, **options)
    if blocks and batch_size < 11 and "first_block" not in options:
        with pytest.raises(InputError, match=message):
            held_out_batches(CountedBlocks(blocks), position_labels, batch_size, **options)


def test_negative_steps_are_an_error():
    batches = Batches(CountedBlocks(10), position_labels, 4)
    for call in (batches.__getitem__, batches.positions, batches.next_block):
        with pytest.raises(InputError, match="step is -1"):
            call(-1)
