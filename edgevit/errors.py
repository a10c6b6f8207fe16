"""Everything a user can cause, as exceptions; `cli/` prints them and exits with `exit_code`.

    EdgevitError                    exit code 1: anything else
    ├── RecipeError                 2: recipe, target or set file; says the file and the dotted key
    ├── UnsupportedModelError       2: no ViT that edgevit can slim, or a cut this model cannot take
    ├── WeightsError                2: weights file truncated, of another model, or a pickle with code
    ├── ImagesError                 2: image set missing, empty, corrupt, too small, labels that do not fit
    ├── PlanError                   2: keep counts that the model or the target cannot take
    ├── OutputError                 2: the output directory cannot be used
    ├── DiskFullError               1: no space left while an output was written
    ├── ExportError                 5: the ONNX file has not the promised dims
    │   └── ParityError             5: two links of the chain of custody give different outputs
    ├── BackendError                1: build or run failed; raised from the runtime's exception
    │   └── BackendUnavailableError 6: runtime or device missing; says how to get it
    ├── AccuracyGateError           3: accuracy or agreement misses the gate
    ├── LatencyGateError            4: latency or speed-up misses the gate
    ├── TrainingError               1: a loss or gradient that is not finite
    └── MeasurementError            7: the timing cannot be trusted

A message says where, what was expected, what was found, and what to do (with the cost of doing it).
"""

from __future__ import annotations


class EdgevitError(Exception):
    """Base of every error that a user can cause."""

    exit_code: int = 1


class RecipeError(EdgevitError):
    """A recipe, target or image-set file that cannot be used, or wrong usage of a command."""

    exit_code = 2


class UnsupportedModelError(EdgevitError):
    """A model, or a cut of it, that edgevit cannot do."""

    exit_code = 2


class WeightsError(EdgevitError):
    """Weights that cannot be read or do not belong to the model."""

    exit_code = 2


class ImagesError(EdgevitError):
    """Images or labels that cannot be used."""

    exit_code = 2


class PlanError(EdgevitError):
    """Keep counts outside what the model or the target can take."""

    exit_code = 2


class OutputError(EdgevitError):
    """An output directory that cannot be written or belongs to another build."""

    exit_code = 2


class DiskFullError(EdgevitError):
    """The disk filled while an output was written; nothing half-written keeps a final name."""


class ExportError(EdgevitError):
    """An exported file that has not the promised tensors."""

    exit_code = 5


class ParityError(ExportError):
    """Two links of the chain of custody that give different outputs."""


class BackendError(EdgevitError):
    """A runtime that failed to build or run an artefact."""


class BackendUnavailableError(BackendError):
    """A runtime or device that is not on this machine."""

    exit_code = 6


class AccuracyGateError(EdgevitError):
    """A result that misses an accuracy gate."""

    exit_code = 3


class LatencyGateError(EdgevitError):
    """A result that misses a latency gate."""

    exit_code = 4


class TrainingError(EdgevitError):
    """A training that cannot go on."""


class MeasurementError(EdgevitError):
    """A timing that cannot be trusted."""

    exit_code = 7
