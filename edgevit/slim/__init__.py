"""Acting on a plan: from a model and a plan to a smaller model with new, smaller weights."""

from edgevit.slim.act import SlimOptions as SlimOptions
from edgevit.slim.act import slim_model as slim_model
