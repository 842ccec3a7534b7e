"""Record the results of the text2text-generation, summarization and translation pipelines of Transformers 4.57.

   python -m tests.reference.record_text2text   # with torch and Transformers 4.57, the last version that has them

As in record_pipelines, a function replaces the model's ``generate``, so that the tests need neither torch nor a checkpoint.
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
"""Additional entries of config.json."""

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
    """Return decoder ids that depend on each source alone, not on its padding or the rest of the batch.

    The k-th text of a source copies some of its tokens, starting at token k.

    Args:
        input_ids: Sources, int [B, S].
        attention_mask: Their mask, int [B, S].
        new_tokens: Maximum number of tokens per text.
        texts: Number of texts per source.
        forced: First token of every text, if any.

    Returns:
        int32 [B * texts, 1 + n], each row beginning with START and padded with PAD.
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
    """Record every call of CALLS for every task and model."""
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

            def generate(input_ids=None, attention_mask=None, generation_config=None, settings=settings, **options):
                settings |= {key: options.get(key, getattr(generation_config, key)) for key in SETTINGS}
                new_tokens, texts = options.get("max_new_tokens", 256), settings["num_return_sequences"]
                return torch.tensor(write_texts(input_ids, attention_mask, new_tokens, texts))

            model.generate = generate
            pipe = transformers.pipeline(task, model=model, tokenizer=tokenizer)
            for number, (inputs, options) in enumerate(CALLS):
                result = pipe(inputs, **options)
                for part in _records(result):
                    for key in [key for key in part if hasattr(part[key], "tolist")]:
                        ids = part[key].tolist()  # padded to the longest of the batch
                        part[key] = ids[: ids.index(END) + 1] if END in ids else ids
                values = [settings[key] for key in SETTINGS]
                cases.append({"task": task, "model": name, "call": number, "settings": values, "result": result})
    write("text2text_generation", cases)


def _records(result) -> list[dict]:
    """Return the dicts of a nested list of results."""
    return [result] if isinstance(result, dict) else [record for part in result for record in _records(part)]


if __name__ == "__main__":
    record()
