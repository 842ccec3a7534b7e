"""Compare every task with Transformers' pipelines, with small random torch models as the forward pass of both."""

import numpy as np
import pytest

from duonlp.architectures import config_from_hf
from duonlp.pipelines.pipeline import make_pipeline
from tests.duonlp.tasks.test_reference import assert_same
from tests.reference import record_pipelines as reference

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

# The tokenizer and the sizes of a small model of each family.
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
FAMILIES = {
    "bert": ("wordpiece", transformers.BertConfig, SMALL | {"max_position_embeddings": 64}),
    "roberta": ("bpe", transformers.RobertaConfig, SMALL | {"max_position_embeddings": 66, "type_vocab_size": 1}),
    "xlm-roberta": ("unigram", transformers.XLMRobertaConfig, SMALL | {"max_position_embeddings": 98}),
    "distilbert": (
        "wordpiece",
        transformers.DistilBertConfig,
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64},
    ),
}
STATES = ("last_hidden_state", "logits", "start_logits", "end_logits")


def build(task: str, family: str, auto, **config):
    """Return Transformers' pipeline (None if it has none), and ours around the same model and tokenizer."""
    torch.manual_seed(0)
    name, make_config, sizes = FAMILIES[family]
    changes = {} if family != "distilbert" else {"model_input_names": ["input_ids", "attention_mask"]}
    tokenizer = reference.load_tokenizer(name, **changes)
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    hf = make_config(vocab_size=len(tokenizer), **(sizes | special | config))
    model = auto.from_config(hf).eval()
    for parameter in model.parameters():  # far enough from zero that scores differ
        torch.nn.init.normal_(parameter, std=0.25)

    def forward(batch):
        inputs = {k: torch.tensor(v).long() for k, v in batch.items() if family != "distilbert" or k != "position_ids"}
        with torch.no_grad():
            outputs = model(**inputs)
        return {key: outputs[key].numpy() for key in STATES if key in outputs}

    ours = make_pipeline(task, forward, tokenizer, config_from_hf(hf.to_dict()), batch_size=4)
    if task == "question-answering":
        return None, ours
    return transformers.pipeline(task, model=model, tokenizer=tokenizer), ours


def compare(theirs, ours, inputs, **options):
    assert_same(ours(inputs, **options), reference.plain_results(theirs(inputs, **options)), tolerance=1e-4)


LABELS = {
    "id2label": dict(enumerate(reference.LABELS)),
    "label2id": {label: i for i, label in enumerate(reference.LABELS)},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_token_classification(family):
    theirs, ours = build("ner", family, transformers.AutoModelForTokenClassification, **LABELS)
    for strategy in ("none", "simple", "first", "average", "max"):
        compare(theirs, ours, reference.TEXTS, aggregation_strategy=strategy)
        if strategy in ("simple", "average"):
            compare(theirs, ours, [reference.LONG_TEXT, *reference.TEXTS], aggregation_strategy=strategy, stride=7)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("problem", [None, "multi_label_classification", "regression"])
def test_text_classification(family, problem):
    auto = transformers.AutoModelForSequenceClassification
    theirs, ours = build("text-classification", family, auto, problem_type=problem, **LABELS)
    for options in ({}, {"top_k": None}, {"top_k": 2}, {"function_to_apply": "sigmoid"}, {"truncation": True}):
        compare(theirs, ours, reference.TEXTS, **options)
        compare(theirs, ours, reference.PAIRS, **options)
        compare(theirs, ours, reference.TEXTS[0], **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_fill_mask(family):
    theirs, ours = build("fill-mask", family, transformers.AutoModelForMaskedLM)
    texts = reference.mask_texts(ours.tokenizer.mask_token)
    for options in ({}, {"top_k": 2}, {"targets": ["in", "a"]}):
        for inputs in (texts, texts[0], texts[:1], texts[1]):
            compare(theirs, ours, inputs, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_feature_extraction(family):
    theirs, ours = build("feature-extraction", family, transformers.AutoModel)
    for inputs in (reference.TEXTS, reference.TEXTS[0]):
        compare(theirs, ours, inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_question_answering_does_not_depend_on_the_batch(family):
    _, ours = build("question-answering", family, transformers.AutoModelForQuestionAnswering)
    for options in ({}, {"top_k": 3}, {"max_seq_len": 40, "doc_stride": 10, "handle_impossible_answer": True}):
        one_by_one = [ours(question, batch_size=1, **options) for question in reference.QUESTIONS]
        assert_same(ours(reference.QUESTIONS, batch_size=8, **options), one_by_one)


def gpt2(auto, **config):
    torch.manual_seed(0)
    tokenizer = reference.load_tokenizer("gpt2")
    end = tokenizer.eos_token_id
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": end, "eos_token_id": end}
    hf = transformers.GPT2Config(vocab_size=len(tokenizer), **sizes, **config)
    model = auto.from_config(hf).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model, tokenizer, config_from_hf(hf.to_dict())


def test_text_generation():
    model, tokenizer, config = gpt2(transformers.AutoModelForCausalLM)
    theirs = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)

    def generate(ids, mask, **options):
        ids, mask = torch.tensor(ids).long(), torch.tensor(mask).long()
        return model.generate(ids, attention_mask=mask, do_sample=False, **options).numpy()

    ours = make_pipeline("text-generation", generate, tokenizer, config, max_new_tokens=15)
    ends = theirs(reference.PROMPTS[0], do_sample=False, max_new_tokens=15, return_tensors=True)
    end = ends[0]["generated_token_ids"][-6]
    for inputs in (reference.PROMPTS, reference.PROMPTS[0]):
        for options in ({}, {"return_full_text": False}, {"return_tensors": True}, {"eos_token_id": end}):
            expected = theirs(inputs, do_sample=False, max_new_tokens=15, **options)
            assert_same(ours(inputs, **options), expected)


def test_text_classification_by_the_last_token():
    model, tokenizer, config = gpt2(transformers.AutoModelForSequenceClassification, **LABELS)
    theirs = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)

    def forward(batch):
        rows = [
            model(**{k: torch.tensor(v[i : i + 1]).long() for k, v in batch.items()})
            for i in range(len(batch["input_ids"]))
        ]
        return {"logits": np.concatenate([row["logits"].detach().numpy() for row in rows])}

    ours = make_pipeline("text-classification", forward, tokenizer, config)
    assert config.pad_token_id is None
    compare(theirs, ours, reference.TEXTS, top_k=None)
