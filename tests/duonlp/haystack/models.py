"""Small random checkpoints for the Haystack components."""

import json
from importlib.util import find_spec
from pathlib import Path

from duonlp.tasks import get_task
from tests.cases import Case
from tests.reference import record_pipelines as reference

ENGINES = [framework for framework, module in (("tf", "tensorflow"), ("jax", "flax")) if find_spec(module)]

BERT = {
    "model_type": "bert", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
    "max_position_embeddings": reference.MAX_POSITIONS, "pad_token_id": 0,
}  # fmt: skip


def write_model(task: str, folder: Path, **config: object) -> Path:
    """Write a checkpoint for a task with a recorded tokenizer into a folder, and return its folder."""
    tokenizer = reference.load_tokenizer("wordpiece")
    path = Case(task, BERT | {"vocab_size": len(tokenizer)} | config, get_task(task).head).write(folder / task)
    tokenizer.save_pretrained(path)
    if task == "sentence-embedding":
        kinds = [{"type": f"sentence_transformers.models.{name}", "path": name} for name in ("Transformer", "Pooling")]
        (path / "modules.json").write_text(json.dumps(kinds))
        (path / "Pooling").mkdir()
        (path / "Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    return path
