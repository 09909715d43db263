"""What a person writes about one model: `include/models/<name>/spec.yaml`, checked before anything runs.

Light on purpose: pydantic, ruamel.yaml and croniter only, because every DAG file reads the specs when it is parsed.
"""

from __future__ import annotations

from perennial.spec.grammar import NEVER, Section
from perennial.spec.load import (
    line_of_column,
    load_spec,
    load_spec_of,
    load_specs,
    models_path,
    spec_files,
    unknown_model,
)
from perennial.spec.model import NAME, RESERVED_COLUMNS, ModelSpec
from perennial.spec.policies import Alerts, Gate, Monitoring, Retraining, Rollout, Search, Training, Window
from perennial.spec.renamed import RenamedKey
from perennial.spec.schedule import Schedule
from perennial.spec.source import Features, Label, Source

__all__ = [
    "NAME",
    "NEVER",
    "RESERVED_COLUMNS",
    "Alerts",
    "Features",
    "Gate",
    "Label",
    "ModelSpec",
    "Monitoring",
    "RenamedKey",
    "Retraining",
    "Rollout",
    "Schedule",
    "Search",
    "Section",
    "Source",
    "Training",
    "Window",
    "line_of_column",
    "load_spec",
    "load_spec_of",
    "load_specs",
    "models_path",
    "spec_files",
    "unknown_model",
]
