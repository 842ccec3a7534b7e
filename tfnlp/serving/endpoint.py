"""Base of endpoints: a task as TensorFlow operations, from texts to results."""

from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar, cast

import tensorflow as tf

from duonlp.pipelines.pipeline import Pipeline
from duonlp.tasks.text import TextTask, TruncationOptions
from tfnlp.heads import Model
from tfnlp.kernels.choice import FLOAT, products
from tfnlp.text.characters import dense
from tfnlp.text.tokenizer import GraphTokenizer, Rows

TaskT = TypeVar("TaskT", bound=TextTask[Any])


class Endpoint(tf.Module, Generic[TaskT]):
    """A task with its model and tokenizer.

    Args:
        model: The model.
        pipe: The pipeline, whose task and options it has.

    Attributes:
        task: Name of the task.
        options: Names of arguments that are not options of the pipeline.
        inputs: Names of the inputs, texts string [B].
    """

    task: ClassVar[str]
    options: ClassVar[Sequence[str]] = ()
    inputs: Sequence[str] = ("text",)

    def __init__(self, model: Model, pipe: Pipeline) -> None:
        super().__init__()
        self.model, self.tokenizer = model, GraphTokenizer(pipe.tokenizer)
        self._task: TaskT = cast(TaskT, pipe.task)
        self._options: Any = pipe.options

    def signature(self) -> list[tf.TensorSpec]:
        """Return the inputs of :meth:`serve`."""
        return [tf.TensorSpec([None], tf.string, name=name) for name in self.inputs]

    def serve(self, *texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return the results for texts, string [B] each."""
        raise NotImplementedError

    def encode(self, *texts: tf.Tensor) -> Rows:
        """Return the rows of texts or pairs, string [B] each, truncated as the options say."""
        task, options = self._task, self._options
        limit, strategy = None, "longest_first"
        if isinstance(options, TruncationOptions) and options.truncates:
            limit = options.max_length or task.limit()
            strategy = options.truncation if isinstance(options.truncation, str) else strategy
        return self.tokenizer.rows(*texts, max_length=limit, strategy=strategy)

    def forward(self, rows: Rows) -> dict[str, tf.Tensor]:
        """Return the outputs of the model for rows, padded to the longest; fail if one is longer than its positions."""
        task, longest = self._task, self.model.config.max_length
        checks = []
        if longest is not None:
            message = f"a text has more tokens than the {longest} positions of the model; {task.remedy}"
            checks.append(tf.debugging.Assert(tf.reduce_all(rows.lengths <= longest), [message]))
        with tf.control_dependencies(checks):
            ids = tf.identity(rows.ids)
        columns = {
            "input_ids": (ids, task.pad_token_id), "attention_mask": (tf.ones_like(ids), 0), "token_type_ids": (rows.types, 0),
        }  # fmt: skip
        left = task.padding_side == "left"
        inputs = {name: dense(columns[name][0], rows.lengths, columns[name][1], left=left) for name in task.input_names}
        with products(FLOAT):  # which any runtime has
            return self.model(inputs, training=False)
