"""The model that a task trains: an encoder under a new head, or a language model as it is."""

from __future__ import annotations

from dpft.config.task_fields import Task
from dpft.errors import InputError
from dpft.models.classifier import Classifier, ImageClassifier, Pooling, TokenClassifier, classifier
from dpft.models.language import LanguageModel
from dpft.models.source import ModelSource, load_encoder, load_language_model

TaskModel = Classifier | LanguageModel


def task_model(
    task: Task,
    source: ModelSource,
    *,
    outputs: int,
    pooling: Pooling = "mean",
    feature_norm: float | None = None,
    attention: str | None = None,
) -> TaskModel:
    """Load the pretrained part of ``source`` and build what ``task`` needs on it; ``outputs`` numbers from a head.

    Errors: :class:`InputError` for a model that can't do the task."""
    if task == "seq2seq":
        # T5's relative positions are added to the scores, and the fused kernel has no gradient for them.
        return LanguageModel(load_language_model(source, "seq2seq", "eager"))
    if task == "causal-lm":
        return LanguageModel(load_language_model(source, "causal-lm", attention))
    encoder = load_encoder(source, attention)
    if getattr(encoder.config, "is_encoder_decoder", False):
        raise InputError(
            f"Expected model.source={source.public_name!r} to be an encoder or a decoder for data.task={task!r}, found "
            'both in one; set data.task="seq2seq" and let it write the label, or choose another model.'
        )
    if task != "token-classification":
        return classifier(encoder, outputs, pooling, feature_norm)
    found = classifier(encoder, outputs, "mean", feature_norm)
    if isinstance(found, ImageClassifier):
        raise InputError("Expected a model that reads texts for token classification; choose another model.source.")
    return TokenClassifier(encoder, outputs, "mean", feature_norm)
