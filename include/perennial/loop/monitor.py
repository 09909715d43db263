"""After a batch was scored: drift, data quality, model quality as labels mature -> measurements and a health record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perennial import intake
from perennial.decisions import drift
from perennial.errors import LedgerError
from perennial.measures import estimates, profiles, quality
from perennial.records import (
    ColumnProfile,
    Decision,
    Deployment,
    DriftEvidence,
    LedgerEntry,
    Measurement,
    Partition,
    Profile,
    RunLink,
    from_json,
    to_json,
)
from perennial.settings import Settings
from perennial.specs import ModelSpec
from perennial.stores.ports import Stores

if TYPE_CHECKING:
    import pandas as pd

#: partitions that a trailing reference is made of
TRAILING_PARTITIONS = 4


def monitor(
    spec: ModelSpec, stores: Stores, partition: Partition, *, as_of: datetime, run: RunLink, settings: Settings
) -> dict[str, Any]:
    """Measure one scored partition, and every older one whose labels have changed by `as_of`.

    Returns:
        model, partition, drift verdict, drifted columns, ledger ids, partitions whose quality was measured again, and
        the label drift verdict of those among them whose labels are all due.

    Raises:
        LedgerError: the partition was never scored.
    """
    scoring = _scoring_entry(spec, stores, partition.key)
    deployment = from_json(Deployment, scoring.body["deployment"])
    decision, predictions = _judge_drift(spec, stores, partition, deployment, scoring.run.run_id)
    drift_entry = stores.ledger.append(
        model=spec.name,
        kind="drift",
        subject=partition.key,
        verdict=decision.verdict,
        as_of=as_of,
        body=to_json(decision),
        run=run,
        key=f"drift:{partition.key}:{run.run_id}",
    )
    stores.ledger.measure(_estimated_quality(spec, stores, partition, scoring, deployment, as_of))
    measured, labels = _measure_quality(spec, stores, partition, as_of=as_of, run=run, settings=settings)
    drifted = drifted_columns(decision)
    health = stores.ledger.append(
        model=spec.name,
        kind="health",
        subject=partition.key,
        verdict=decision.verdict,
        as_of=as_of,
        body={
            "drift": drift_entry.id,
            "drifted": drifted,
            "rows": scoring.body["rows"],
            "champion": deployment.champion,
            "challenger": deployment.challenger,
            "data_quality": _data_quality(decision),
            "predictions": {version: to_json(column) for version, column in predictions.items()},
            "measured": measured,
            "label_drift": {key: {"verdict": e.verdict, "entry": e.id} for key, e in labels.items()},
        },
        run=run,
        key=f"health:{partition.key}:{run.run_id}",
    )
    return {
        "model": spec.name,
        "partition": partition.key,
        "verdict": str(decision.verdict),
        "drifted": drifted,
        "reasons": list(decision.reasons),
        "measured": measured,
        "label_drift": {key: entry.verdict for key, entry in labels.items()},
        "entry": health.id,
    }


def report(spec: ModelSpec, stores: Stores, partition: Partition, *, settings: Settings) -> dict[str, Any]:
    """Write the Evidently report of one monitored partition for people; our verdict stands at its top.

    Returns:
        path of the HTML below `settings.reports`, and the reports that retention removed.
    """
    from perennial.measures import reports

    scoring = _scoring_entry(spec, stores, partition.key)
    deployment = from_json(Deployment, scoring.body["deployment"])
    entry = stores.ledger.entries(spec.name, kind="drift", subject=partition.key, newest=1)
    if not entry:
        msg = f"batch {partition.key} of {spec.name!r} has no drift verdict yet. Run its monitoring first."
        raise LedgerError(msg)
    snapshot = stores.registry.version(spec.name, deployment.champion).snapshot
    rows = spec.monitoring.report_rows
    reference = _sample(
        spec,
        stores,
        rows=rows,
        since=spec.schedule.key_at(snapshot.start),
        before=spec.schedule.key_at(snapshot.end),
        version=snapshot.accepted_version,
    )
    current = _sample(spec, stores, rows=rows, since=partition.key, before=partition.bound, version=None)
    html = reports.drift_report(
        reference,
        current,
        spec,
        from_json(Decision, entry[0].body),
        rows=rows,
        seed=spec.training.seed,
        title=f"{spec.name}, batch {partition.key}, against the training data of version {deployment.champion}",
        links={"ledger": entry[0].id},
    )
    folder = settings.reports / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{partition.key.replace(':', '')}.html"
    path.write_text(html, encoding="utf-8")
    removed = reports.keep_newest(folder, spec.monitoring.keep_reports)
    return {"path": str(path.relative_to(settings.reports)), "removed": [Path(p).name for p in removed]}


def drifted_columns(decision: Decision) -> list[str]:
    """Names of the columns that the drift rule found both surprising and big."""
    return sorted(name for name, column in decision.statistics.get("columns", {}).items() if column.get("drifted"))


# --- drift ---------------------------------------------------------------------------------------------------------


def _judge_drift(
    spec: ModelSpec, stores: Stores, partition: Partition, deployment: Deployment, run_id: str
) -> tuple[Decision, dict[str, Any]]:
    bins = stores.registry.profile(spec.name, deployment.champion)
    features = Profile(rows=bins.rows, columns={c: bins.columns[c] for c in spec.features.names})
    current = _profile_rows(spec, stores, features, partition.key, partition.bound)
    keys, kind = _reference_keys(spec, stores, partition)
    reference = _profile_rows(spec, stores, features, keys[0], _bound_of(spec, keys[-1])) if keys else features
    predictions: dict[str, Any] = {}
    if "prediction" in bins.columns:
        output = Profile(rows=bins.columns["prediction"].rows, columns={"prediction": bins.columns["prediction"]})
        for version in filter(None, (deployment.champion, deployment.challenger)):
            rows = _predictions(spec, stores, partition, run_id).filter(pc.field("model_version") == version)
            found = profiles.profile(rows.select(["prediction"]).to_reader(), output)
            predictions[version] = found.columns["prediction"]
        before: ColumnProfile | None = bins.columns["prediction"]
        if keys:
            before = _predictions_then(spec, stores, keys, deployment.champion, output, reference.rows)
        if before is not None:
            reference = replace(reference, columns={**reference.columns, "prediction": before})
            current = replace(current, columns={**current.columns, "prediction": predictions[deployment.champion]})
    evidence = DriftEvidence(partition=partition.key, reference=reference, current=current, reference_kind=kind)
    return drift.decide(evidence, spec.monitoring, None), predictions


def _reference_keys(spec: ModelSpec, stores: Stores, partition: Partition) -> tuple[list[str], str]:
    """The partitions that the batch is compared with: recent ones or the same season's, where the lake holds them.

    None of them and `training` where it does not: the training rows are the reference then.
    """
    policy = spec.monitoring
    keys = sorted(k for k in stores.lake.partitions("accepted", spec.name) if k < partition.key)
    if policy.reference == "trailing" and len(keys) >= TRAILING_PARTITIONS:
        return keys[-TRAILING_PARTITIONS:], "trailing"
    if policy.reference == "season" and policy.season is not None:
        key = spec.schedule.key_at(partition.start - policy.season)
        if key in keys:
            return [key], "season"
    return [], "training"


def _predictions_then(
    spec: ModelSpec, stores: Stores, keys: list[str], version: str, bins: Profile, rows: int
) -> ColumnProfile | None:
    """What this version predicted for the reference's own rows; None where it did not score all of them.

    Predictions follow the season as features do, so the holdout of training is no reference for them; and another
    version's predictions differ because the version does.
    """
    found: list[pa.Table] = []
    for key in keys:
        if not stores.ledger.entries(spec.name, kind="scoring", subject=key, newest=1):
            return None
        run_id = _scoring_entry(spec, stores, key).run.run_id
        scored = _predictions(spec, stores, spec.schedule.partition_of_key(key), run_id)
        found.append(scored.filter(pc.field("model_version") == version).select(["prediction"]))
    if sum(table.num_rows for table in found) != rows:
        return None
    return profiles.profile(pa.concat_tables(found), bins).columns["prediction"]


def _judge_labels(
    spec: ModelSpec, stores: Stores, partition: Partition, champion: Profile, as_of: datetime
) -> Decision | None:
    """Have the labels changed, by the rule that judges the features; None where the version's profile has no label.

    Unlabelled rows are left out of both sides: labels that are missing are no change of the labels.
    """
    if "label" not in champion.columns:
        return None  # saved before labels were profiled
    bins = Profile(rows=champion.columns["label"].rows, columns={"label": champion.columns["label"]})

    def known(key: str) -> pa.Table:
        span = spec.schedule.partition_of_key(key)
        rows = intake.labels_known(spec, stores, span.start, span.end, as_of)
        return rows.select(["label"]) if rows.num_rows else pa.table({"label": pa.array([], _label_type(bins))})

    keys, kind = _reference_keys(spec, stores, partition)
    reference = profiles.profile(pa.concat_tables([known(key) for key in keys]), bins) if keys else bins
    current = profiles.profile(known(partition.key), bins)
    return drift.decide(DriftEvidence(partition.key, reference, current, kind), spec.monitoring, None)


def _label_type(bins: Profile) -> pa.DataType:
    return pa.float64() if bins.columns["label"].kind == "numeric" else pa.string()


def _bound_of(spec: ModelSpec, key: str) -> str:
    return spec.schedule.partition_of_key(key).bound


def _profile_rows(spec: ModelSpec, stores: Stores, bins: Profile, since: str, before: str) -> Profile:
    rows = stores.lake.scan(
        "accepted",
        spec.name,
        columns=list(spec.features.names),
        since=since,
        before=before,
        categorical=spec.features.categorical,
    )
    return profiles.profile(rows, bins)


def _data_quality(decision: Decision) -> dict[str, Any]:
    """Share of nulls, and of levels the reference never saw, per column of the batch; zero shares are left out."""
    current = from_json(DriftEvidence, decision.evidence).current
    nulls = {n: c.nulls / c.rows for n, c in current.columns.items() if c.rows and c.nulls}
    unseen = {
        n: c.counts[-1] / c.rows
        for n, c in current.columns.items()
        if c.kind == "categorical" and c.rows and c.counts[-1]
    }
    return {"null_share": nulls, "unseen_share": unseen}


# --- quality -------------------------------------------------------------------------------------------------------


def _measure_quality(
    spec: ModelSpec, stores: Stores, partition: Partition, *, as_of: datetime, run: RunLink, settings: Settings
) -> tuple[list[str], dict[str, LedgerEntry]]:
    """Collect labels known by `as_of` and measure every scored partition of the lookback whose labels changed.

    Returns:
        the keys that were measured, and the label drift entries of those whose labels are all due.
    """
    oldest = partition.start - spec.label.lookback
    scored = [
        p
        for k in sorted(stores.lake.partitions("predictions", spec.name))
        if oldest <= (p := spec.schedule.partition_of_key(k)).start <= partition.start
    ]
    if not scored:
        return [], {}
    intake.collect_labels(spec, stores, scored[0].start, partition.end, as_of=as_of, settings=settings)
    label_rows = stores.lake.partitions("labels", spec.name)
    before = {m.partition: m for m in stores.ledger.measurements(spec.name, name="label_rows")}
    changed: list[str] = []
    judged: dict[str, LedgerEntry] = {}
    references: dict[str, Profile] = {}
    for old in scored:
        last = before.get(old.key)
        # what was measured at this very moment is an earlier try of this run: measured again, it says the same
        settled = last is not None and last.as_of >= old.end + spec.label.delay and last.as_of != as_of
        if settled and last is not None and int(last.value) == label_rows.get(old.key, 0):
            continue
        if as_of >= old.end + spec.label.delay:
            # before the measurement, which settles the partition: a run that dies in between comes back here
            champion = from_json(Deployment, _scoring_entry(spec, stores, old.key).body["deployment"]).champion
            if champion not in references:
                references[champion] = stores.registry.profile(spec.name, champion)
            decision = _judge_labels(spec, stores, old, references[champion], as_of)
            if decision is not None:
                judged[old.key] = stores.ledger.append(
                    model=spec.name,
                    kind="label_drift",
                    subject=old.key,
                    verdict=decision.verdict,
                    as_of=as_of,
                    body=to_json(decision),
                    run=run,
                    key=f"label_drift:{old.key}:{run.run_id}",
                )
        stores.ledger.measure(_quality_of(spec, stores, old, as_of, label_rows.get(old.key, 0)))
        changed.append(old.key)
    return changed, judged


def _quality_of(
    spec: ModelSpec, stores: Stores, partition: Partition, as_of: datetime, label_rows: int
) -> list[Measurement]:
    """Loss and metrics of every version on the partition's due rows, and the paired difference where there are two."""
    scoring = _scoring_entry(spec, stores, partition.key)
    deployment = from_json(Deployment, scoring.body["deployment"])
    rows = _predictions(spec, stores, partition, scoring.run.run_id)
    # due by time, not by arrival: rows whose labels happen to come early would flatter or slander the model
    due_before = pa.scalar(as_of - spec.label.delay, pa.timestamp("us", tz="UTC"))
    due = rows.filter(pc.less_equal(rows[spec.event_time], due_before))
    labels = intake.labels_known(spec, stores, partition.start, partition.end, as_of)
    found: list[Measurement] = []

    def add(name: str, version: str, value: float, count: int, part: str = "") -> None:
        found.append(
            Measurement(
                model=spec.name,
                partition=partition.key,
                name=name,
                version=version,
                value=float(value),
                rows=count,
                as_of=as_of,
                slice=part,
            )
        )

    add("label_rows", "", label_rows, label_rows)
    losses: dict[str, pd.Series] = {}
    for version in filter(None, (deployment.champion, deployment.challenger)):
        mine = due.filter(pc.equal(due["model_version"], version))
        add("due", version, mine.num_rows, mine.num_rows)
        frame = quality.join(mine, labels, spec.entity).to_pandas()
        frame = frame[frame["prediction"].notna()]
        if frame.empty:
            continue
        predicted = prediction_values(spec, frame)
        truth = frame["label"].to_numpy()
        loss = quality.row_losses(spec.task, spec.metric, truth, predicted, spec.label.classes)
        total = quality.loss_sum(loss)
        add("loss", version, total.mean, total.rows)
        add("loss_squared", version, total.total_squared / total.rows, total.rows)
        for name, value in quality.metrics(spec.task, truth, predicted, spec.label.classes).items():
            if np.isfinite(value):
                add(name, version, value, total.rows)
        losses[version] = frame.set_index(list(spec.entity)).assign(loss=loss)["loss"]
        for figure in _place_losses(spec, stores, version, predicted, loss):
            add(*figure)
    if deployment.challenger in losses and deployment.champion in losses:
        both = losses[deployment.champion].to_frame("a").join(losses[deployment.challenger].rename("b"), how="inner")
        if len(both):
            pair = quality.paired_sums(np.full(len(both), partition.key), both["a"].to_numpy(), both["b"].to_numpy())[0]
            against = f"against {deployment.champion}"
            for name in ("champion", "challenger", "difference", "difference_squared"):
                add(f"paired_{name}", str(deployment.challenger), getattr(pair, name), pair.rows, against)
    return found


def _place_losses(
    spec: ModelSpec, stores: Stores, version: str, predicted: np.ndarray, losses: np.ndarray
) -> Iterator[tuple[str, str, float, int, str]]:
    """Losses of rows with like predictions, in the stretches of the version's own holdout: small harm is local."""
    curve = stores.registry.evidence(stores.registry.version(spec.name, version).run_id).loss_curve
    confidence = predicted.max(axis=1) if spec.task == "multiclass" else predicted
    for number, place in enumerate(quality.losses_by_place(confidence, losses, curve)):
        if place.rows:
            yield "place_loss", version, place.mean, place.rows, f"{number:02d}"
            yield "place_loss_squared", version, place.total_squared / place.rows, place.rows, f"{number:02d}"


def _estimated_quality(
    spec: ModelSpec,
    stores: Stores,
    partition: Partition,
    scoring: LedgerEntry,
    deployment: Deployment,
    as_of: datetime,
) -> list[Measurement]:
    """The loss to expect of the champion on this partition, from its holdout: all there is until labels mature."""
    rows = _predictions(spec, stores, partition, scoring.run.run_id)
    frame = rows.filter(pc.equal(rows["model_version"], deployment.champion)).to_pandas()
    frame = frame[frame["prediction"].notna()]
    if frame.empty:
        return []
    predicted = prediction_values(spec, frame)
    run_id = stores.registry.version(spec.name, deployment.champion).run_id
    evidence = stores.registry.evidence(run_id)
    loss, half_width = estimates.estimate(
        spec.task,
        spec.metric,
        predicted.max(axis=1) if spec.task == "multiclass" else predicted,
        calibration=evidence.calibration,
        recalibration=evidence.recalibration,
        curve=evidence.loss_curve,
        design_effect=evidence.loss_design_effect,
    )
    values = {
        "estimated_loss": loss.mean,
        "estimated_loss_squared": loss.total_squared / loss.rows,
        "estimated_half_width": half_width,
    }
    if spec.task == "binary":
        auc, auc_half_width = estimates.estimate_auc(predicted, evidence.calibration, evidence.recalibration)
        values |= {"estimated_auc": auc, "estimated_auc_half_width": auc_half_width}
    return [
        Measurement(spec.name, partition.key, name, deployment.champion, value, loss.rows, as_of)
        for name, value in values.items()
    ]


def prediction_values(spec: ModelSpec, frame: pd.DataFrame) -> np.ndarray:
    """What `quality` wants: (n,) probabilities or values, or the (n, k) matrix of a multiclass model."""
    if spec.task == "multiclass":
        return np.vstack(frame["probabilities"].to_list())
    return frame["prediction"].to_numpy(dtype="float64")


# --- reading -------------------------------------------------------------------------------------------------------


def _scoring_entry(spec: ModelSpec, stores: Stores, key: str) -> LedgerEntry:
    """The run that served the partition; where only backfills exist, the first of them."""
    entries = stores.ledger.entries(spec.name, kind="scoring", subject=key)
    if not entries:
        msg = f"batch {key} of {spec.name!r} was never scored. Run its scoring first (DAG {spec.name}_score)."
        raise LedgerError(msg)
    return next((e for e in entries if e.verdict == "SERVED"), entries[0])


def _predictions(spec: ModelSpec, stores: Stores, partition: Partition, run_id: str) -> pa.Table:
    columns = [*dict.fromkeys([*spec.entity, spec.event_time]), "prediction", "model_version", "run_id"]
    if spec.task == "multiclass":
        columns.append("probabilities")
    rows = stores.lake.scan(
        "predictions", spec.name, columns=columns, since=partition.key, before=partition.bound
    ).read_all()
    return rows.filter(pc.equal(rows["run_id"], run_id))


def _sample(
    spec: ModelSpec, stores: Stores, *, rows: int, since: str, before: str, version: int | None
) -> pd.DataFrame:
    """At most `rows` rows, evenly spread over the span: every k-th one, so that the same call gives the same rows."""
    total = sum(
        n for k, n in stores.lake.partitions("accepted", spec.name, version=version).items() if since <= k < before
    )
    step = max(1, -(-total // rows))
    taken: list[pa.RecordBatch] = []
    offset = 0
    for batch in stores.lake.scan(
        "accepted", spec.name, columns=list(spec.features.names), since=since, before=before, version=version
    ):
        first = -offset % step
        taken.append(batch.take(pa.array(np.arange(first, batch.num_rows, step))))
        offset += batch.num_rows
    frame: pd.DataFrame = pa.Table.from_batches(taken).to_pandas()
    return frame
