"""Every error Perennial raises on purpose.

PerennialError
├── SpecError                 a spec.yaml, source.py or pipeline.py is wrong
│   └── SuiteError            an expectation suite file is wrong
├── SourceError               the reader could not deliver the batch
│   ├── SourceEmpty           no rows where rows were promised
│   └── SourceUnreadable      truncated, corrupt or absent data
├── BatchError                the rows break the spec's contract
│   ├── SchemaMismatch        a column is missing, unexpected or of the wrong type
│   ├── DuplicateEntity       an entity stands twice in one batch
│   ├── OutsidePartition      an event time outside [start, end)
│   ├── TimeZoneMismatch      naive times where aware ones are needed, or the reverse
│   ├── NullLabel             a label that is null or not a number
│   └── BatchQuarantined      a critical expectation failed; the rows are in `quarantine`
├── EvidenceError             a number that no rule can judge (NaN, negative count)
├── TrainingError             a model could not be fitted or evaluated
│   └── NotEnoughRows         the snapshot is smaller than the spec's minimum
└── StoreError                a store did not do what was asked
    ├── LakeError             a table could not be read or written
    ├── LedgerError           the ledger could not be read or written
    │   ├── LedgerTampered    the hash chain does not hold
    │   ├── DeploymentConflict  somebody else changed the deployment first
    │   └── LeaseTaken        another run holds the single-flight lease
    └── RegistryError         MLflow could not be reached, or refused
        ├── RegistryUnavailable
        └── ArtifactError     one version is at fault, not MLflow
            ├── ArtifactMissing   the version is registered, its artifact is gone
            ├── ArtifactChanged   its bytes are not those that the ledger names
            ├── ArtifactBroken    its bytes cannot be read as a model
            └── UntrustedType     it holds a type outside the trust list

Every message says what, where, both values, and what to do, and holds no password: see `without_secrets`.
"""

from __future__ import annotations

import re

#: `scheme://user:password@`; a password may hold a slash, where no port stands before it
_PASSWORD = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s:/@?#'\"]*):(?!\d+/)[^\s@'\"]*@")
#: `https://token@`: a name alone is a secret there; a database's user is not
_TOKEN = re.compile(r"(?i)\b(https?://)[^\s:/@?#'\"]+@")
#: `?password=`, `&sslpassword=`, `&X-Amz-Signature=`
_PARAMETER = re.compile(
    r"(?i)([?&;][^=&\s?'\"]*(?:passw|pwd|secret|token|sslkey|api_?key|access_?key|signature|credential)[^=&\s]*=)"
    r"[^&\s'\"]*"
)
#: a Slack webhook is an address that whoever knows it may post to
_WEBHOOK = re.compile(r"(?i)(/services/)T\w+/B\w+/\w+")


def without_secrets(text: str) -> str:
    """The text with `***` in the place of passwords and tokens in its addresses.

    Every address that is printed, logged or written into the ledger goes through here.
    """
    shown = _TOKEN.sub(r"\1***@", _PASSWORD.sub(r"\1:***@", text))
    return _WEBHOOK.sub(r"\1***", _PARAMETER.sub(r"\1***", shown))


def explained(error: BaseException) -> str:
    """Type and message of any error, for the ledger and for people."""
    return f"{type(error).__name__}: {without_secrets(str(error))}"


class PerennialError(Exception):
    """Base of all errors raised on purpose; the CLI prints its message without a traceback."""

    def __init__(self, message: str = "") -> None:
        super().__init__(without_secrets(message))


class SpecError(PerennialError):
    """A model spec, or the Python beside it, cannot be used; `rules` names the rules that it breaks."""

    def __init__(self, message: str = "", rules: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.rules = rules


class SuiteError(SpecError):
    """An expectation suite file cannot be used."""


class SourceError(PerennialError):
    """The reader could not deliver the batch."""


class SourceEmpty(SourceError):
    """No rows where the spec promises rows."""


class SourceUnreadable(SourceError):
    """The source's bytes are absent, truncated or corrupt."""


class BatchError(PerennialError):
    """The rows of a batch break the spec's contract."""


class SchemaMismatch(BatchError):
    """A column is missing, unexpected or of the wrong type."""


class DuplicateEntity(BatchError):
    """An entity stands twice in one batch."""


class OutsidePartition(BatchError):
    """An event time lies outside the batch's [start, end)."""


class TimeZoneMismatch(BatchError):
    """Naive times where aware ones are needed, or the reverse."""


class NullLabel(BatchError):
    """A label is null or not a number."""


class BatchQuarantined(BatchError):
    """A critical expectation failed; the rows were written to `quarantine`."""


class EvidenceError(PerennialError):
    """A number that no rule can judge: NaN, infinity, a negative count."""


class TrainingError(PerennialError):
    """A model could not be fitted or evaluated."""


class NotEnoughRows(TrainingError):
    """The snapshot is smaller than the spec's minimum."""


class StoreError(PerennialError):
    """A store did not do what was asked."""


class LakeError(StoreError):
    """A table could not be read or written."""


class LedgerError(StoreError):
    """The ledger could not be read or written."""


class LedgerTampered(LedgerError):
    """The hash chain does not hold."""


class DeploymentConflict(LedgerError):
    """The deployment's revision is not the one the caller saw."""


class LeaseTaken(LedgerError):
    """Another run holds the lease."""


class RegistryError(StoreError):
    """The registry could not be reached, or refused."""


class RegistryUnavailable(RegistryError):
    """The MLflow server does not answer."""


class ArtifactError(RegistryError):
    """One version cannot be used, and the fault is its own: MLflow answered, and other versions may load."""


class ArtifactMissing(ArtifactError):
    """A version is registered but its artifact is gone."""


class ArtifactChanged(ArtifactError):
    """A version's bytes are not those that the ledger names."""


class ArtifactBroken(ArtifactError):
    """A version's bytes cannot be read as a model."""


class UntrustedType(ArtifactError):
    """A model artifact holds a type outside the trust list."""
