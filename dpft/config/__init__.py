"""Recipes: schema, reading, overriding, writing. Imports neither torch nor any Hugging Face library."""

from dpft.config.data_section import DataSection
from dpft.config.dump import dump_recipe
from dpft.config.load import load_recipe, parse_recipe, validate
from dpft.config.method_section import LoRASection, MethodSection
from dpft.config.optimizer_section import OptimizerSection
from dpft.config.privacy_section import PrivacySection
from dpft.config.schema import (
    EvaluateSection,
    LedgerSection,
    ModelSection,
    Recipe,
    TrainSection,
)

__all__ = [
    "DataSection",
    "EvaluateSection",
    "LedgerSection",
    "LoRASection",
    "MethodSection",
    "ModelSection",
    "OptimizerSection",
    "PrivacySection",
    "Recipe",
    "TrainSection",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
    "validate",
]
