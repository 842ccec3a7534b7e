"""The familiar names. One class a head serves every family, so most of these are the classes of heads.py."""

from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.checkpoints.pretrained import pretraining_head, resolve_config
from jaxnlp import heads

AutoModel = heads.Model
AutoModelForMaskedLM = heads.ModelForMaskedLM
AutoModelForCausalLM = heads.ModelForCausalLM
AutoModelForSeq2SeqLM = heads.ModelForSeq2SeqLM
AutoModelForSequenceClassification = heads.ModelForSequenceClassification
AutoModelForTokenClassification = heads.ModelForTokenClassification
AutoModelForQuestionAnswering = heads.ModelForQuestionAnswering
AutoModelForMultipleChoice = heads.ModelForMultipleChoice
AutoModelForNextSentencePrediction = heads.ModelForNextSentencePrediction


class AutoModelForPreTraining:
    """The head a family was pretrained with (duonlp.checkpoints.pretraining_head)."""

    @classmethod
    def class_for(cls, model_type: str):
        """The model class for a ``model_type``."""
        return heads.HEADS[pretraining_head(model_type)]

    @classmethod
    def from_pretrained(cls, name_or_path, *, revision=None, local_files_only=False, **options):
        """As heads.Model.from_pretrained."""
        checkpoint = open_checkpoint(name_or_path, revision, local_files_only)
        return cls.class_for(checkpoint.transformer_config().model_type).from_pretrained(checkpoint.folder, **options)

    @classmethod
    def from_config(cls, config, **options):
        """As heads.Model.from_config."""
        return cls.class_for(resolve_config(config, {}).model_type).from_config(config, **options)
