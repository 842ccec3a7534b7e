"""Description of the arrays that a model reads; ``TransformerConfig.inputs`` lists a model's."""

from dataclasses import dataclass


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: Name of the input.
        axes: Names of its axes, such as ("batch", "length").
        dtype: Its dtype; arrays of other integer or floating-point types are converted.
        source: What fills it: "tokens" (a tokenizer), "pixels" (an image processor), or
            "cache" (the steps of an exported decoder).
        required: Whether a call needs it.
        exported: Whether exported models take it.
        sizes: (axis, size) for each axis whose size the model fixes.
        limit: For ids, one more than the largest id; None for an input that holds no ids or where any id is valid.
        kind: What the ids are, for error messages.
    """

    name: str
    axes: tuple[str, ...]
    dtype: str = "int32"
    source: str = "tokens"
    required: bool = False
    exported: bool = False
    sizes: tuple[tuple[str, int], ...] = ()
    limit: int | None = None
    kind: str = ""

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Sizes of the axes, None for those that differ between calls."""
        sizes = dict(self.sizes)
        return tuple(sizes.get(axis) for axis in self.axes)

    def __str__(self) -> str:
        sizes = dict(self.sizes)
        return f"[{', '.join(f'{axis}={sizes[axis]}' if axis in sizes else axis for axis in self.axes)}]"


def token_inputs(
    vocab_size: int, positions: int | None, types: int = 0, *, exports_types: bool = False
) -> tuple[InputSpec, ...]:
    """Return the inputs of a stack that reads tokens.

    Args:
        vocab_size: Number of token ids.
        positions: Number of position ids; None if the model ignores them.
        types: Number of token types; 0 for a model that has none.
        exports_types: Whether exported models take token types.
    """
    axes = ("batch", "length")
    specs = [
        InputSpec("input_ids", axes, required=True, exported=True, limit=vocab_size, kind="token ids"),
        InputSpec("attention_mask", axes, exported=True),
        InputSpec("token_type_ids", axes, exported=exports_types, limit=types, kind="token types"),
        InputSpec("position_ids", axes, limit=positions, kind="positions"),
    ]
    return tuple(spec for spec in specs if spec.name != "token_type_ids" or types)


def target_inputs(vocab_size: int, positions: int | None) -> tuple[InputSpec, ...]:
    """Return the further inputs of an encoder-decoder, those of its decoder; arguments as of :func:`token_inputs`."""
    axes = ("batch", "target_length")
    return (
        InputSpec("decoder_input_ids", axes, exported=True, limit=vocab_size, kind="token ids"),
        InputSpec("decoder_attention_mask", axes),
        InputSpec("decoder_position_ids", axes, limit=positions, kind="positions"),
    )


def pixel_inputs(channels: int, height: int, width: int) -> tuple[InputSpec, ...]:
    """Return the input of a stack that reads images of one size."""
    sizes = (("channels", channels), ("height", height), ("width", width))
    axes = ("batch", *(axis for axis, _ in sizes))
    return (InputSpec("pixel_values", axes, "float32", "pixels", required=True, exported=True, sizes=sizes),)
