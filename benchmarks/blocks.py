"""Time preparing and reading blocks: the standard library tokenized, packed into blocks and read in batches.

    python -m benchmarks blocks

Every speed is given in wall-clock time and in CPU time of this process, which other load on the machine does not affect.
"""

import argparse
import tempfile
import time
from collections.abc import Callable

import numpy as np

from duonlp.data import Batches, CleaningReport, objective, open_blocks, read_documents, standard_library_folder
from duonlp.data.blocks.reader import write_blocks
from duonlp.data.reading.corpus import STANDARD_LIBRARY_SKIPS
from duonlp.tokenizers import train_tokenizer


def measure(call: Callable[[int], object], calls: int = 1) -> tuple[float, float]:
    """Return the mean (wall-clock, CPU) seconds of ``call(0)``, ..., ``call(calls - 1)``."""
    wall, cpu = time.perf_counter(), time.process_time()
    for i in range(calls):
        call(i)
    return (time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls


def main(arguments: list[str] | None = None) -> None:
    """Write blocks to a temporary folder, read them, and print the speeds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks blocks", description=__doc__.splitlines()[0])
    parser.parse_args(arguments)
    library = read_documents(str(standard_library_folder()), skip=STANDARD_LIBRARY_SKIPS, report=CleaningReport())
    texts = [document.text for document in library]
    tokenizer = train_tokenizer(texts[:200], vocab_size=8000)
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = measure(lambda _: write_blocks(texts, tokenizer, folder, block_length=256, segment_ids=True))
        blocks = open_blocks(folder, tokenizer)
        tokens = blocks.manifest.tokens
        print(f"{tokens:,} tokens prepared: {tokens / wall:,.0f}/s, {tokens / cpu:,.0f} per CPU second")
        calls: dict[str, Callable[[int], object]] = {
            "read 8 blocks of 256": lambda i: blocks.read(np.arange(8) * 97 + i),
        }
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
        for name, options in (("causal-lm", {}), ("masked-lm", {}), ("masked-lm", {"whole_words": True})):
            batches = Batches(blocks, objective(name, tokenizer, **options), 8, seed=3)
            calls[f"batch of 8 x 256, {name} {options or ''}"] = batches.__getitem__
        for name, call in calls.items():
            call(0)
            wall, cpu = measure(call, 300)
            print(f"{name}: {wall * 1e3:.2f} ms, {cpu * 1e3:.2f} ms of CPU time")


if __name__ == "__main__":
    main()
