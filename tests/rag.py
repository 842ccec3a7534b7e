"""A tiny RAG model of BERT and BART, its inputs, and Transformers' model of the same weights."""

import functools
import tempfile
from pathlib import Path

import numpy as np

from duonlp.checkpoints.save import tensors_to_write, write_checkpoint
from duonlp.parameters import parameters
from duonlp.rag import RagConfig, RagTokenizers
from duonlp.rag.checkpoint import HEADS, renamed
from duonlp.retrieval import Document
from tests.cases import ENCODER, SEQ2SEQ, Case, _value

ROWS, DOCUMENTS, LENGTH, TARGET, QUESTION = 2, 3, 8, 6, 5
BOS, PAD, EOS = 0, 1, 2
GENERATOR = SEQ2SEQ | {
    "model_type": "bart", "bos_token_id": BOS, "pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": EOS,
    "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0, "tie_word_embeddings": False, "forced_eos_token_id": None,
}  # fmt: skip
QUESTION_ENCODER = ENCODER | {"num_hidden_layers": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CLASSES = {"RagSequence": "RagSequenceForGeneration", "RagToken": "RagTokenForGeneration"}


@functools.cache
def folder(encoder: str = "dpr") -> Path:
    """Write the checkpoint and return its folder; it is never changed."""
    parts = {"question_encoder": QUESTION_ENCODER | {"model_type": encoder}, "generator": GENERATOR}
    cases = {name: Case(name, hf, HEADS[name]) for name, hf in parts.items()}
    rows = []
    for name, case in cases.items():
        spec = parameters(case.config, case.head)
        read = functools.partial(lambda case, spec, path: _value(case.seed, path, spec[path]), case, spec)
        rows += renamed(tensors_to_write(case.config, case.head, read, np.dtype("float32")), name)
    config = RagConfig(cases["question_encoder"].config, cases["generator"].config, n_docs=DOCUMENTS)
    path = Path(tempfile.mkdtemp()) / "rag"
    write_checkpoint(path, rows, config.hf_config("RagTokenForGeneration"), {})
    return path


def inputs(bos: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """Return documents, questions and labels; ``bos``: whether all labels have it after the decoder's start token."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, LENGTH + 1, ROWS * DOCUMENTS)
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    labels = rng.integers(5, 55, (ROWS, TARGET))
    labels[:, 0], labels[1, -2:] = EOS, (EOS, PAD)
    labels[:, 1] = np.where(bos, BOS, labels[:, 1])
    question_mask = np.ones((ROWS, QUESTION), np.int32)
    question_mask[1, -2:] = 0
    return {
        "input_ids": rng.integers(5, 55, (ROWS, QUESTION)).astype(np.int32) * question_mask,
        "attention_mask": question_mask,
        "context_input_ids": np.where(mask, rng.integers(5, 55, (ROWS * DOCUMENTS, LENGTH)), PAD).astype(np.int32),
        "context_attention_mask": mask,
        "doc_embeddings": rng.standard_normal((ROWS, DOCUMENTS, ENCODER["hidden_size"])).astype(np.float32) * 0.2,
        "labels": labels.astype(np.int32),
    }  # fmt: skip


@functools.cache
def torch_model(name: str, encoder: str = "dpr"):
    """Return Transformers' model, asserting that the names of all tensors match."""
    import transformers

    cls = getattr(transformers, CLASSES[name])
    model, info = cls.from_pretrained(folder(encoder), output_loading_info=True, attn_implementation="eager")
    missing = {key for key in info["missing_keys"] if ".pooler." not in key}
    assert not missing and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()


SCORES = np.random.default_rng(1).standard_normal((ROWS, DOCUMENTS)).astype(np.float32)
LOSSES = {
    "RagSequence": {"plain": {}, "reduced": {"reduce_loss": True}, "no_start": {"exclude_bos_score": True}},
    "RagToken": {"plain": {}, "reduced": {"reduce_loss": True}, "marginal": {"do_marginalize": True}},
}
"""Flags of the calls to compare, by class and name."""

DECODING = {
    "RagSequence": {
        "greedy": {"num_beams": 1},
        "beams": {"num_beams": 3, "num_return_sequences": 2},
        "duplicates": {"num_beams": 3, "num_return_sequences": 3, "do_deduplication": False, "eos_token_id": 7},
        "ends": {"num_beams": 3, "num_return_sequences": 2, "eos_token_id": 7, "length_penalty": 0.5},
        "fast": {"num_beams": 3, "num_return_sequences": 2, "eos_token_id": 7, "length_penalty": 2.0, "fast": True},
    },
    "RagToken": {
        "greedy": {"num_beams": 1},
        "beams": {"num_beams": 3, "num_return_sequences": 2},
        "ends": {"num_beams": 3, "num_return_sequences": 3, "eos_token_id": 7, "early_stopping": True},
        "ngrams": {"num_beams": 2, "no_repeat_ngram_size": 2, "min_length": 6},
    },
}  # fmt: skip
"""Options of ``generate``, by class and name; all have max_length 8."""


def context(inputs: dict) -> dict:
    """Return the documents among the inputs."""
    return {name: inputs[name] for name in ("context_input_ids", "context_attention_mask")}


def without_padding(ids: np.ndarray, end: int = EOS) -> list[list[int]]:
    """Return texts up to their end, which may be missing, without padding."""
    texts = []
    for row in ids.tolist():
        ends = [i for i, token in enumerate(row[1:], 1) if token == end]
        texts.append(row[: ends[0] + 1] if ends else row)
    return texts


def torch_answers(name: str) -> dict[str, np.ndarray]:
    """Return losses, logits, gradients and generated ids of Transformers' model, by name."""
    import torch

    torch.set_num_threads(1)
    model, data = torch_model(name), inputs()
    tensors = {key: torch.tensor(value).long() for key, value in (context(data) | {"labels": data["labels"]}).items()}
    answers = {}
    for label, flags in LOSSES[name].items():
        out = model(**tensors, doc_scores=torch.tensor(SCORES), **flags)
        answers |= {f"{label}/loss": out.loss.detach().numpy(), f"{label}/logits": out.logits.detach().numpy()}
    model.zero_grad()
    question = {key: torch.tensor(data[key]).long() for key in ("input_ids", "attention_mask")}
    vectors = model.question_encoder(**question)[0]
    scores = torch.bmm(vectors.unsqueeze(1), torch.tensor(data["doc_embeddings"]).transpose(1, 2)).squeeze(1)
    loss = model(**tensors, doc_scores=scores).loss.mean()
    loss.backward()
    answers["trained/loss"] = loss.detach().numpy()
    answers |= {f"gradient/{path}": gradient for path, gradient in _torch_gradients(model).items()}
    for label, options in DECODING[name].items():
        answers[f"ids/{label}"] = _torch_ids(name, model, options)
    return answers


def _torch_gradients(model) -> dict[str, np.ndarray]:
    """Return the gradients by our parameters' paths and in our layouts."""
    from duonlp import architectures
    from duonlp.checkpoints.layouts import our_layout

    config, gradients = RagConfig.from_hf(model.config.to_dict()), {}
    for part, head in HEADS.items():
        cfg = getattr(config, part)
        named = dict(getattr(model, part).named_parameters(remove_duplicate=False))
        family = architectures.get(cfg.model_type)
        for row in family.weights(cfg, head):
            own = row.name.removeprefix(family.PREFIX if head == "base" else "")
            if row.path is not None and own in named:
                gradient = named[own].grad
                gradient = np.zeros(named[own].shape, np.float32) if gradient is None else gradient.numpy()
                gradients[f"{part}/{row.path}"] = our_layout(row.layout, gradient)
    return gradients


def _torch_ids(name: str, model, options: dict) -> np.ndarray:
    """Return generated ids, int [texts, n]."""
    import torch

    tensors = {key: torch.tensor(value).long() for key, value in context(inputs()).items()}
    scores = torch.tensor(SCORES)
    if name == "RagToken":
        return model.generate(**tensors, doc_scores=scores, max_length=8, **options).numpy()
    generator, plain = model.generator, type(model.generator).generate

    def masked(ids, **arguments):  # Transformers 5 passes no mask, so that its answers depend on the amount of padding
        return plain(generator, ids, **arguments | {"attention_mask": (ids != PAD).long(), "max_length": 8})

    if not options.get("fast"):
        generator.generate = masked
        try:
            return model.generate(**tensors, doc_scores=scores, **options).numpy()
        finally:
            del generator.generate
    return _fast(masked, tensors["context_input_ids"], {k: v for k, v in options.items() if k != "fast"})


def _fast(generate, ids, options: dict) -> np.ndarray:
    """Return the ids of the paper's fast decoding, from the log probabilities of Transformers' beams."""
    import torch

    returned, best = options["num_return_sequences"], []
    prior = torch.log_softmax(torch.tensor(SCORES), 1).numpy()
    for row in range(ROWS):
        sums: dict[tuple, float] = {}
        for document in range(DOCUMENTS):
            source = ids[row * DOCUMENTS + document][None]
            many = options | {"num_return_sequences": options["num_beams"]}
            out = generate(source, **many, return_dict_in_generate=True, output_scores=True)
            lengths = (out.beam_indices >= 0).sum(1)
            totals = (out.sequences_scores * lengths ** options["length_penalty"]).numpy()
            for text, total in zip(without_padding(out.sequences.numpy(), 7), totals + prior[row, document]):
                sums[tuple(text)] = float(np.logaddexp(sums.get(tuple(text), -np.inf), total))
        best += [list(text) for text in sorted(sums, key=lambda text: -sums[text])[:returned]]
    width = max(map(len, best))
    return np.array([text + [PAD] * (width - len(text)) for text in best])


# -- both engines ----------------------------------------------------------------------------------------------------------


def load(framework: str, name: str, **options):
    """Return an engine's model."""
    from importlib import import_module

    return getattr(import_module(f"{framework}.rag"), name).from_pretrained(folder(), **options)


def outputs(framework: str, model, calls: dict[str, dict], **data) -> dict[str, dict]:
    """Return the outputs of a model for the same arrays and several flags; in JAX, of one program."""
    if framework == "tfnlp":
        return {label: model(**data, **flags) for label, flags in calls.items()}
    import jax

    import jaxnlp

    apply, params = jaxnlp.functional(model)
    return jax.jit(lambda p: {label: apply(p, **data, **flags) for label, flags in calls.items()})(params)


def gradients(framework: str, model) -> tuple[float, dict[str, np.ndarray]]:
    """Return the mean of the loss over the rows, with document vectors, and its gradient by path."""
    return {"jaxnlp": _jax_gradients, "tfnlp": _tf_gradients}[framework](model, inputs())


def _jax_gradients(model, data):
    import jax
    import jax.numpy as jnp

    import jaxnlp

    apply, params = jaxnlp.functional(model)
    loss, tree = jax.jit(jax.value_and_grad(lambda p: jnp.mean(apply(p, **data)["nll"])))(params)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return float(loss), {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}


def _tf_gradients(model, data):
    import tensorflow as tf

    tree = model.parameter_tree()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(**data)["nll"])
    values = tape.gradient(loss, [variable.value for variable in tree.values()], unconnected_gradients="zero")
    return float(loss), {path: tf.convert_to_tensor(value).numpy() for path, value in zip(tree, values)}


# -- texts -----------------------------------------------------------------------------------------------------------------

TEXT = "<s> <pad> </s> <unk> what color is the fox hen cow red blue green / // a ?"
WORDS = tuple(TEXT.split())


def tokenizers() -> RagTokenizers:
    """Return tokenizers with one token per word: BART's <s> and </s> around a text, and none around questions."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = []
    for template in ("$A", "<s> $A </s>"):
        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 0), ("</s>", 2)]
        )
        special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        made.append(PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=MASKED, **special))
    return RagTokenizers(*made)


MASKED = ["input_ids", "attention_mask"]


def documents(*, embedded: bool = True) -> list[list[Document]]:
    """Return the documents of two questions, with embeddings."""
    rng, found = np.random.default_rng(0), []
    for animal, color in (("fox", "red"), ("hen", "blue")):
        texts = (f"the {animal} is {color}", f"the {animal} is a {animal}", "the cow is green")
        vectors = rng.standard_normal((len(texts), ENCODER["hidden_size"])).astype(np.float32)
        found.append([
            Document(text, {"title": animal}, f"{animal}{i}", vectors[i] if embedded else None, score=-float(i))
            for i, text in enumerate(texts)
        ])  # fmt: skip
    return found


QUESTIONS, ANSWERS = ["what color is the fox ?", "what color is the hen ?"], ["red", "blue"]


def questions() -> dict[str, np.ndarray]:
    """Return the question encoder's inputs."""
    return {name: inputs()[name] for name in MASKED}


class Found:
    """A retriever that knows the two questions; it keeps what it was asked."""

    def __init__(self, **options):
        self.documents, self.calls = documents(**options), []

    def retrieve(self, queries, *, top_k=None, filters=None):
        self.calls.append((list(queries), top_k, filters))
        return [self.documents[QUESTIONS.index(query)][:top_k] for query in queries]
