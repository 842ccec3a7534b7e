"""AutoModel classes under their Transformers names.

One class per head serves every family, so most of these are aliases of the classes in heads.py.
"""

from pathlib import Path
from typing import Any

from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.checkpoints.pretrained import pretraining_head, resolve_config
from jaxnlp import heads

AutoModel = heads.Model
AutoModelForMaskedLM = heads.ModelForMaskedLM
AutoModelForCausalLM = heads.ModelForCausalLM
AutoModelForSeq2SeqLM = heads.ModelForSeq2SeqLM
AutoModelForSequenceClassification = heads.ModelForSequenceClassification
AutoModelForImageClassification = heads.ModelForImageClassification
AutoModelForTokenClassification = heads.ModelForTokenClassification
AutoModelForQuestionAnswering = heads.ModelForQuestionAnswering
AutoModelForMultipleChoice = heads.ModelForMultipleChoice
AutoModelForNextSentencePrediction = heads.ModelForNextSentencePrediction


class AutoModelForPreTraining:
    """Model with the head its family was pretrained with; see duonlp.checkpoints.pretraining_head."""

    @classmethod
    def class_for(cls, model_type: str) -> type[heads.Model]:
        """Return the model class with the pretraining head of a ``model_type``."""
        return heads.HEADS[pretraining_head(model_type)]

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, revision: str | None = None, local_files_only: bool = False, **options: Any
    ) -> heads.Model:
        """Load a checkpoint; see heads.Model.from_pretrained."""
        checkpoint = open_checkpoint(name_or_path, revision, local_files_only)
        return cls.class_for(checkpoint.transformer_config().model_type).from_pretrained(checkpoint, **options)

    @classmethod
    def from_config(cls, config: Any, **options: Any) -> heads.Model:
        """Create a model with random weights; see heads.Model.from_config."""
        return cls.class_for(resolve_config(config, {}).model_type).from_config(config, **options)
