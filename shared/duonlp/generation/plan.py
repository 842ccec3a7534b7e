"""A call of ``generate`` as a Plan (static, compiled) and values (arrays, passed in).

Calls with equal plans and shapes run the same program. So sizes, counts and the set of processors are part
of the plan, and every number to compute with is among the values.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from duonlp.generation import processors as factories
from duonlp.generation.config import GenerationConfig, Processor
from duonlp.generation.options.validation import as_ids, check_vocabulary
from duonlp.generation.prompt import Prompt
from duonlp.generation.source import Source
from duonlp.generation.stop_strings import StopStrings
from duonlp.generation.threefry import row_keys
from duonlp.typing import Array, Ops
from duonlp.util.buckets import bucket

Arrays = dict[str, Any]
"""NumPy arrays and scalars by name."""

Sizes = dict[str, int]
"""Static arguments of a logits processor by name."""

Row = tuple[str, Sizes, Arrays]
"""A logits processor: name in duonlp.generation.processors, static arguments, array arguments."""

StaticRow = tuple[str, tuple[tuple[str, int], ...]]
"""The hashable part of a Row."""


@dataclass(frozen=True)
class Plan:
    """The static description of a decoding loop."""

    strategy: str  # a GenerationConfig.strategy, or "assisted"
    room: int  # columns for new tokens
    processors: tuple[StaticRow, ...]  # processors that read the text
    custom: tuple[Processor, ...] = ()  # the caller's processors, applied after those
    warpers: tuple[StaticRow, ...] = ()  # processors of sampling, applied after the caller's
    renormalize: bool = False  # apply log softmax last
    do_sample: bool = False
    samples: int = 1  # texts per prompt, decoded independently
    returned: int = 1  # texts per prompt, as returned
    beams: int = 1
    groups: int = 1  # beam groups of diverse beam search
    candidates: int = 1  # per step: of each beam group, or of contrastive search
    draft: int = 0  # tokens that speculative decoding proposes per step
    ngram: int = 0  # longest n-gram that prompt lookup matches; 0: proposals come from a draft model
    guided: bool = False  # classifier-free guidance
    sourced: bool = False  # the model is an encoder-decoder
    documents: int = 0  # sources of each text, over which its next token is marginalized (RAG-Token); 0: one, as usual
    stops: bool = False  # there are stop strings
    scores: bool = False  # record processed logits
    logits: bool = False  # record raw logits
    logprobs: bool = False  # record the log probability of each chosen token

    @property
    def removes_invalid(self) -> bool:
        """Whether logits that are NaN or infinite are replaced rather than reported."""
        return any(name == "remove_invalid_values" for name, _ in self.processors)

    def for_loop(self) -> "Plan":
        """Return the plan of the loop, without fields that only ``result`` reads and that would compile the loop again."""
        return replace(self, returned=1) if self.strategy == "beam" else self

    def process(self, ops: Ops, values: Arrays, ids: Array, logits: Array, step: Array) -> Array:
        """Apply all processors in order; see duonlp.generation.processors."""
        for process in self.text_processors(ops, values) + self.distribution_processors(ops, values):
            logits = process(ids, logits, step)
        return logits

    def text_processors(self, ops: Ops, values: Arrays) -> list[Processor]:
        """Return the processors that read the text, and the caller's own."""
        return _build_processors(ops, self.processors, values["processors"]) + list(self.custom)

    def distribution_processors(self, ops: Ops, values: Arrays) -> list[Processor]:
        """Return the processors that read only the distribution."""
        last = [factories.renormalize(ops)] if self.renormalize else []
        return _build_processors(ops, self.warpers, values["processors"]) + last


def _build_processors(ops: Ops, rows: Iterable[StaticRow], values: dict[str, Arrays]) -> list[Processor]:
    processors = []
    for name, sizes in rows:
        arguments = dict(sizes) | values.get(values_key(name, sizes), {})
        arguments.pop("which", None)
        processors.append(getattr(factories, name)(ops, **arguments))
    return processors


def values_key(name: str, sizes: tuple[tuple[str, int], ...]) -> str:
    """Return the key of a processor's arrays: its name, numbered if a plan may use it twice."""
    return f"{name}:{dict(sizes)['which']}" if "which" in dict(sizes) else name


def make_plan(
    config: GenerationConfig, prompt: Prompt, vocab_size: int, max_positions: int, custom: Sequence[Processor] = (),
    draft: int = 0, stops: StopStrings | None = None, source: Source | None = None,
    document_logprobs: np.ndarray | None = None,
) -> tuple[Plan, Arrays]:  # fmt: skip
    """Return a call as a plan and values.

    Args:
        config: Validated options, with a seed when sampling.
        prompt: Prepared prompts.
        vocab_size: Size of the model's vocabulary.
        max_positions: Number of positions of the model.
        custom: The caller's logits processors.
        draft: Number of tokens a draft model proposes per step; 0 without one.
        stops: Stop strings or None.
        source: Encoder inputs of an encoder-decoder, or None.
        document_logprobs: float32 [documents, prompts], the log probability of each source of a text; None if there is one.

    Returns:
        The plan, and the values as a nested dict of arrays. rows: prompts, then as many negative prompts
        with guidance; or the prompts once per document.

        - processors: arrays of each logits processor, by :func:`values_key`.
        - input_ids, attention_mask, position_ids: int32 [rows, columns].
        - token_type_ids: int32 [rows, columns], if the caller passed them.
        - known_ids: int32 [prompts, columns], -1 on padding.
        - next_position: int32 [rows], position of the first new token.
        - filler: bool [prompts], True on rows that only pad the batch.
        - eos_ids: int32 [n], padded with -1.
        - padding: int32, the id after the end of a text.
        - new_tokens: int32, number of tokens to generate.
        - last_position: int32, the model's last position.
        - source_ids, source_mask: int32 [rows, S], for an encoder-decoder.
        - document_logprobs: float32 [documents, prompts], with several documents per text.
        - keys: uint32 [prompts * samples, 2], when sampling (duonlp.generation.threefry).
        - guidance_scale: float32, with guidance.
        - length_divisors: float32 [room + 2], length ** length_penalty, for beam search.
        - stop_when_full, hope_for_longest: bool, early_stopping of beam search.
        - diversity_penalty: float32, for beam search.
        - penalty_alpha: float32, for contrastive search.
        - stop_transitions: int32 [states, V], and stop_state: int32 [prompts], with stop strings.

    Raises:
        InputError: There is no room for a new token, or an option names a token outside the vocabulary.
    """
    check_vocabulary(config, vocab_size)
    length = int(prompt.original.shape[1])
    new_tokens = config.new_tokens(length, max_positions)
    lookup = config.prompt_lookup_num_tokens
    rows = _processor_rows(config, prompt, length, new_tokens, source)
    warpers = _warper_rows(config) if config.do_sample else []
    plan = Plan(
        strategy="assisted" if draft or lookup else config.strategy,
        room=bucket(new_tokens),
        processors=tuple((name, tuple(sizes.items())) for name, sizes, _ in rows),
        custom=tuple(custom),
        warpers=tuple((name, tuple(sizes.items())) for name, sizes, _ in warpers),
        renormalize=config.renormalize_logits,
        do_sample=config.do_sample,
        samples=1 if config.strategy == "beam" else config.num_return_sequences,
        returned=config.num_return_sequences,
        beams=config.num_beams,
        groups=config.num_beam_groups,
        candidates=_candidates(config, vocab_size),
        draft=draft or lookup or 0,
        ngram=config.max_matching_ngram_size if lookup else 0,
        guided=config.guidance_scale != 1.0,
        sourced=source is not None,
        documents=0 if document_logprobs is None else len(document_logprobs),
        stops=stops is not None,
        scores=config.output_scores,
        logits=config.output_logits,
        logprobs=config.returns_dict,
    )
    values: Arrays = {
        "processors": {
            values_key(name, tuple(sizes.items())): arrays for name, sizes, arrays in rows + warpers if arrays
        },
        "input_ids": prompt.input_ids,
        "known_ids": prompt.known_ids,
        "attention_mask": prompt.attention_mask,
        "position_ids": prompt.position_ids,
        "next_position": prompt.next_position,
        "filler": prompt.filler,
        "eos_ids": pad_ids(config.eos_ids),
        "padding": np.int32(_padding(config)),
        "new_tokens": np.int32(new_tokens),
        "last_position": np.int32(max_positions - 1),
    }
    if source is not None:
        values |= {"source_ids": source.input_ids, "source_mask": source.attention_mask}
    if document_logprobs is not None:
        per_row = ("input_ids", "attention_mask", "position_ids", "next_position")
        values |= {name: np.concatenate([values[name]] * plan.documents) for name in per_row}
        values["document_logprobs"] = document_logprobs
    if prompt.token_type_ids is not None:
        values["token_type_ids"] = prompt.token_type_ids
    if stops is not None:
        prompts = len(prompt.filler)
        start = stops.start(prompt.input_ids[:prompts], prompt.attention_mask[:prompts])
        values |= {"stop_transitions": stops.transitions, "stop_state": start.astype(np.int32)}
    return plan, values | _strategy_values(config, plan, prompt, source)


def _strategy_values(config: GenerationConfig, plan: Plan, prompt: Prompt, source: Source | None) -> Arrays:
    """Return the values that only some strategies read."""
    values: Arrays = {}
    if config.do_sample:
        assert config.seed is not None
        texts = prompt.texts()
        if source is not None:
            texts = [np.concatenate(pair) for pair in zip(source.texts(), texts)]
        values["keys"] = row_keys(config.seed, texts, plan.samples)
    if plan.guided:
        values["guidance_scale"] = np.float32(config.guidance_scale)
    if config.strategy == "beam":
        lengths = np.maximum(np.arange(plan.room + 2), 1).astype(np.float64)
        values |= {
            # float64 first, like Python's power of a length in Transformers
            "length_divisors": (lengths**config.length_penalty).astype(np.float32),
            "stop_when_full": np.bool_(config.early_stopping is True),
            "hope_for_longest": np.bool_(config.early_stopping == "never" and config.length_penalty > 0),
            "diversity_penalty": np.float32(config.diversity_penalty),
        }
    if plan.strategy == "contrastive":
        assert config.penalty_alpha is not None
        values["penalty_alpha"] = np.float32(config.penalty_alpha)
    return values


def _padding(config: GenerationConfig) -> int:
    """Return the id after the end of a text. Beam search of Transformers 5 treats a pad_token_id of 0 as unset."""
    if config.strategy == "beam" and config.pad_token_id == 0 and config.eos_ids:
        return config.eos_ids[0]
    return config.padding


def _candidates(config: GenerationConfig, vocab_size: int) -> int:
    if config.strategy == "beam":
        # Enough that num_beams texts continue even if the most likely tokens of every beam are its ends.
        beams = config.num_beams // config.num_beam_groups
        return min(max(2, 1 + len(config.eos_ids)) * beams, beams * vocab_size)
    return min(config.top_k, vocab_size) if config.strategy == "contrastive" else 1


def _processor_rows(
    config: GenerationConfig, prompt: Prompt, length: int, new_tokens: int, source: Source | None
) -> list[Row]:
    """Return the enabled processors that read the text, in Transformers' order."""
    c = config
    rows: list[Row] = []
    columns = prompt.input_ids.shape[1]
    shift = columns - length  # columns that only pad to the bucket size
    eos = pad_ids(c.eos_ids)
    if c.sequence_bias:
        rows.append(("sequence_bias", {"which": 0}, _bias_arrays(c.sequence_bias)))
    of_source: Arrays = {} if source is None else {"source_ids": source.known_ids}
    if c.encoder_repetition_penalty != 1.0:
        values = {"penalty": np.float32(c.encoder_repetition_penalty)} | of_source
        rows.append(("encoder_repetition_penalty", {}, values))
    if c.repetition_penalty != 1.0:
        rows.append(("repetition_penalty", {}, {"penalty": np.float32(c.repetition_penalty)}))
    if c.no_repeat_ngram_size:
        rows.append(("no_repeat_ngram", {"size": c.no_repeat_ngram_size}, {}))
    if c.encoder_no_repeat_ngram_size:
        rows.append(("encoder_no_repeat_ngram", {"size": c.encoder_no_repeat_ngram_size}, of_source))
    bad_words = [(ids, float("-inf")) for ids in c.bad_words_ids if ids not in [(end,) for end in c.eos_ids]]
    if bad_words:
        rows.append(("sequence_bias", {"which": 1}, _bias_arrays(bad_words)))
    # min_new_tokens replaces min_length, as in Transformers
    min_columns = length + c.min_new_tokens if c.min_new_tokens is not None else c.min_length
    if min_columns > 0 and c.eos_ids:
        rows.append(("no_end_before", {}, {"eos_ids": eos, "column": np.int32(min_columns + shift)}))
    if c.forced_bos_token_id is not None:
        values = {"tokens": pad_ids((c.forced_bos_token_id,)), "column": np.int32(1 + shift)}
        rows.append(("forced_tokens", {"which": 0}, values))
    if c.forced_eos_token_id is not None:
        column = columns + new_tokens - 1
        values = {"tokens": pad_ids(as_ids(c.forced_eos_token_id)), "column": np.int32(column)}
        rows.append(("forced_tokens", {"which": 1}, values))
    if c.remove_invalid_values:
        rows.append(("remove_invalid_values", {}, {}))
    if c.exponential_decay_length_penalty is not None and c.eos_ids:
        start, factor = c.exponential_decay_length_penalty
        growth = (np.float64(factor) ** np.arange(bucket(new_tokens) + 1) - 1).astype(np.float32)
        values = {"eos_ids": eos, "start": np.int32(columns + start), "growth": growth}
        rows.append(("exponential_decay_length_penalty", {}, values))
    if c.suppress_tokens:
        rows.append(("suppress_tokens", {}, {"tokens": pad_ids(c.suppress_tokens)}))
    if c.begin_suppress_tokens:
        column = columns if length > 1 or c.forced_bos_token_id is None else columns + 1
        values = {"tokens": pad_ids(c.begin_suppress_tokens), "column": np.int32(column)}
        rows.append(("suppress_tokens_at", {}, values))
    return rows


def _warper_rows(config: GenerationConfig) -> list[Row]:
    """Return the enabled processors that reshape the distribution before sampling, in Transformers' order."""
    c = config
    rows: list[Row] = []
    # Beams need one token beyond the eos ids to continue with.
    keep = {"min_tokens_to_keep": max(2, len(c.eos_ids) + 1) if c.num_beams > 1 else 1}
    if c.temperature != 1.0:
        rows.append(("temperature", {}, {"temperature": np.float32(c.temperature)}))
    if c.top_h is not None:
        rows.append(("top_h", {}, {"h": np.float32(c.top_h)}))
    if c.top_k:
        rows.append(("top_k", {"k": c.top_k} | keep, {}))
    if c.top_p < 1:
        rows.append(("top_p", keep, {"p": np.float32(c.top_p)}))
    if c.min_p is not None:
        rows.append(("min_p", keep, {"p": np.float32(c.min_p)}))
    if c.typical_p < 1:
        rows.append(("typical_p", keep, {"p": np.float32(c.typical_p)}))
    if c.epsilon_cutoff:
        rows.append(("epsilon_cutoff", keep, {"epsilon": np.float32(c.epsilon_cutoff)}))
    if c.eta_cutoff:
        rows.append(("eta_cutoff", keep, {"epsilon": np.float32(c.eta_cutoff)}))
    return rows


def _bias_arrays(pairs: Sequence[tuple[tuple[int, ...], float]]) -> Arrays:
    """Return the arrays of processors.sequence_bias, rounded up in size so that one more sequence does not recompile."""
    width = -(-max(len(ids) - 1 for ids, _ in pairs) // 4) * 4
    count = -(-len(pairs) // 4) * 4
    prefixes = np.full((count, width), factories.ANY, np.int32)
    last, bias = np.zeros(count, np.int32), np.zeros(count, np.float32)
    for row, (ids, value) in enumerate(pairs):
        if len(ids) > 1:
            prefixes[row, width - len(ids) + 1 :] = ids[:-1]
        last[row], bias[row] = ids[-1], value
    return {"prefixes": prefixes, "last": last, "bias": bias}


def pad_ids(ids: Iterable[int]) -> np.ndarray:
    """Return int32 ids padded with -1 to a positive multiple of four, so that one more id does not recompile."""
    ids = tuple(ids)
    return np.asarray(ids + (-1,) * (-len(ids) % 4 or 4 * (not ids)), np.int32)
