"""How fast blocks are made and read: the standard library, tokenised, packed, and read back in batches.

    python -m benchmarks blocks

Each figure is by the clock and in seconds of this process' own processor time, which other work does not change.
"""

import argparse
import tempfile
import time

import numpy as np

from duonlp.data import Batches, CleaningReport, objective, open_blocks, read_documents, standard_library_folder
from duonlp.data.blocks.reader import write_blocks
from duonlp.data.reading.corpus import STANDARD_LIBRARY_SKIPS
from duonlp.tokenizers import train_tokenizer


def timed(call, times: int = 1) -> tuple[float, float]:
    """Seconds that `call(i)` takes, the mean of several times: by the clock, of processor time."""
    clock, processor = time.perf_counter(), time.process_time()
    for i in range(times):
        call(i)
    return (time.perf_counter() - clock) / times, (time.process_time() - processor) / times


def main(options: list[str] | None = None) -> None:
    """Makes blocks in a temporary folder, reads them, and prints the figures."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(options)
    library = read_documents(str(standard_library_folder()), skip=STANDARD_LIBRARY_SKIPS, report=CleaningReport())
    texts = [document.text for document in library]
    tokenizer = train_tokenizer(texts[:200], vocab_size=8000)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"block_length": 256, "segment_ids": True}
        clock, processor = timed(lambda _: write_blocks(texts, tokenizer, folder, **settings))
        blocks = open_blocks(folder, tokenizer)
        tokens = blocks.manifest.tokens
        print(f"{tokens:,} tokens prepared: {tokens / clock:,.0f}/s, {tokens / processor:,.0f} a core-second")
        calls = {"read 8 blocks of 256": lambda i: blocks.read(np.arange(8) * 97 + i)}
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
        for name, more in (("causal-lm", {}), ("masked-lm", {}), ("masked-lm", {"whole_words": True})):
            what = objective(name, tokenizer, **more)
            calls[f"a batch of 8 x 256, {name} {more or ''}"] = Batches(blocks, what, 8, seed=3).__getitem__
        for name, call in calls.items():
            call(0)
            clock, processor = timed(call, 300)
            print(f"{name}: {clock * 1e3:.2f} ms, {processor * 1e3:.2f} ms of processor time")


if __name__ == "__main__":
    main()
