"""Translation: how languages are passed to models, and unsupported languages."""

import json

import numpy as np
import pytest

from duonlp.errors import InputError
from duonlp.pipelines.pipeline import Pipeline
from duonlp.tasks import make_task
from tests.duonlp.tasks.test_text2text import make, model_config, word_tokenizer
from tests.reference import record_pipelines as reference
from tests.reference import record_text2text as recorded

# -- languages ---------------------------------------------------------------------------------------------------------


class Multilingual:
    """A slow tokenizer that marks sources with src_lang, like M2M100's."""

    is_fast = False
    model_max_length, pad_token_id, eos_token_id = 24, 1, 2
    lang_code_to_id = {f"{code}": word_id for code, word_id in (("en", 38), ("fr", 39), ("de", 40))}
    all_special_ids = [0, 1, 2, 38, 39, 40]

    def __init__(self, codes=None):
        self.words, self.src_lang, self.init_kwargs = word_tokenizer(), "en", {}
        self.lang_code_to_id = codes or self.lang_code_to_id
        self.convert_tokens_to_ids = self.words.convert_tokens_to_ids

    def __len__(self):
        return len(self.words)

    def __call__(self, texts, **options):
        mark = self.lang_code_to_id[self.src_lang]
        limit = {"max_length": options["max_length"] - 1} if "max_length" in options else {}
        rows = self.words(texts, **(options | limit))["input_ids"]
        return {"input_ids": [[mark, *ids] for ids in rows]}

    def decode(self, ids, skip_special_tokens=True, **_):
        return " ".join(self.words.convert_ids_to_tokens([i for i in ids if i not in self.all_special_ids]))


def test_multilingual_models_get_both_languages():
    tokenizer = Multilingual()
    pipe, writer = make("translation", tokenizer)
    made = pipe("w1 w2", src_lang="fr", tgt_lang="de")
    assert made == [{"translation_text": "w1 w2"}] and tokenizer.src_lang == "en"
    assert writer.calls[-1]["ids"][0, 0] == 39 and writer.calls[-1]["config"].forced_bos_token_id == 40
    pipe, writer = make("translation_de_to_fr", tokenizer)
    assert pipe("w1 w2", return_tensors=True) == [{"translation_token_ids": [1, 39, 40, 4, 5, 2]}]
    assert writer.calls[-1]["ids"][0, 0] == 40
    pipe("w1", tgt_lang="en", src_lang="fr", forced_bos_token_id=7)
    assert writer.calls[-1]["config"].forced_bos_token_id == 7


def test_translations_have_no_language_codes():
    """Not even if the tokenizer does not list them as special tokens."""
    tokenizer = Multilingual()
    tokenizer.all_special_ids = [0, 1, 2]
    pipe, _ = make("translation", tokenizer, src_lang="fr", tgt_lang="de")
    assert pipe("w1 w2") == [{"translation_text": "w1 w2"}]
    assert pipe("w1 w2", skip_special_tokens=False)[0]["translation_text"] != "w1 w2"
    pipe.task.tokenizer = word_tokenizer()
    pipe._stream_ids = lambda ids, mask, **options: iter([np.array([[i]]) for i in (40, 4, 5, recorded.END)])
    pipe.task.encode_sources = lambda texts, options, limit=None: [[38, 4, 2] for _ in texts]
    assert "".join(pipe.stream("w1")).split() == ["w1", "w2"]


def test_a_short_code_stands_for_the_only_long_one():
    codes = {"en_XX": 38, "fr_XX": 39, "fr_CA": 40}
    pipe, writer = make("translation_en_to_fr_CA", Multilingual(codes | {"en": 3}))
    tokenizer = Multilingual(codes)
    tokenizer.src_lang = "en_XX"
    pipe, writer = make("translation_en_to_fr_CA", tokenizer)
    pipe("w1")
    assert writer.calls[-1]["ids"][0, 0] == 38 and writer.calls[-1]["config"].forced_bos_token_id == 40
    with pytest.raises(
        InputError, match="tgt_lang 'fr' is not a language of this model; use one of en_XX, fr_XX, fr_CA"
    ):
        pipe("w1", src_lang="en", tgt_lang="fr")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"src_lang": "xx", "tgt_lang": "fr"}, "src_lang 'xx' is not a language of this model; use one of en, fr, de"),
        ({"src_lang": "en", "tgt_lang": "yy"}, "tgt_lang 'yy' is not a language"),
        ({"src_lang": "en"}, "needs src_lang and tgt_lang, since this model is multilingual; use en, fr, de"),
        ({}, "needs src_lang and tgt_lang"),
        ({"src_lang": 3}, r"src_lang is 3 \(int\)"),
    ],
)
def test_unsupported_languages(options, message):
    with pytest.raises(InputError, match=message):
        make("translation", Multilingual())[0]("w1", **options)


def test_languages_of_models_without_language_codes():
    with pytest.raises(InputError, match="this model does not accept languages; omit them"):
        make("translation", src_lang="en", tgt_lang="fr")
    assert make("translation_en_to_fr")[0]("w1")
    specific = {"task_specific_params": {f"translation_en_to_{x}": {"prefix": f"__{x}__ "} for x in ("fr", "de")}}
    with pytest.warns(UserWarning, match="specifies no languages; using translation_en_to_fr"):
        pipe, writer = make("translation", extra=specific)
    pipe("w1", src_lang="en", tgt_lang="de")
    assert writer.calls[-1]["ids"][0, 0] == 40
    with pytest.raises(InputError, match="src_lang='en', tgt_lang='it': this model translates en to fr, en to de"):
        pipe("w1", src_lang="en", tgt_lang="it")
    with pytest.raises(InputError, match=r"tgt_lang='it': .* or pass the prefix"):
        make("translation_en_to_it", extra=specific)  # would silently go to the model
    assert make("translation_en_to_it", extra=specific, prefix="__de__ ")[0]("w1")
    tokenizer = word_tokenizer()
    tokenizer.source_lang, tokenizer.target_lang = "en", "de"  # as Marian's
    assert make("translation_en_to_de", tokenizer)[0]("w1")
    with pytest.raises(InputError, match="translates 'en' to 'de', not 'en' to 'fr'"):
        make("translation_en_to_fr", tokenizer)


def test_targets_that_are_prefixed_to_the_text():
    tokenizer = word_tokenizer()
    tokenizer.supported_language_codes = [">>fr<<", ">>it<<"]
    pipe, writer = make("translation", tokenizer, tgt_lang="fr")
    pipe("w1")
    assert writer.calls[-1]["ids"][0, :3].tolist() == [41, 4, 2]
    with pytest.raises(InputError, match="tgt_lang 'de' is not a language of this model; use one of fr, it"):
        pipe("w1", tgt_lang="de")


# -- multilingual tokenizers of Transformers, slow and fast ------------------------------------------------------------


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Write a sentencepiece model, and the vocabulary file that Marian's and M2M100's tokenizers also need."""
    spm = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spm")
    (folder / "texts.txt").write_text("\n".join(reference.TEXTS[:2] * 9))
    spm.SentencePieceTrainer.train(
        input=str(folder / "texts.txt"), model_prefix=str(folder / "spm"), vocab_size=50, minloglevel=2
    )
    model = spm.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    words = [model.id_to_piece(i) for i in range(3, model.get_piece_size())]
    vocab = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", ">>fr<<", ">>de<<", *words])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    return folder


def m2m100(folder):
    from transformers import M2M100Tokenizer

    return M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "spm.model"))


def mbart50(folder):
    from transformers import MBart50Tokenizer

    words = [(word, -float(i)) for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", *"Adawrotehfispgm."])]
    return MBart50Tokenizer(vocab=list(dict(words).items()))


@pytest.mark.parametrize(
    ("make_tokenizer", "source", "target"), [(m2m100, "en", "fr"), (mbart50, "en_XX", "fr_XX"), (mbart50, "en", "fr")]
)
def test_languages_are_marked_as_the_tokenizers_do(pieces, make_tokenizer, source, target):
    tokenizer = make_tokenizer(pieces)
    pipe, writer = make("translation", tokenizer)
    pipe(reference.TEXTS[0], src_lang=source, tgt_lang=target)
    codes = {"en": "en_XX", "fr": "fr_XX"} if "en_XX" in tokenizer.lang_code_to_id else {}
    more = {"return_tensors": None} if make_tokenizer is mbart50 else {}
    expected = tokenizer._build_translation_inputs(
        reference.TEXTS[0], src_lang=codes.get(source, source), tgt_lang=codes.get(target, target), **more
    )
    call = writer.calls[-1]
    ids = call["ids"][0]
    assert ids[ids != recorded.PAD].tolist() == expected["input_ids"]
    assert call["config"].forced_bos_token_id == expected["forced_bos_token_id"]
    with pytest.raises(InputError, match=r"tgt_lang 'xx' is not a language of this model; .*fr"):
        pipe("Ada", src_lang=source, tgt_lang="xx")


def test_a_text_ends_with_a_stop_string_whatever_vocabulary_sources_have():
    """Marian can have two vocabularies: targets can have ids that no source has."""
    tokenizer = word_tokenizer()
    config = model_config(len(tokenizer)).replace(embedding__vocab_size=10)
    task = make_task("translation", tokenizer, config)
    ids = tokenizer.convert_tokens_to_ids(["w20", "w21", "w22"])
    pipe = Pipeline(task, lambda *_, **__: np.array([[0, *ids]]), num_beams=1, stop_strings="w21")
    assert pipe("w1")[0]["translation_text"].split()[-1] == "w21"


@pytest.mark.filterwarnings("ignore:Recommended")
def test_marian_reads_its_target_from_the_text(pieces):
    from transformers import MarianTokenizer

    spm, vocab = str(pieces / "spm.model"), str(pieces / "vocab.json")
    tokenizer = MarianTokenizer(spm, spm, vocab, source_lang="en", target_lang="ROMANCE")
    pipe, writer = make("translation", tokenizer, tgt_lang="fr")
    (result,) = pipe("Ada Lovelace")
    ids = writer.calls[-1]["ids"][0]
    assert ids[ids != recorded.PAD].tolist() == tokenizer(">>fr<< Ada Lovelace")["input_ids"]
    assert "Lovelace".startswith(result["translation_text"].split()[-1][:4])
