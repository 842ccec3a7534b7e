"""The familiar names. One class a head serves every family, so most of these are the classes of heads.py."""

from shared import architectures
from shared.checkpoint import open_checkpoint
from tfnlp import heads

AutoModel = heads.Model
AutoModelForMaskedLM = heads.ModelForMaskedLM
AutoModelForCausalLM = heads.ModelForCausalLM
AutoModelForSequenceClassification = heads.ModelForSequenceClassification
AutoModelForTokenClassification = heads.ModelForTokenClassification
AutoModelForQuestionAnswering = heads.ModelForQuestionAnswering
AutoModelForMultipleChoice = heads.ModelForMultipleChoice
AutoModelForNextSentencePrediction = heads.ModelForNextSentencePrediction


class AutoModelForPreTraining:
    """The head a family was pretrained with: the first it has of ``order``."""

    order = ("pretraining", "replaced-token-detection", "masked-lm", "causal-lm")

    @classmethod
    def class_for(cls, model_type: str):
        """The model class for a ``model_type``."""
        available = architectures.get(model_type).heads(model_type)
        return heads.HEADS[next(head for head in cls.order if head in available)]

    @classmethod
    def from_pretrained(cls, name_or_path, *, revision=None, local_files_only=False, **options):
        """As heads.Model.from_pretrained."""
        checkpoint = open_checkpoint(name_or_path, revision, local_files_only)
        model_class = cls.class_for(checkpoint.transformer_config().model_type)
        return model_class.from_pretrained(checkpoint.folder, **options)

    @classmethod
    def from_config(cls, config, **options):
        """As heads.Model.from_config."""
        model_type = config["model_type"] if isinstance(config, dict) else config.model_type
        return cls.class_for(model_type).from_config(config, **options)
