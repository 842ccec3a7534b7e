"""Records what Transformers 4.57's text2text-generation, summarization and translation pipelines return.

   python tests/reference/record_text2text.py   # with Transformers 4.57, the last that has them, and torch

As in record_pipelines, a function in place of the model writes the texts, so that the tests need neither torch nor a checkpoint.
"""

import copy

import numpy as np

from tests.reference.record_pipelines import LONG_TEXT, TEXTS, load_tokenizer, write

SETTINGS = (
    "num_beams", "min_length", "length_penalty", "no_repeat_ngram_size", "early_stopping", "num_return_sequences",
    "do_sample",
)  # fmt: skip
START, PAD, END = 1, 1, 2
SUMMARY = {
    "prefix": "sum up: ", "num_beams": 3, "max_length": 9, "min_length": 4, "length_penalty": 2.0,
    "no_repeat_ngram_size": 3, "early_stopping": True,
}  # fmt: skip
SPECIFIC = {
    "summarization": SUMMARY, "translation_en_to_fr": {"prefix": "to French: ", "num_beams": 2, "max_length": 8},
}  # fmt: skip
MODELS = {"plain": {}, "prefixed": {"prefix": "now: "}, "specific": {"task_specific_params": SPECIFIC, "prefix": " "}}
"""What a config.json has besides."""

TASKS = ("text2text-generation", "summarization", "translation", "translation_en_to_fr")
CALLS = [
    (TEXTS[0], {}),
    (TEXTS[:3], {}),
    (TEXTS[:3], {"batch_size": 2}),
    (TEXTS[0], {"return_tensors": True}),
    (TEXTS[:2], {"return_tensors": True}),
    (TEXTS[0], {"num_return_sequences": 2}),
    (TEXTS[:2], {"num_return_sequences": 2}),
    (TEXTS[1], {"clean_up_tokenization_spaces": True}),
    (TEXTS[1], {"max_new_tokens": 4, "num_beams": 2, "length_penalty": 0.5}),
    (TEXTS[1], {"num_beams": 1, "do_sample": True}),
    (TEXTS[1], {"return_text": True, "min_length": 2}),
    (LONG_TEXT, {"truncation": True}),
    ([LONG_TEXT, TEXTS[0]], {"truncation": "only_first"}),
]


def write_texts(input_ids, attention_mask, new_tokens: int, texts: int = 1, forced: int | None = None) -> np.ndarray:
    """Decoder ids, int [B * texts, 1 + n]: a few of each source's own tokens, the k-th text without the first k of them.

    They depend on what is in a source alone: not on its padding, nor on what stands beside it.
    """
    rows = []
    for ids, mask in zip(np.asarray(input_ids), np.asarray(attention_mask), strict=True):
        content = [int(i) for i in ids[mask != 0] if i > END]
        for k in range(texts):
            new = ([] if forced is None else [forced]) + content[k : k + 6 + sum(content) % 8]
            rows.append([START, *[*new, END][:new_tokens]])
    length = max(map(len, rows))
    return np.array([row + [PAD] * (length - len(row)) for row in rows], np.int32)


def record() -> None:
    import torch
    import transformers

    tokenizer = load_tokenizer("unigram")
    cases = []
    for name, extra in MODELS.items():
        for task in TASKS:
            config = transformers.T5Config(
                vocab_size=len(tokenizer), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, pad_token_id=PAD,
                eos_token_id=END, decoder_start_token_id=START, **copy.deepcopy(extra),
            )  # fmt: skip
            model = transformers.T5ForConditionalGeneration(config).eval()
            settings: dict = {}

            def generate(input_ids=None, attention_mask=None, generation_config=None, settings=settings, **given):
                def said(key):
                    return given.get(key, getattr(generation_config, key))

                new = given.get("max_new_tokens", 256)
                settings |= {key: said(key) for key in SETTINGS}
                return torch.tensor(write_texts(input_ids, attention_mask, new, said("num_return_sequences")))

            model.generate = generate
            pipe = transformers.pipeline(task, model=model, tokenizer=tokenizer)
            for number, (inputs, options) in enumerate(CALLS):
                result = pipe(inputs, **options)
                for part in _records(result):
                    for key in [key for key in part if hasattr(part[key], "tolist")]:
                        ids = part[key].tolist()  # of a batch, padded
                        part[key] = ids[: ids.index(END) + 1] if END in ids else ids
                made = [settings[key] for key in SETTINGS]
                cases.append({"task": task, "model": name, "call": number, "settings": made, "result": result})
    write("text2text_generation", cases)


def _records(result) -> list[dict]:
    return [result] if isinstance(result, dict) else [record for part in result for record in _records(part)]


if __name__ == "__main__":
    record()
