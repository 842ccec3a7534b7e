"""Encoders over sentence-embedding pipelines: prefixes, titles, lengths, names."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from duonlp.architectures import config_from_hf
from duonlp.errors import InputError
from duonlp.pipelines.pipeline import make_pipeline
from duonlp.retrieval import DPREncoder, SentenceEncoder
from tests.reference import record_pipelines as reference

TEXTS = ["Ada Lovelace wrote", "The loom"]
E5 = {"prompts": {"query": "query: ", "passage": "passage: "}, "similarity_fn_name": "cosine"}


def make(folder, settings=None, normalize=False, model_type="bert", seed=0, **options):
    folder.mkdir(exist_ok=True, parents=True)
    if model_type == "bert":
        names = ["Transformer", "Pooling"] + ["Normalize"] * normalize
        modules = [
            {"path": f"{i}_{n}" if i else "", "type": f"sentence_transformers.models.{n}"} for i, n in enumerate(names)
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
        (folder / "config_sentence_transformers.json").write_text(json.dumps(settings or {}))
    save_file({"a": np.full(3, seed, np.float32)}, folder / "model.safetensors")
    tokenizer = reference.load_tokenizer("wordpiece")
    hf = {"model_type": model_type, "vocab_size": len(tokenizer), "hidden_size": 16, "num_attention_heads": 2}
    config = config_from_hf(hf | {"max_position_embeddings": 128, **options})
    model = reference.NumpyModel(len(tokenizer))

    def forward(batch):
        hidden = model.hidden(**{k: v for k, v in batch.items() if k != "position_ids"})
        return {"last_hidden_state": hidden, "pooler_output": hidden[:, 0]}

    return make_pipeline("sentence-embedding", forward, tokenizer, config, folder)


def test_prefixes_come_from_the_checkpoint_or_the_caller(tmp_path):
    pipe = make(tmp_path, E5)
    encoder = SentenceEncoder(pipe)
    assert (encoder.query_prefix, encoder.document_prefix) == ("query: ", "passage: ")
    expected = pipe(["query: " + text for text in TEXTS], normalize=True)
    assert np.allclose(encoder.encode_queries(TEXTS), expected, atol=1e-6)
    expected = pipe([f"passage: Loom {TEXTS[0]}", f"passage: {TEXTS[1]}"], normalize=True)
    assert np.allclose(encoder.encode_documents(TEXTS, ["Loom", ""]), expected, atol=1e-6)
    assert encoder.encode_documents([]).shape == (0, encoder.size) and encoder.size == 16
    bge = SentenceEncoder(pipe, "find: ", "")
    assert np.allclose(bge.encode_documents(TEXTS), pipe(TEXTS, normalize=True), atol=1e-6)
    assert SentenceEncoder(make(tmp_path, {"prompts": {"a": "b "}, "default_prompt_name": "a"})).document_prefix == "b "


def test_inner_products_are_the_similarity_that_the_model_was_trained_for(tmp_path):
    assert np.allclose(np.linalg.norm(SentenceEncoder(make(tmp_path, E5)).encode_queries(TEXTS), axis=1), 1)
    pipe = make(tmp_path, E5 | {"similarity_fn_name": "dot"})
    assert np.allclose(SentenceEncoder(pipe, "", "").encode_queries(TEXTS), pipe(TEXTS))
    pipe = make(tmp_path, {"similarity_fn_name": "euclidean"})
    with pytest.raises(InputError, match=r"trained for euclidean distances.*pass normalize=True"):
        SentenceEncoder(pipe)
    assert np.allclose(np.linalg.norm(SentenceEncoder(pipe, normalize=True).encode_queries(TEXTS), axis=1), 1)


def test_the_name_depends_on_weights_and_settings_not_on_the_folder(tmp_path):
    first, copy, other = (make(tmp_path / name, E5, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    names = [SentenceEncoder(pipe).name for pipe in (first, copy, other)]
    assert names[0] == names[1] != names[2]
    more = [
        SentenceEncoder(first, "a").name,
        SentenceEncoder(first, normalize=False).name,
        SentenceEncoder(first, max_length=9).name,
    ]
    assert len({*names, *more}) == 5
    (tmp_path / "a" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no files that would identify it; pass name="):
        SentenceEncoder(first)
    other.weights_folder = None  # of a model in memory
    with pytest.raises(
        InputError, match="may have been trained since; make the pipeline from its folder, or pass name="
    ):
        SentenceEncoder(other)
    assert SentenceEncoder(first, name="mine").name == "mine, prefixes 'query: ' and 'passage: ', unit length"


def test_dpr_pairs_titles_with_texts(tmp_path):
    question = make(tmp_path / "q", model_type="dpr")
    context = make(tmp_path / "c", model_type="dpr", seed=1, architectures=["DPRContextEncoder"])
    encoder = DPREncoder(question, context, max_length=12)
    assert np.array_equal(encoder.encode_queries(TEXTS), question(TEXTS))
    pair = {"text": "Loom", "text_pair": TEXTS[0]}
    expected = context([pair, TEXTS[1]], max_length=12)
    assert np.array_equal(encoder.encode_documents(TEXTS, ["Loom", ""]), expected)
    assert np.array_equal(encoder.encode_documents(TEXTS), context(TEXTS))
    assert encoder.name != DPREncoder(question, context).name != DPREncoder(question, question).name
    with pytest.raises(InputError, match=r"question_pipe is a DPRContextEncoder.*pass the question encoder first"):
        DPREncoder(context, question)
    with pytest.raises(InputError, match="there are 1 titles for 2 texts"):
        encoder.encode_documents(TEXTS, ["Loom"])
    with pytest.raises(InputError, match="vectors have 16 values and the context encoder's 3"):
        DPREncoder(question, make(tmp_path / "c", model_type="dpr", projection_dim=3))


def test_other_things_than_pipelines_are_refused(tmp_path):
    with pytest.raises(InputError, match="SentenceEncoder got 'folder'; pass a pipeline of an engine"):
        SentenceEncoder("folder")
    with pytest.raises(InputError, match="sentence-embedding: input 1"):
        SentenceEncoder(make(tmp_path)).encode_documents(["a", 3])
