"""Acting on a plan: from a model and a plan to a smaller model with new, smaller weights."""
