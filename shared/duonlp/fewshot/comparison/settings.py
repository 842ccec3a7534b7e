"""Settings of a comparison, and the methods they describe."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

from duonlp.data.labelled.splits import ALL
from duonlp.dtypes import TRAINING_DTYPES, check_dtype
from duonlp.errors import InputError
from duonlp.fewshot.classifier import Method
from duonlp.fewshot.descriptions import read_descriptions
from duonlp.fewshot.methods import METHODS, method_class
from duonlp.training.settings_file import build
from duonlp.util.frameworks import PACKAGES
from duonlp.util.suggestions import choice

KEEP_MODELS = ("all", "none")
SHARED = ("model", "max_length", "batch_size", "dtype")
"""Settings of all methods that have them; those of a method itself go first."""

DESCRIPTIONS = "descriptions"
"""Setting of zero-shot methods."""

CACHE = "cache"
"""Setting of a method for a folder of what its trainings share."""


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """Settings of a comparison.

    Attributes:
        data: Labeled texts: a file, a folder or a Hub id. Rows without a label are unlabeled texts.
        output: Folder of the comparison; what is finished there is not repeated.
        unlabelled: Further unlabeled texts: a file, a folder or a Hub id.
        framework: "tf" or "jax"; "" for the installed one.
        methods: Names of the methods.
        sizes: Numbers of training texts; "all" is all of them.
        per_label: Instead of sizes, numbers of training texts with each label.
        seeds: Number of seeds, from 0 on; each has its own slices.
        labels: Keep this many labels, the most frequent; None keeps all.
        validation: Share of the labeled texts to validate on, or their number if it is 1 or more.
        test: Share of the labeled texts to test on, or their number; unused with test_data or test_split.
        test_data: Labeled texts to test on instead.
        test_split: Split of `data`, or of `test_data`, to test on.
        train_split: Split of `data` with the other labeled texts.
        split_seed: Seed of the split, which is the same for all methods and seeds.
        text_column: Column of the text.
        text_template: What to make the text of, with columns in braces.
        label_column: Column of the labels.
        label_map: {old name: new name, or none to drop the label}, or a file with it.
        label_separator: Separator of several labels in one field.
        class_names: File with the names that numbers in the data stand for.
        column_names: Names of the columns of files without a header, separated by commas.
        config: Configuration of a dataset on the Hub.
        encoding: Encoding of files of text.
        quoting: Whether fields of CSV and TSV files may be quoted.
        model: Checkpoint of all methods that have one; None for their defaults.
        max_length: Maximum number of tokens of a text, likewise.
        batch_size: Texts per batch, likewise.
        dtype: Compute dtype, likewise.
        keep_models: "all", or "none" to write scores only.
        descriptions: {label: description}, or a .json or .toml file with it. They are training texts of each slice in addition to
            its own, and what zero-shot methods compare texts with.
        description_copies: How often each of them is added to a slice.
        options: Settings of methods by the name of the method.

    Raises:
        InputError: A value is invalid.
    """

    data: str
    output: str
    unlabelled: str | None = None
    framework: str = ""
    methods: tuple[str, ...] = ("naive-bayes", "lookup", "setfit", "fine-tune")
    sizes: tuple[int | str, ...] = (8, 16, 32, 64, 128, ALL)
    per_label: tuple[int, ...] = ()
    seeds: int = 3
    labels: int | None = None
    validation: float = 0.15
    test: float = 0.25
    test_data: str | None = None
    test_split: str | None = None
    train_split: str | None = None
    split_seed: int = 0
    text_column: str | None = None
    text_template: str | None = None
    label_column: str | None = None
    label_map: Mapping[str, Any] | str | None = None
    label_separator: str | None = None
    class_names: str | None = None
    column_names: str | None = None
    config: str | None = None
    encoding: str | None = None
    quoting: bool | None = None
    model: str | None = None
    max_length: int | None = None
    batch_size: int | None = None
    dtype: str | None = None
    keep_models: str = "all"
    descriptions: Mapping[str, str] | str | None = field(default=None, hash=False)
    description_copies: int = 2
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("data", "output"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty; give --{name}, or set {name} in the TOML file")
        if not self.methods:
            raise InputError(f"methods is empty; name some of {', '.join(METHODS)}")
        for names in (self.methods, tuple(map(str, self.sizes)), tuple(map(str, self.per_label))):
            if repeated := next((name for name in names if names.count(name) > 1), ""):
                raise InputError(f"{repeated!r} is given more than once; give each method and size once")
        for name in self.methods:
            choice("method", name, METHODS)
        for size in self.per_label or self.sizes:
            if size != ALL and (isinstance(size, (bool, str)) or size < 1):
                raise InputError(f"size {size!r} is not a positive number of texts or {ALL!r}")
        if not self.sizes and not self.per_label:
            raise InputError("sizes is empty; give numbers of texts, such as 8,16,32,all")
        for name in ("seeds", "labels", "max_length", "batch_size", "description_copies"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        for name in ("validation", "test"):
            value = getattr(self, name)
            if not value > 0 or (value >= 1 and value != int(value)):
                raise InputError(f"{name} is {value}; it must be a share between 0 and 1, or a number of texts")
        if self.framework:
            choice("framework", self.framework, PACKAGES)
        if self.dtype is not None:
            check_dtype(self.dtype, allowed=TRAINING_DTYPES)
        choice("keep_models", self.keep_models, KEEP_MODELS)
        for name in self.options:
            choice("method with settings", name, METHODS)
        self.made_methods()

    @property
    def folder(self) -> Path:
        """Folder of the comparison."""
        return Path(self.output).expanduser()

    def made_methods(self) -> dict[str, Method]:
        """Return the methods by name, with their settings.

        Raises:
            InputError: A method lacks a setting, or rejects its value.
        """
        made = {}
        for name in self.methods:
            cls, own = method_class(name), self.options.get(name, {})
            if not isinstance(own, Mapping):
                raise InputError(f"{name} is {own!r}; it must be a table of settings, such as {name}.max_length = 64")
            has = {f.name for f in fields(cast(Any, cls))}
            shared = {key: getattr(self, key) for key in SHARED if key in has and getattr(self, key) is not None}
            if DESCRIPTIONS in has and self.descriptions is not None:
                shared[DESCRIPTIONS] = read_descriptions(self.descriptions)
            if CACHE in has:
                shared[CACHE] = str(self.folder / CACHE)
            try:
                made[name] = build(cls, {**shared, **own}, f"the method {name}", f"{name}.")
            except TypeError as error:  # an object that no text describes, such as an augmenter
                raise InputError(f"{name} has a setting that can only be given in Python: {error}") from error
        return made


def described(method: Method) -> dict[str, Any]:
    """Return the settings of a method that its results depend on, as JSON-compatible values."""
    about = replace(cast(Any, method), cache=None) if hasattr(method, CACHE) else method
    return {name: _plain(value) for name, value in asdict(cast(Any, about)).items() if name != CACHE}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
