"""Feature extraction: the last hidden state of every token."""

from dataclasses import dataclass

from duonlp.errors import InputError
from duonlp.tasks.base import Example, Task, TruncationOptions, check_bool, describe


@dataclass(frozen=True)
class FeatureExtractionOptions(TruncationOptions):
    """return_tensors: float32 arrays [1, tokens, hidden] instead of nested lists."""

    return_tensors: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_bool("return_tensors", self.return_tensors)


class FeatureExtractionTask(Task):
    """Text -> [1, tokens, hidden], as Transformers' FeatureExtractionPipeline gives it."""

    name = "feature-extraction"
    head = "base"
    Options = FeatureExtractionOptions
    outputs = ("last_hidden_state",)

    def rewrite_options(self, changes):
        return merge_tokenizer_options(self.name, changes, "tokenize_kwargs")

    def encode(self, items, options, first=0):
        encoded = self.tokenize(self.texts(items, first), options=options)
        return [[Example(row)] for row in self.rows(encoded, first)]

    def decode(self, item, examples, outputs, options):
        features = outputs[0]["last_hidden_state"][None]  # [1, T, H]
        return features if options.return_tensors else features.tolist()


def merge_tokenizer_options(task: str, changes: dict, name: str) -> dict:
    """Moves `truncation` and `max_length` out of a dict of tokenizer keywords, where Transformers takes them."""
    if name not in changes:
        return changes
    changes = dict(changes)
    nested = changes.pop(name)
    if not isinstance(nested, dict):
        raise InputError(f"{name} is {describe(nested)}; it must be a dict such as {{'truncation': True}}")
    for key, value in nested.items():
        if key not in ("truncation", "max_length"):
            raise InputError(f"{task} has no tokenizer option {key!r}; {name} takes truncation, max_length")
        if key in changes:
            raise InputError(f"{key} is given twice, as a keyword and in {name}; give it once")
        changes[key] = value
    return changes
