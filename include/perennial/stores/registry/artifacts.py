"""A model's artifact: a folder that skops writes and reads. What may be in it, and how a change to it is seen."""

from __future__ import annotations

import hashlib
import importlib.metadata
import warnings
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from perennial.errors import ArtifactBroken, ArtifactChanged, ArtifactError, ArtifactMissing, UntrustedType
from perennial.stores.ports import TrainingRun

#: what scikit-learn's own estimators hold beyond the types skops trusts by itself: data and compiled tables, no code of
#: the artifact's own. A list from the estimators that tests/contract/test_registry.py saves, not a guess.
TRUSTED_TYPES = (
    # what HistGradientBoosting with categorical features holds; the function inside a partial needs trust of its own
    "functools.partial",
    "numpy.dtype",
    "sklearn._loss.loss.HalfTweedieLossIdentity",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
    "sklearn.utils.validation.check_array",
)
#: distributions a serving environment needs, pinned to what trained the model
_SERVING = ("mlflow", "numpy", "pandas", "scikit-learn", "scipy", "skops")


def save_model(run: TrainingRun, folder: Path, trusted: Iterable[str]) -> None:
    """Write the run's estimator as MLflow's model folder, in skops' format.

    Args:
        run: its estimator and its example rows are saved.
        folder: must not exist yet.
        trusted: the types that the estimator may hold.

    Raises:
        UntrustedType: it holds others; all of them are named.
    """
    import mlflow.sklearn
    import skops.io
    from mlflow.models import infer_signature

    held = set(skops.io.get_untrusted_types(data=skops.io.dumps(run.estimator)))
    if refused := sorted(held - {*trusted}):
        raise UntrustedType(
            f"the estimator of {run.spec.name!r} holds types {refused} outside the trust list. Review them, then "
            "name them under training.trusted_types in its spec.yaml, or leave them out of pipeline.py."
        )
    with warnings.catch_warnings():
        # integer columns "may contain missing values": the expectations say which may
        warnings.simplefilter("ignore", UserWarning)
        signature = infer_signature(run.example, run.estimator.predict(run.example))
        mlflow.sklearn.save_model(
            run.estimator,
            str(folder),
            serialization_format="skops",
            skops_trusted_types=sorted(held),
            signature=signature,
            input_example=run.example,
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in _SERVING],
        )


def load_model(folder: Path, trusted: Iterable[str], *, what: str, source: str, digest: str) -> Any:
    """The estimator in an artifact's folder, built after its digest and its types were checked.

    Nothing of the folder is read as anything but bytes before the digest holds.

    Args:
        folder: as `save_model` wrote it.
        trusted: the types that it may hold.
        what: names the model in errors, as in `version 3 of 'flight_delay'`.
        source: where the folder was copied from, for errors.
        digest: what `digest_folder` said when the model was fitted.

    Raises:
        ArtifactChanged: the bytes have another digest.
        ArtifactMissing: the folder lacks its files.
        ArtifactBroken: the files cannot be read as a model.
        UntrustedType: a pickle, or a type that is not trusted.
    """
    actual = digest_folder(folder)
    if actual != digest:
        raise ArtifactChanged(
            f"{what}: the artifact at {source} has digest {actual}, the ledger says {digest}. Somebody changed it "
            "after the fit; nothing was loaded. Find out who, restore it from a backup, roll back, or train again."
        )
    try:
        return _built(folder, sorted({*trusted}), what)
    except (ArtifactError, OSError):
        # an OSError is this machine's: the files lie in a folder of its own
        raise
    except Exception as error:
        # the bytes decide what is raised: YAML, ZIP and JSON readers and every type's own reconstruction have their say
        raise ArtifactBroken(
            f"{what}: the artifact at {source} cannot be read as a model ({type(error).__name__}: {error}). "
            "Roll back, or train again."
        ) from error


def _built(folder: Path, allowed: list[str], what: str) -> Any:
    """The estimator, where it holds allowed types only."""
    import skops.io

    file = _skops_file(folder, what)
    if refused := sorted({*skops.io.get_untrusted_types(file=file)} - {*allowed}):
        raise UntrustedType(
            f"{what} holds types {refused} outside the trust list. Review them, then "
            "name them under training.trusted_types in its spec.yaml."
        )
    return skops.io.load(file, trusted=allowed)


def digest_folder(folder: Path) -> str:
    """SHA-256 over the names and bytes of all files, in the order of their names; hex."""
    digest = hashlib.sha256()
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def is_absence(error: BaseException) -> bool:
    """Whether MLflow says that there is no such file, and not that it cannot be asked."""
    code = getattr(error, "error_code", "")
    message = str(error)
    return (
        isinstance(error, FileNotFoundError)
        or code in {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}
        or "No such file or directory" in message
        or "No such artifact" in message
        or getattr(getattr(error, "response", None), "status_code", None) == HTTPStatus.NOT_FOUND
    )


def _skops_file(folder: Path, what: str) -> Path:
    """The file with the estimator, where the artifact is a skops one."""
    description = folder / "MLmodel"
    if not description.is_file():
        raise ArtifactMissing(f"{what} is registered, its artifact holds no MLmodel file. Roll back, or retrain.")
    described = YAML(typ="safe", pure=True).load(description)
    flavor = described["flavors"]["sklearn"]
    form = flavor.get("serialization_format")
    if form != "skops":
        raise UntrustedType(
            f"{what} is stored as {form!r}; reading that can run any code. Only 'skops' is read: train and register it "
            "again through Perennial."
        )
    file = (folder / str(flavor["pickled_model"])).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise UntrustedType(f"{what}: its MLmodel names {file}, which is outside of the artifact. Train it again.")
    if not file.is_file():
        raise ArtifactMissing(f"{what} is registered, its file {file.name} is gone. Roll back, or retrain.")
    return file
