"""Run every code block of README.md and docs/, and check their links and the table of families.

Checkpoints named by Hub id are replaced by small random ones in folders of that name, so nothing is downloaded. The Python blocks
of a file share a namespace; shell blocks run line by line, except the commands of SKIPPED.
"""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from duonlp.evaluation import isolation_error
from tests.cases import ENCODER, SIZES, Case

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [
    *PAGES,
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "tpu_scripts/README.md")),
]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)
SKIPPED = ("make ", "pip install", "python -m benchmarks", "python -m tests.reference")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the (language, text) of every code block."""
    matches = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(language, textwrap.dedent(text)) for _, language, text in matches]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Write the checkpoints that the pages name; return their folder."""
    folder = tmp_path_factory.mktemp("docs")
    tokenizers = ROOT / "tests/reference/pipelines"
    words = json.loads((tokenizers / "wordpiece.json").read_text())
    pieces = json.loads((tokenizers / "gpt2.json").read_text())
    bert = ENCODER | {"model_type": "bert", "vocab_size": 2000, "max_position_embeddings": 64}
    unigram = json.loads((tokenizers / "unigram.json").read_text())
    ids = {"vocab_size": 110, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    t5 = SIZES["t5"] | ids | {"model_type": "t5", "task_specific_params": T5_TASKS}
    gpt2 = SIZES["gpt2"] | {"model_type": "gpt2", "vocab_size": 2000, "n_positions": 64}
    for name, hf, head, tokenizer, special in (
        ("google-bert/bert-base-uncased", bert, "masked-lm", words, BERT_SPECIAL),
        ("openai-community/gpt2", gpt2, "causal-lm", pieces, {"eos_token": "<|endoftext|>"}),
        ("google-t5/t5-small", t5, "seq2seq-lm", unigram, T5_SPECIAL),
        ("deepset/minilm-uncased-squad2", bert, "question-answering", words, BERT_SPECIAL),
        ("sentence-transformers/all-MiniLM-L6-v2", bert, "base", words, BERT_SPECIAL),
        ("facebook/bart-large-mnli", bert | {"id2label": NLI_LABELS}, "sequence-classification", words, BERT_SPECIAL),
        ("demo/model", gpt2 | {"n_positions": 128}, "causal-lm", pieces, {"eos_token": "<|endoftext|>"}),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Case(name, hf, head).write(folder / name)
        (folder / name / "tokenizer.json").write_text(json.dumps(tokenizer))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64} | special
        (folder / name / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


BERT_SPECIAL = {
    "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]", "unk_token": "[UNK]",
    "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
}  # fmt: skip


NLI_LABELS = {"0": "contradiction", "1": "neutral", "2": "entailment"}
T5_SPECIAL = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
T5_TASKS = {
    "summarization": {"prefix": "summarize: ", "max_length": 20, "min_length": 4, "num_beams": 4},
    "translation_en_to_fr": {"prefix": "translate English to French: ", "max_length": 20, "num_beams": 4},
}


@pytest.fixture
def registries():
    """Remove after a page what it registers, so that later tests of this process see the built-in families and heads."""
    from duonlp import architectures

    registered = [(registry, dict(registry)) for registry in (architectures._registry(), architectures.HEADS)]
    yield
    for registry, before in registered:
        registry.clear()
        registry.update(before)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.usefixtures("registries")
def test_every_block_runs(page: Path, checkpoints: Path, monkeypatch):
    if page.name == "code-evaluation.md" and (reason := isolation_error()):
        pytest.skip(reason)
    monkeypatch.chdir(checkpoints)
    namespace = {"__name__": page.stem}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, f"{page.name}", "exec"), namespace)
        elif language == "bash":
            for line in filter(None, (line.split("#")[0].strip() for line in text.splitlines())):
                if not line.startswith(SKIPPED):
                    run(line)
        elif language != "text":  # text is the output of the previous block, see tests/docs/record_outputs.py
            assert all(not line or line.startswith(SKIPPED) for line in text.splitlines()), (
                f"the block has no language: {text}"
            )


def run(line: str) -> None:
    """Run one shell line, with this Python's commands first on PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(line, shell=True, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"


def families_table() -> str:
    """Return the Markdown table of families and heads in README.md."""
    from duonlp import architectures

    lines = ["| head | " + " | ".join(architectures.families()) + " |"]
    lines.append("|---|" + ":-:|" * len(architectures.families()))
    for head in architectures.HEADS:
        has = [head in architectures.get(f).heads(f) for f in architectures.families()]
        lines.append(f"| {head} | " + " | ".join("✓" if h else "" for h in has) + " |")
    return "\n".join(lines)


FAMILIES = re.compile(r"(<!-- families.*?-->\n).*?(<!-- /families -->)", re.S)


def test_families_table_matches_the_registry():
    assert FAMILIES.search(PAGES[0].read_text(encoding="utf-8"))[0].find(families_table()) > 0


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and MkDocs derive from a page's headings."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_resolve(page: Path):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
        if target.startswith("reference/"):  # generated and checked by `make docs`
            continue
        assert (page.parent / target).exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(page.parent / target if target else page), f"{page.name}: {target}#{anchor}"


if __name__ == "__main__":
    readme = PAGES[0].read_text(encoding="utf-8")
    PAGES[0].write_text(FAMILIES.sub(lambda m: f"{m[1]}{families_table()}\n{m[2]}", readme), encoding="utf-8")
