"""The registry on MLflow: runs, model artifacts, versions, aliases. The only folder that imports mlflow and skops.

Models are saved with skops and read back by this folder alone: types outside the trust list are refused before anything
is built from them, and a pickle is never opened. The trust list is the code's and the reviewed spec's, never the
artifact's own.
"""

from __future__ import annotations

from perennial.stores.registry.adapter import MlflowRegistry
from perennial.stores.registry.artifacts import TRUSTED_TYPES, digest_folder

__all__ = ["TRUSTED_TYPES", "MlflowRegistry", "digest_folder"]
