"""QuestionBatches: windows, positions of answers, the choice between several, padding, bad answers, and the cache."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import duonlp.data.questions.batches as module
from duonlp.data import QuestionBatches
from duonlp.errors import InputError
from duonlp.heads import NO_POSITION
from tests.reference import record_pipelines as reference

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "how", "long", "?", *(f"w{i}" for i in range(200))]


def word_tokenizer(special=True, **options):
    """Return a word-level tokenizer, with [CLS] and [SEP] or without special tokens, as GPT-2's."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    options = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "model_input_names": ["input_ids", "attention_mask"],
    } | options
    if special:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )  # fmt: skip
        names = ["input_ids", "token_type_ids", "attention_mask"]
        options = {"cls_token": "[CLS]", "sep_token": "[SEP]"} | options | {"model_input_names": names}
    return PreTrainedTokenizerFast(tokenizer_object=made, **options)


BERT = word_tokenizer()


def row(context: str, *answers: str, question="how long ?", name="q"):
    starts = [context.index(answer) for answer in answers]
    answers = {"text": list(answers), "answer_start": starts}
    return {"id": name, "question": question, "context": context, "answers": answers, "title": "t"}


def words(first: int, count: int) -> str:
    return " ".join(f"w{i}" for i in range(first, first + count))


def texts_of(batches: QuestionBatches, number: int = 0):
    """Return the tokens of each row's answer in an epoch, None for filling."""
    found = []
    for batch in batches.epoch(number):
        for ids, start, end in zip(batch["input_ids"], batch["start_positions"], batch["end_positions"], strict=True):
            text = None if start == NO_POSITION else " ".join(WORDS[i] for i in ids[start : end + 1])
            found.append(text)
    return found


def test_windows_of_100_and_88_tokens():
    """Length 100 and stride 25 cut this context as the example in chapter 7 of "NLP with Transformers"."""
    context = words(0, 151)
    batches = QuestionBatches([row(context, "w150")], BERT, 3, max_seq_len=100, doc_stride=25, shuffle=False)
    assert batches.rows.lengths.tolist() == [100, 88] and batches.owners.tolist() == [0, 0]
    (batch,) = batches.epoch(0)
    assert {name: (v.dtype, v.shape) for name, v in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), (np.int32, (3, 100))
    ) | dict.fromkeys(("start_positions", "end_positions"), (np.int32, (3,)))
    assert texts_of(batches) == ["[CLS]", "w150", None] and batch["end_positions"][1] == 86
    second = batch["input_ids"][1]
    assert [WORDS[i] for i in second[:7]] == ["[CLS]", "how", "long", "?", "[SEP]", "w69", "w70"]
    assert second[88:].tolist() == [0] * 12 and batch["token_type_ids"][1].tolist() == [0] * 5 + [1] * 83 + [0] * 12


@pytest.mark.parametrize("name", ["wordpiece", "bpe", "unigram", "gpt2"])
@pytest.mark.parametrize("truncation_side", ["right", "left"])
def test_windows_are_those_of_the_tokenizer(name, truncation_side):
    tokenizer = reference.load_tokenizer(name, truncation_side=truncation_side)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    questions = [{**q, "answers": {"text": [], "answer_start": []}} for q in reference.QUESTIONS]
    batches = QuestionBatches(questions, tokenizer, 1, max_seq_len=40, doc_stride=7, shuffle=False)
    theirs = tokenizer(
        *([q[key] for q in questions] for key in ("question", "context")), truncation="only_second", max_length=40, stride=7,
        return_overflowing_tokens=True, return_token_type_ids=True,
    )  # fmt: skip
    assert [batches.rows[i].tolist() for i in range(len(batches.rows))] == theirs["input_ids"]
    assert batches.owners.tolist() == theirs["overflow_to_sample_mapping"]
    if "token_type_ids" in tokenizer.model_input_names:
        assert [batches._types[i].tolist() for i in range(len(batches.rows))] == theirs["token_type_ids"]


def test_an_answer_must_be_wholly_in_a_window():
    context = words(0, 40)
    batches = QuestionBatches([row(context, "w14 w15")], BERT, 4, max_seq_len=20, doc_stride=4, shuffle=False)
    # Windows have 14 words and begin at w0, w10, w20 and w30; the answer is cut by the end of the first.
    assert texts_of(batches) == ["[CLS]", "w14 w15", "[CLS]", "[CLS]"]
    long = QuestionBatches(
        [row(context, words(5, 20), name="a"), row(context, name="b")], BERT, 4, max_seq_len=20, doc_stride=4
    )
    assert set(texts_of(long)) == {"[CLS]"} and long.unreachable == ["a"]


def test_each_epoch_chooses_one_of_the_answers_in_the_window():
    context = words(0, 40)
    questions = [row(context, "w3", "w5 w6", "w3", "w35", name=str(i)) for i in range(20)]
    options = {"max_seq_len": 30, "doc_stride": 2}
    batches = QuestionBatches(questions, BERT, 8, **options)
    epochs = [[text for text in texts_of(batches, n) if text] for n in range(6)]
    for texts in epochs:
        assert sorted({*texts}) == ["w3", "w35", "w5 w6"] and texts.count("w35") == 20, "the only one of its window"
    shares = np.mean([texts.count("w3") for texts in epochs])
    assert 6 < shares < 14, "each distinct answer about equally often"
    again = QuestionBatches(questions, BERT, 8, **options)
    iterators = again.epoch(1), again.epoch(2, 3)
    for ours, theirs in zip(iterators[0], batches.epoch(1), strict=True):
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    for ours, theirs in zip(iterators[1], list(batches.epoch(2))[3:], strict=True):
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    other = QuestionBatches(questions, BERT, 8, seed=1, **options)
    assert texts_of(other) != texts_of(batches)
    fixed = QuestionBatches(questions, BERT, 8, shuffle=False, **options)
    assert texts_of(fixed) == texts_of(fixed, 3) == ["w3", "w35"] * 20, "without shuffle the first, as in evaluation"


def test_padding_on_the_left_puts_the_context_first():
    left = word_tokenizer(padding_side="left")
    questions = [row(words(0, 6), "w2 w3"), row(words(0, 4))]
    (batch,) = QuestionBatches(questions, left, 2, shuffle=False, widths=(16,)).epoch(0)
    first, second = ([WORDS[i] for i in ids] for ids in batch["input_ids"])
    assert first == ["[PAD]"] * 4 + ["[CLS]", *words(0, 6).split(), "[SEP]", "how", "long", "?", "[SEP]"]
    assert first[batch["start_positions"][0]] == "w2" and first[batch["end_positions"][0]] == "w3"
    assert second[batch["start_positions"][1]] == second[batch["end_positions"][1]] == "[CLS]"
    assert batch["token_type_ids"][0].tolist() == [0] * 12 + [1] * 4 and batch["attention_mask"].sum(1).tolist() == [
        12,
        10,
    ]


@pytest.mark.parametrize(("bos", "position"), [(None, 0), ("w9", 12)])
def test_no_answer_without_a_cls_token(bos, position):
    """As in Transformers' run_qa.py: the CLS token, else the first BOS token of the row, else position 0."""
    gpt2 = word_tokenizer(special=False, bos_token=bos)
    (batch,) = QuestionBatches([row(words(0, 12))], gpt2, 1, widths=(16,)).epoch(0)
    assert batch["start_positions"].tolist() == batch["end_positions"].tolist() == [position]
    assert "token_type_ids" not in batch


def test_answers_that_are_not_whole_tokens():
    wordpiece = reference.load_tokenizer("wordpiece")
    context = reference.TEXTS[0]
    for start in range(len(context) - 6):
        text = context[start : start + 5]
        if not text.strip():
            continue
        answers = {"text": [text], "answer_start": [start]}
        batches = QuestionBatches([row(context) | {"answers": answers}], wordpiece, 1)
        (batch,) = batches.epoch(0)
        offsets = wordpiece("how long ?", context, return_offsets_mapping=True)["offset_mapping"]
        first, last = int(batch["start_positions"][0]), int(batch["end_positions"][0])
        stripped = start + len(text) - len(text.lstrip()), start + len(text.rstrip())
        assert (
            offsets[first][0] <= stripped[0] < offsets[first][1] and offsets[last][0] < stripped[1] <= offsets[last][1]
        )


def test_answers_that_do_not_occur_are_listed():
    bad = {"text": ["w9 w8", "  ", "w3"], "answer_start": [0, 2, 999]}
    questions = [
        row("w1 w2 w3 w2") | {"id": "a", "answers": bad},
        row("w1") | {"id": "b", "answers": {"text": "w7", "answer_start": 0}},
    ]
    questions.append(row("w1 w2", name="c"))
    batches = QuestionBatches(questions, BERT, 2, shuffle=False)
    assert [(m.id, m.text, m.answer_start) for m in batches.not_found] == [
        ("a", "w9 w8", 0),
        ("a", "  ", 2),
        ("b", "w7", 0),
    ]
    assert batches.owners.tolist() == [0, 2], "b would teach that it has no answer"
    assert texts_of(batches) == ["w3", "[CLS]"], "an answer elsewhere in the context is used"
    with pytest.raises(InputError, match=r"no questions to batch \(1 answers do not occur"):
        QuestionBatches(questions[1:2], BERT, 2)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"context": " \n"}, {}, r"question 'q': its context is ' \\n'; expected a text"),
        ({"question": 3}, {}, "question 'q': its question is 3"),
        ({"context": "\ud800"}, {}, "expected a text of valid Unicode"),
        ({"answers": ["w1"]}, {}, r"question 'q' has the answers \['w1'\]; expected"),
        ({"answers": {"text": ["w1"], "answer_start": []}}, {}, "has 1 answer texts and 0 positions"),
        ({"answers": {"text": ["w1"], "answer_start": [None]}}, {}, "has the answer 'w1' at None"),
        ({"question": words(0, 90)}, {"max_seq_len": 80, "doc_stride": 13}, "of 64 tokens and doc_stride 13 leave no room"),
        ({}, {"max_seq_len": 0}, "max_seq_len is 0"),
        ({}, {"doc_stride": 80, "max_seq_len": 80}, "doc_stride is 80, but max_seq_len is 80"),
        ({}, {"widths": (8,)}, "widths are"),
    ],
)  # fmt: skip
def test_bad_questions(change, options, message):
    options = {"doc_stride": 12} | options
    with pytest.raises(InputError, match=message):
        QuestionBatches([row(words(0, 90), "w1") | change], BERT, 1, **options)


def test_a_row_without_context_and_a_tokenizer_without_padding():
    with pytest.raises(InputError, match=r"question 0 is \{'question': 'a'\}; expected a dict with"):
        QuestionBatches([{"question": "a"}], BERT, 1)
    with pytest.raises(InputError, match="no padding token"):
        QuestionBatches([row("w1")], word_tokenizer(pad_token=None), 1)


def test_a_long_question_is_cut_only_if_it_leaves_no_room():
    question = words(100, 70)
    short = QuestionBatches([row("w1", question=question)], BERT, 1, max_seq_len=80, doc_stride=10)
    assert short.rows.lengths.tolist() == [74]
    cut = QuestionBatches([row(words(0, 60), question=question)], BERT, 1, max_seq_len=80, doc_stride=10)
    assert WORDS[cut.rows[0][64]] == "w163" and cut.rows[0][65] == 2 and cut.rows.lengths.max() == 80


def test_cached_windows_are_not_tokenized_again(tmp_path, monkeypatch):
    questions = [row(words(0, 40), "w3", "w20 w21", name="a"), row(words(2, 9), name="b")]
    options = {"max_seq_len": 20, "doc_stride": 4, "cache": tmp_path}
    first = QuestionBatches(questions, BERT, 2, **options)
    assert len(list(tmp_path.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(module, "make_windows", None)
        second = QuestionBatches(questions, BERT, 2, **options)
    for ours, theirs in zip(second.epoch(1), first.epoch(1), strict=True):
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    changed = [row(words(0, 40), "w3", name="a"), questions[1]]
    for data, more in ((questions, {"doc_stride": 5}), (changed, {})):
        QuestionBatches(data, BERT, 2, **options | more)
    assert len(list(tmp_path.iterdir())) == 3
