"""Deciding what remains: (model, plan so far, images) -> plan. One method a file, no file formats."""

from edgevit.prune.run import run_methods as run_methods
