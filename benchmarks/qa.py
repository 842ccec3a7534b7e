"""Time extractive question answering over long contexts: tfnlp and jaxnlp against the pipeline of Transformers 4.57 on PyTorch.

    python -m benchmarks qa [--rounds 9] [--questions 50] [--tokens 500] [--contestants NAME ...] [--json]

A reader of the size of MiniLM-L6 answers questions of 10 tokens on contexts of 500, in windows of 384 tokens that overlap by 128;
tokenization and the search for the best span are timed too. Weights are random, from one shared checkpoint, and so are the words.

Transformers 5 has no such pipeline. The reference repeats what 4.57 does, with its defaults, on the PyTorch model: it tokenizes
one question at a time, runs one unpadded window at a time, and searches the matrix of all spans of a window. The run fails unless
all contestants return the same spans.
"""

import argparse
import atexit
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks._interleave import Setting, Work, interleave, machine, ratios, write_in_subprocess
from benchmarks._report import drop_missing, footer
from duonlp.util.json_text import to_json

if TYPE_CHECKING:
    import numpy as np

BERT: dict[str, Any] = {
    "vocab_size": 6000, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536,
    "max_position_embeddings": 512, "initializer_range": 0.05,
}  # fmt: skip
REFERENCE = "transformers-torch"
CONTESTANTS = (REFERENCE, "tfnlp", "jaxnlp")
QUESTION_TOKENS, MAX_ANSWER_LEN, TOP_K = 10, 15, 1


def make_tokenizer() -> Any:
    """Return a WordPiece tokenizer of whole words and of words in two pieces, with BERT's special tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [f"{first}{second}{third}" for first in "bdfgklmnprst" for second in "aeiou" for third in "bdfgklmnprst"]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words, *(f"##{word}" for word in words)]
    made = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ["input_ids", "token_type_ids", "attention_mask"]
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=names, model_max_length=512, **special)


def make_questions(count: int, tokens: int) -> list[dict[str, str]]:
    """Return questions on contexts of a given number of tokens, made of random words of one or two pieces."""
    import numpy as np

    random = np.random.default_rng(0)
    words = [piece for piece in make_tokenizer().get_vocab() if piece.isalpha()]

    def text(length: int) -> str:
        pieces = random.choice(sorted(words), length)
        joints = np.where(random.random(length) < 0.25, "", " ")  # every fourth piece continues a word
        return "".join(f"{piece}{joint}" for piece, joint in zip(pieces, joints, strict=True)).strip()

    return [{"question": text(QUESTION_TOKENS), "context": text(tokens)} for _ in range(count)]


def write_checkpoint(folder: str) -> None:
    """Write the reader with random weights and its tokenizer in Hugging Face layout."""
    import torch
    from transformers import BertConfig, BertForQuestionAnswering

    torch.manual_seed(0)
    model = BertForQuestionAnswering(BertConfig(**BERT))
    torch.nn.init.normal_(model.qa_outputs.weight, std=0.3)  # so that some spans are likelier than others
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def prepare(name: str, setting: Setting) -> Work:
    """Return a function that answers the questions; at exit, the process writes its last answers.

    Args:
        name: One of CONTESTANTS.
        setting: ``questions``, ``tokens``, ``threads``, and ``folder`` with the checkpoint, where ``{name}.json`` is written.
    """
    if hasattr(os, "sched_setaffinity"):  # before a framework counts the cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: setting["threads"]])
    questions = make_questions(setting["questions"], setting["tokens"])
    answer: Callable[[list[dict[str, str]]], Any] = globals()["_" + name.replace("-", "_")](setting)
    answers: list[dict[str, Any]] = []

    def work() -> None:
        answers[:] = answer(questions)

    def write_record() -> None:
        if answers:
            (Path(setting["folder"]) / f"{name}.json").write_text(to_json(answers), encoding="utf-8")

    atexit.register(write_record)
    return work


def _tfnlp(setting: Setting) -> Callable[..., Any]:
    import tfnlp

    return tfnlp.pipeline("question-answering", setting["folder"])


def _jaxnlp(setting: Setting) -> Callable[..., Any]:
    import jaxnlp

    return jaxnlp.pipeline("question-answering", setting["folder"])


def _transformers_torch(setting: Setting) -> Callable[..., Any]:
    import torch
    from transformers import AutoTokenizer, BertForQuestionAnswering

    torch.set_num_threads(setting["threads"])
    model = BertForQuestionAnswering.from_pretrained(setting["folder"]).eval()
    return TransformersPipeline(model, AutoTokenizer.from_pretrained(setting["folder"]))


class TransformersPipeline:
    """Answer as QuestionAnsweringPipeline of Transformers 4.57 does with its defaults.

    Args:
        model: PyTorch model with a question-answering head.
        tokenizer: Its fast tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def __call__(self, questions: list[dict[str, str]]) -> list[dict[str, Any]]:
        """Return {"score", "start", "end", "answer"} for each question."""
        import torch

        answers, encode = [], self.tokenizer
        for row in questions:
            size = min(self.tokenizer.model_max_length, 384)
            encoded = encode(
                row["question"], row["context"], truncation="only_second", max_length=size, stride=min(size // 2, 128),
                return_token_type_ids=True, return_overflowing_tokens=True, return_offsets_mapping=True,
                return_special_tokens_mask=True,
            )  # fmt: skip
            found: list[dict[str, Any]] = []
            for number, encoding in enumerate(encoded.encodings):
                inputs = {name: torch.tensor([encoded[name][number]]) for name in encode.model_input_names}
                with torch.inference_mode():
                    outputs = self.model(**inputs)
                logits = outputs["start_logits"].numpy(), outputs["end_logits"].numpy()
                self._add_answers(row["context"], encoding, *logits, found)
            answers.append(max(found, key=lambda answer: answer["score"]))
        return answers

    def _add_answers(
        self, context: str, encoding: Any, start: "np.ndarray", end: "np.ndarray", found: list[dict[str, Any]]
    ) -> None:
        """Add the best spans of a window, given its logits [1, tokens], to the answers found so far."""
        import numpy as np

        ids = np.array(encoding.ids)
        desired = np.array([sequence == 1 for sequence in encoding.sequence_ids]) | (ids == self.tokenizer.cls_token_id)
        start, end = (np.where(desired, logits, -10000.0) for logits in (start, end))
        start, end = (np.exp(logits - logits.max(axis=-1, keepdims=True)) for logits in (start, end))
        start, end = start / start.sum(), end / end.sum()
        start[0, 0] = end[0, 0] = 0.0  # the CLS token
        candidates = np.tril(np.triu(np.matmul(start[:, :, None], end[:, None])), MAX_ANSWER_LEN - 1)
        flat, count = candidates.flatten(), TOP_K * 2 + 10
        best = np.argpartition(-flat, count)[:count]
        best = best[np.argsort(-flat[best])]
        firsts, lasts = np.unravel_index(best, candidates.shape)[1:]
        inside = np.isin(firsts, desired.nonzero()) & np.isin(lasts, desired.nonzero())
        for first, last in zip(firsts[inside], lasts[inside], strict=True):
            score = candidates[0, first, last].item()
            a = encoding.word_to_chars(encoding.token_to_word(first), sequence_index=1)[0]
            b = encoding.word_to_chars(encoding.token_to_word(last), sequence_index=1)[1]
            same = next((answer for answer in found if answer["answer"].lower() == context[a:b].lower()), None)
            if same is None:
                found.append({"score": score, "start": a, "end": b, "answer": context[a:b]})
            else:
                same["score"] += score


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks qa", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed turns of each contestant (default %(default)s)")
    parser.add_argument("--questions", type=int, default=50, help="number of questions (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=500, help="tokens of a context (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each contestant (default %(default)s)")
    parser.add_argument(
        "--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME",
        help=f"what to compare (default: all of {', '.join(CONTESTANTS)})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    for name in ("rounds", "questions", "tokens", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)} must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        write_in_subprocess(write_checkpoint, folder)
        setting = {
            "folder": folder,
            "questions": options.questions,
            "tokens": options.tokens,
            "threads": options.threads,
        }
        first_calls: dict[str, float] = {}
        seconds = interleave(
            "benchmarks.qa", options.contestants, setting, options.rounds, settle=False, first_calls=first_calls
        )
        answers = {
            name: json.loads((Path(folder) / f"{name}.json").read_text(encoding="utf-8"))
            for name, _ in drop_missing(seconds, options.json)
        }
    relative, records = ratios(seconds, REFERENCE), []
    expected = answers.get(REFERENCE) or next(iter(answers.values()), [])
    for name, found in answers.items():
        same = sum((a["start"], a["end"]) == (b["start"], b["end"]) for a, b in zip(found, expected, strict=True))
        median = statistics.median(seconds[name])
        record = {"name": name, "seconds": median, "first_call": first_calls[name], "same_spans": same}
        records.append(record | {"ratio": relative.get(name)})
    report = {"benchmark": "qa", "machine": machine(), "rounds": options.rounds, **setting, "results": records}
    del report["folder"]
    print(to_json(report, indent=2) if options.json else table(report))
    if any(record["same_spans"] != options.questions for record in records):
        sys.exit("the contestants' spans differ")


def table(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table; a ratio below 1 is faster than Transformers."""
    lines = [
        "| | s per call | ms per question | ratio | first call, s | same spans |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for r in report["results"]:
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        milliseconds = 1000 * r["seconds"] / report["questions"]
        lines.append(
            f"| {r['name']} | {r['seconds']:.2f} | {milliseconds:.0f} | {ratio} | {r['first_call']:.1f} | {r['same_spans']} |"
        )
    size = f"{report['questions']} questions over contexts of {report['tokens']} tokens; {report['threads']} threads"
    return "\n".join([*lines, "", f"{size}; {footer(report)}"])


if __name__ == "__main__":
    main()
