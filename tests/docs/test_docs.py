"""Every code block of README.md and docs/ runs as it stands.

Checkpoints that the texts name by Hub id are small random ones in folders of that name, so nothing is downloaded.
Blocks of Python share one namespace within a file; blocks of shell run line by line, but for installing and make.
"""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.cases import ENCODER, SIZES, Case

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [
    *PAGES,
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "tpu_scripts/README.md")),
]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)
NOT_HERE = ("make ", "pip install", "python -m benchmarks", "python -m tests.reference")


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every code block."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(language, textwrap.dedent(text)) for _, language, text in found]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder with the checkpoints the texts speak of."""
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


T5_SPECIAL = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
T5_TASKS = {
    "summarization": {"prefix": "summarize: ", "max_length": 20, "min_length": 4, "num_beams": 4},
    "translation_en_to_fr": {"prefix": "translate English to French: ", "max_length": 20, "num_beams": 4},
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_block_runs(page: Path, checkpoints: Path, monkeypatch):
    monkeypatch.chdir(checkpoints)
    namespace = {"__name__": page.stem}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, f"{page.name}", "exec"), namespace)
        elif language == "bash":
            for line in filter(None, (line.split("#")[0].strip() for line in text.splitlines())):
                if not line.startswith(NOT_HERE):
                    run(line)
        elif language != "text":  # what the block before it printed: python -m tests.docs.record_outputs
            assert all(not line or line.startswith(NOT_HERE) for line in text.splitlines()), f"no language: {text}"


def run(line: str) -> None:
    """One shell line, with this Python's commands first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(line, shell=True, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"


def families_table() -> str:
    """The table of families and heads, as README has it."""
    from duonlp import architectures

    lines = ["| head | " + " | ".join(architectures.families()) + " |"]
    lines.append("|---|" + ":-:|" * len(architectures.families()))
    for head in architectures.HEADS:
        has = [head in architectures.get(f).heads(f) for f in architectures.families()]
        lines.append(f"| {head} | " + " | ".join("✓" if h else "" for h in has) + " |")
    return "\n".join(lines)


FAMILIES = re.compile(r"(<!-- families.*?-->\n).*?(<!-- /families -->)", re.S)


def test_the_table_of_families_is_the_registry_s():
    assert FAMILIES.search(PAGES[0].read_text(encoding="utf-8"))[0].find(families_table()) > 0


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
        if target.startswith("reference/"):  # made with the site, where `make docs` checks it
            continue
        assert (page.parent / target).exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(page.parent / target if target else page), f"{page.name}: {target}#{anchor}"


if __name__ == "__main__":
    readme = PAGES[0].read_text(encoding="utf-8")
    PAGES[0].write_text(FAMILIES.sub(lambda m: f"{m[1]}{families_table()}\n{m[2]}", readme), encoding="utf-8")
