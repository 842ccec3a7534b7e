"""RAG-Sequence's decoding: documents propose answers, which are then scored over all documents.

Lewis et al. 2020 (https://arxiv.org/abs/2005.11401, section 2.5): thorough and fast decoding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from duonlp.errors import InputError
from duonlp.generation import GenerationConfig, GenerationOutput
from duonlp.generation.prompt import resolve_config
from duonlp.numpy_ops import log_softmax
from duonlp.util.buckets import bucket

UNSUPPORTED = ("output_scores", "output_logits", "return_dict_in_generate", "streamer")


@dataclass(frozen=True)
class SequenceSettings:
    """Settings of one call.

    Attributes:
        config: Settings of the generator, which returns all beams.
        returned: Answers per question.
        deduplicates: Whether equal answers are scored once.
        fast: Whether to decode fast.
    """

    config: GenerationConfig
    returned: int
    deduplicates: bool
    fast: bool

    @classmethod
    def resolve(
        cls, model: Any, generation_config: Any, options: Mapping[str, Any], beams: int | None, returned: int | None,
        deduplicates: bool, fast: bool,
    ) -> Self:  # fmt: skip
        """Return the settings of a call of ``generate``.

        Raises:
            InputError: An option is unknown or invalid.
        """
        for name in UNSUPPORTED:
            if options.get(name):
                raise InputError(f"RAG-Sequence's generate has no {name}; call that of the generator on one document")
        options = dict(options) | ({} if beams is None else {"num_beams": beams})
        config = resolve_config(model.generator.config, model.generation_config, generation_config, options)
        returned = config.num_return_sequences if returned is None else returned
        if isinstance(returned, bool) or not isinstance(returned, (int, np.integer)) or returned < 1:
            raise InputError(f"num_return_sequences is {returned!r}; it must be an integer of at least 1")
        config = config.with_options(num_return_sequences=config.num_beams, return_dict_in_generate=True)
        return cls(config, int(returned), bool(deduplicates), bool(fast))


def generate_sequences(
    model: Any, inputs: Mapping[str, np.ndarray], doc_scores: np.ndarray, settings: SequenceSettings
) -> GenerationOutput:
    """Return the best answers of each question; see SequenceBase.generate.

    Args:
        model: RagSequence of either engine.
        inputs: context_input_ids int [B * K, S], and optionally context_attention_mask.
        doc_scores: float32 [B, K].
        settings: Settings of the call.

    Raises:
        InputError: There are fewer different answers than are to be returned.
    """
    questions, documents = doc_scores.shape
    context, padding = inputs["context_input_ids"], model.config.padding
    mask = inputs.get("context_attention_mask")
    mask = context != padding if mask is None else mask
    # Transformers 5 drops the mask here, so that its documents' answers depend on the amount of padding; Transformers 4 did not.
    output = model.generator.generate(context, mask, settings.config)
    beams = settings.config.num_beams
    sequences = np.asarray(output["sequences"]).reshape(questions, documents * beams, -1)
    logprobs = np.asarray(output["logprobs"], np.float64).sum(axis=1).reshape(questions, documents, beams)
    prior = log_softmax(doc_scores.astype(np.float64))
    best, scores = [], []
    for row in range(questions):
        if settings.fast:
            candidates, score = fast_scores(sequences[row], (logprobs[row] + prior[row][:, None]).reshape(-1))
        else:
            candidates = unique_rows(sequences[row]) if settings.deduplicates else sequences[row]
            rows = slice(row * documents, (row + 1) * documents)
            score = -_score(model, candidates, context[rows], mask[rows], doc_scores[row], padding)
        if len(candidates) < settings.returned:
            raise InputError(
                f"question {row}: the documents proposed {len(candidates)} different answers, but num_return_sequences is "
                f"{settings.returned}; raise num_beams, or lower it"
            )
        order = np.argsort(-score, kind="stable")[: settings.returned]
        best.append(candidates[order])
        scores.append(score[order])
    found = np.concatenate(best)
    used = max(1, int((found != padding).any(axis=0).nonzero()[0].max(initial=0)) + 1)
    return GenerationOutput(
        sequences=found[:, :used].astype(np.int32), sequences_scores=np.concatenate(scores).astype(np.float32)
    )


def unique_rows(rows: np.ndarray) -> np.ndarray:
    """Return the different rows of int [n, m], each at the place of its first occurrence."""
    _, first = np.unique(rows, axis=0, return_index=True)
    return rows[np.sort(first)]


def fast_scores(sequences: np.ndarray, logprobs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the different answers and their log probabilities, summed over the documents that proposed them.

    Args:
        sequences: int [n, m], the answers that all documents proposed.
        logprobs: float [n], log(p(z|x) p(y|x, z)) of each.
    """
    answers = unique_rows(sequences)
    equal = (sequences[None] == answers[:, None]).all(axis=2)  # [answers, n]
    return answers, np.array([np.logaddexp.reduce(logprobs[chosen]) for chosen in equal])


def _score(
    model: Any, answers: np.ndarray, context: np.ndarray, mask: np.ndarray, doc_scores: np.ndarray, padding: int
) -> np.ndarray:
    """Return the negative log-likelihood of answers int [n, m] given documents [K, S], float32 [n].

    Sizes are padded to buckets, so that few programs are compiled.
    """
    count, length = answers.shape
    rows, columns = bucket(count), bucket(length, model.config.generator.as_decoder().max_length)
    labels = np.full((rows, columns), padding, np.int32)
    labels[:count, :length] = answers
    labels[count:, :length] = answers[0]
    width = bucket(context.shape[1], model.config.generator.max_length)
    fill = ((0, 0), (0, width - context.shape[1]))
    batch = {
        "context_input_ids": np.pad(context, fill, constant_values=padding),
        "context_attention_mask": np.pad((mask != 0).astype(np.int32), fill),
        "doc_scores": doc_scores,
    }
    batch = {name: np.repeat(value[None], rows, axis=0) for name, value in batch.items()}
    return np.asarray(model.score_answers({**batch, "labels": labels}))[:count]
