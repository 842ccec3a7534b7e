"""What is compiled, and what is only handed in: a call of ``generate`` as a Plan (static) and values (arrays).

Two calls with equal plans and equal shapes run the same program. So sizes, counts and which processors are on are in the
plan, and everything that is a number to compute with is among the values.
"""

from dataclasses import dataclass, replace

import numpy as np

from duonlp.generation import processors as factories
from duonlp.generation.config import GenerationConfig
from duonlp.generation.prompt import Prompt
from duonlp.generation.source import Source
from duonlp.generation.threefry import row_keys
from duonlp.generation.validation import as_ids, check_vocabulary
from duonlp.util.buckets import bucket

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Plan:
    """The shape of a decoding loop."""

    strategy: str  # of GenerationConfig.strategy
    room: int  # columns for new tokens
    processors: tuple[tuple[str, tuple], ...]  # names in duonlp.generation.processors, with their sizes
    custom: tuple = ()  # the caller's own, after those
    warpers: tuple[tuple[str, tuple], ...] = ()  # of sampling, after the caller's own
    renormalize: bool = False
    do_sample: bool = False
    samples: int = 1  # texts for each prompt, drawn one by one
    returned: int = 1  # texts for each prompt, of the beams
    beams: int = 1
    groups: int = 1
    candidates: int = 1  # of each beam search step, per group; of contrastive search
    draft: int = 0  # tokens proposed at a time by speculative decoding
    ngram: int = 0  # that prompt lookup matches, at most
    guided: bool = False
    sourced: bool = False  # an encoder-decoder's: there is a source
    stops: bool = False  # there are stop strings
    scores: bool = False
    logits: bool = False
    logprobs: bool = False

    def for_loop(self) -> "Plan":
        """The plan without what matters to the result alone, which would compile the loop again."""
        return replace(self, returned=1) if self.strategy == "beam" else self

    def process(self, ops, values, ids, logits, step):
        """All processors in their order; see duonlp.generation.processors."""
        for process in self.before_warpers(ops, values) + self.after_processors(ops, values):
            logits = process(ids, logits, step)
        return logits

    def before_warpers(self, ops, values) -> list:
        """The processors that look at the text."""
        return _made(ops, self.processors, values["processors"]) + list(self.custom)

    def after_processors(self, ops, values) -> list:
        """Those that look at the distribution alone."""
        last = [factories.renormalize(ops)] if self.renormalize else []
        return _made(ops, self.warpers, values["processors"]) + last


def _made(ops, rows, values) -> list:
    made = []
    for name, sizes in rows:
        arguments = dict(sizes) | values.get(name_of(name, sizes), {})
        arguments.pop("which", None)
        made.append(getattr(factories, name)(ops, **arguments))
    return made


def name_of(name: str, sizes: tuple) -> str:
    """The key of a processor's values: its name, and which one it is where there are two."""
    return f"{name}:{dict(sizes)['which']}" if "which" in dict(sizes) else name


def make_plan(
    config: GenerationConfig, prompt: Prompt, vocab_size: int, max_positions: int, custom=(), draft: int = 0, stops=None,
    source: Source | None = None,
) -> tuple[Plan, dict]:  # fmt: skip
    """A call as a plan and values.

    Args:
        config: checked options, with a seed where tokens are drawn.
        prompt: prepared prompts.
        max_positions: of the model.
        custom: the caller's logits processors.
        draft: tokens a draft model proposes at a time; 0 without one.
        stops: StopStrings or None.
        source: what an encoder-decoder reads.

    Returns:
        the plan, and a nest of dicts of arrays.

    Raises:
        InputError: no room for a new token, or an option names a token that the vocabulary does not have.
    """
    check_vocabulary(config, vocab_size)
    length = int(prompt.original.shape[1])
    new_tokens = config.new_tokens(length, max_positions)
    beam = config.strategy == "beam"
    samples = 1 if beam else config.num_return_sequences
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
        samples=samples,
        returned=config.num_return_sequences,
        beams=config.num_beams,
        groups=config.num_beam_groups,
        candidates=_candidates(config, vocab_size),
        draft=draft or lookup or 0,
        ngram=config.max_matching_ngram_size if lookup else 0,
        guided=config.guidance_scale != 1.0,
        sourced=source is not None,
        stops=stops is not None,
        scores=config.output_scores,
        logits=config.output_logits,
        logprobs=config.returns_dict,
    )
    lengths = np.maximum(np.arange(plan.room + 2), 1).astype(np.float64)
    values = {
        "processors": {name_of(name, tuple(sizes.items())): arrays for name, sizes, arrays in rows + warpers if arrays},
        "input_ids": prompt.input_ids,
        "known_ids": prompt.known_ids,
        "attention_mask": prompt.attention_mask,
        "position_ids": prompt.position_ids,
        "next_position": prompt.next_position,
        "filler": prompt.filler,
        "eos_ids": in_fours(config.eos_ids),
        "padding": np.int32(_padding(config, beam)),
        "new_tokens": np.int32(new_tokens),
        "last_position": np.int32(max_positions - 1),
    }
    if source is not None:
        values |= {"source_ids": source.input_ids, "source_mask": source.attention_mask}
    if config.do_sample:
        texts = prompt.texts()
        if source is not None:
            texts = [np.concatenate(pair) for pair in zip(source.texts(), texts)]
        values["keys"] = row_keys(config.seed, texts, samples)
    if plan.guided:
        values["guidance_scale"] = np.float32(config.guidance_scale)
    if beam:
        values |= {
            # in float64 first: so does Python, where Transformers raises a length to the penalty
            "length_divisors": (lengths**config.length_penalty).astype(np.float32),
            "stop_when_full": np.bool_(config.early_stopping is True),
            "hope_for_longest": np.bool_(config.early_stopping == "never" and config.length_penalty > 0),
            "diversity_penalty": np.float32(config.diversity_penalty),
        }
    if plan.strategy == "contrastive":
        values["penalty_alpha"] = np.float32(config.penalty_alpha)
    if stops is not None:
        prompts = len(prompt.filler)
        start = stops.start(prompt.input_ids[:prompts], prompt.attention_mask[:prompts])
        values |= {"stop_transitions": stops.transitions, "stop_state": start.astype(np.int32)}
    return plan, values


def _padding(config: GenerationConfig, beam: bool) -> int:
    """What fills a text after its end. Beam search of Transformers 5 takes a pad_token_id of 0 for none."""
    if beam and config.pad_token_id == 0 and config.eos_ids:
        return config.eos_ids[0]
    return config.padding


def _candidates(config: GenerationConfig, vocab_size: int) -> int:
    if config.strategy == "beam":
        # Enough that num_beams texts go on even if every beam's likeliest tokens are its ends.
        beams = config.num_beams // config.num_beam_groups
        return min(max(2, 1 + len(config.eos_ids)) * beams, beams * vocab_size)
    return min(config.top_k, vocab_size) if config.strategy == "contrastive" else 1


def _processor_rows(config: GenerationConfig, prompt: Prompt, length: int, new_tokens: int, source) -> list:
    """(name, sizes, values) of the processors that are on, in Transformers' order."""
    c, rows = config, []
    columns = prompt.input_ids.shape[1]
    shift = columns - length  # columns that only fill the bucket
    eos = in_fours(c.eos_ids)
    if c.sequence_bias:
        rows.append(("sequence_bias", {"which": 0}, _bias_table(c.sequence_bias)))
    of_source = {} if source is None else {"source_ids": source.known_ids}
    if c.encoder_repetition_penalty != 1.0:
        rows.append(
            ("encoder_repetition_penalty", {}, {"penalty": np.float32(c.encoder_repetition_penalty)} | of_source)
        )
    if c.repetition_penalty != 1.0:
        rows.append(("repetition_penalty", {}, {"penalty": np.float32(c.repetition_penalty)}))
    if c.no_repeat_ngram_size:
        rows.append(("no_repeat_ngram", {"size": c.no_repeat_ngram_size}, {}))
    if c.encoder_no_repeat_ngram_size:
        rows.append(("encoder_no_repeat_ngram", {"size": c.encoder_no_repeat_ngram_size}, of_source))
    bad_words = [(ids, float("-inf")) for ids in c.bad_words_ids if ids not in [(end,) for end in c.eos_ids]]
    if bad_words:
        rows.append(("sequence_bias", {"which": 1}, _bias_table(bad_words)))
    # min_new_tokens takes the place of min_length, as in Transformers
    least = length + c.min_new_tokens if c.min_new_tokens is not None else c.min_length
    if least > 0 and c.eos_ids:
        rows.append(("no_end_before", {}, {"eos_ids": eos, "column": np.int32(least + shift)}))
    if c.forced_bos_token_id is not None:
        forced = {"tokens": in_fours((c.forced_bos_token_id,)), "column": np.int32(1 + shift)}
        rows.append(("forced_tokens", {"which": 0}, forced))
    if c.forced_eos_token_id is not None:
        column = columns + new_tokens - 1
        forced = {"tokens": in_fours(as_ids(c.forced_eos_token_id)), "column": np.int32(column)}
        rows.append(("forced_tokens", {"which": 1}, forced))
    if c.remove_invalid_values:
        rows.append(("remove_invalid_values", {}, {}))
    if c.exponential_decay_length_penalty is not None and c.eos_ids:
        start, factor = c.exponential_decay_length_penalty
        growth = (np.float64(factor) ** np.arange(bucket(new_tokens) + 1) - 1).astype(np.float32)
        values = {"eos_ids": eos, "start": np.int32(columns + start), "growth": growth}
        rows.append(("exponential_decay_length_penalty", {}, values))
    if c.suppress_tokens:
        rows.append(("suppress_tokens", {}, {"tokens": in_fours(c.suppress_tokens)}))
    if c.begin_suppress_tokens:
        column = columns if length > 1 or c.forced_bos_token_id is None else columns + 1
        values = {"tokens": in_fours(c.begin_suppress_tokens), "column": np.int32(column)}
        rows.append(("suppress_tokens_at", {}, values))
    return rows


def _warper_rows(config: GenerationConfig) -> list:
    """The same, of the processors that cut or flatten the distribution before a draw."""
    c, rows = config, []
    # Beams need a token besides every end to go on with.
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


def _bias_table(pairs) -> Arrays:
    """The arrays of processors.sequence_bias, their sizes rounded up so that one more sequence does not compile again."""
    width = -(-max(len(ids) - 1 for ids, _ in pairs) // 4) * 4
    count = -(-len(pairs) // 4) * 4
    prefixes = np.full((count, width), factories.ANY, np.int32)
    last, bias = np.zeros(count, np.int32), np.zeros(count, np.float32)
    for row, (ids, value) in enumerate(pairs):
        if len(ids) > 1:
            prefixes[row, width - len(ids) + 1 :] = ids[:-1]
        last[row], bias[row] = ids[-1], value
    return {"prefixes": prefixes, "last": last, "bias": bias}


def in_fours(ids) -> np.ndarray:
    """int32: ids filled up with -1 to a few lengths, so that one more does not compile again."""
    ids = tuple(ids)
    return np.asarray(ids + (-1,) * (-len(ids) % 4 or 4 * (not ids)), np.int32)
