"""What a person sees in the shell: one clear message, exit codes that mean something, and figures from the ledger."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from perennial.cli import app, shell
from perennial.decisions import RULES, promotion, retraining
from perennial.errors import PerennialError
from perennial.records import (
    Deployment,
    LedgerEntry,
    LossSum,
    PairedSum,
    PromotionEvidence,
    RetrainingEvidence,
    RetrainingHistory,
    RunLink,
    to_json,
)
from perennial.settings import Settings
from perennial.spec import Retraining, load_spec
from perennial.spec.scaffold import create_model
from perennial.stores.database import make_engine, upgrade
from perennial.stores.ledger import SqlLedger
from perennial.stores.memory import open_memory
from perennial.stores.open import open_stores
from perennial.stores.ports import Stores

NOW = datetime(2025, 6, 2, tzinfo=UTC)
RUN = RunLink(run_id="test")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own with one model, `parcels`."""
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("PERENNIAL_SUITES", str(tmp_path / "great_expectations"))
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "300")
    create_model(tmp_path / "models", "parcels", suites=tmp_path / "great_expectations", tests=tmp_path / "tests")
    return tmp_path


@pytest.fixture
def stores(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stores]:
    with open_memory() as found:
        monkeypatch.setattr(shell, "stores_now", lambda **_: found)
        yield found


def perennial(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def decide(stores: Stores) -> LedgerEntry:
    """A real verdict of the sensor, in the ledger."""
    evidence = RetrainingEvidence(
        partition="2025-05-26T00:00:00",
        as_of=NOW,
        champion="3",
        admitted=LossSum(rows=700, total=371.0, total_squared=260.0),
        quality=(),
        estimated=(),
        drift_verdict="STABLE",
        drifted_columns=(),
        quarantined=False,
        champion_trained_until=NOW - timedelta(days=30),
        champion_rows=4000,
        new_rows=700,
        in_flight=False,
    )
    decision = retraining.decide(evidence, Retraining(), RetrainingHistory())
    return stores.ledger.append(
        model="parcels",
        kind="retraining",
        subject=evidence.partition,
        verdict=decision.verdict,
        as_of=NOW,
        body=to_json(decision),
        run=RUN,
    )


# --- check -----------------------------------------------------------------------------------------------------------


def test_a_good_model_is_shown_part_by_part(home: Path) -> None:
    found = perennial("check", "parcels")
    assert found.exit_code == 0, found.output
    row = next(line for line in found.stdout.splitlines() if "parcels" in line)
    assert row.count("ok") == 4
    assert "flight_delay" not in found.stdout


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        (
            "models/parcels/spec.yaml",
            "  params:",
            "  paramss:",
            "models/parcels/spec.yaml:33: training.paramss: unknown",
        ),
        ("models/parcels/source.py", "def read(", "def reed(", "source.py: has no function 'read'"),
        (
            "models/parcels/pipeline.py",
            "import OneHotEncoder,",
            "import OneHotEncoderr,",
            "pipeline.py: cannot be import",
        ),
        ("models/parcels/spec.yaml", "C: 1.0", "D: 1.0", "pipeline.py: build({'D': 1.0}, 0) failed (TypeError"),
        (
            "great_expectations/expectations/parcels.json",
            "expect_column_median_to_be_between",
            "expect_column_medain_to_be_between",
            "parcels.json:17",
        ),
        ("great_expectations/expectations/parcels.json", '"column": "discount"', '"column": "rebate"', "'rebate'"),
    ],
)
def test_every_part_that_is_wrong_is_told_with_its_file(home: Path, file: str, old: str, new: str, told: str) -> None:
    text = (home / file).read_text()
    assert old in text
    (home / file).write_text(text.replace(old, new, 1))
    found = perennial("check", "parcels")
    assert found.exit_code == 1
    assert told in found.stderr
    assert "no" in found.stdout
    assert "Traceback" not in found.output


def test_check_says_which_key_has_a_new_name_and_goes_on(home: Path) -> None:
    file = home / "models" / "parcels" / "spec.yaml"
    text = file.read_text()
    assert "\ngate:\n" in text
    file.write_text(text.replace("\ngate:\n", "\ngate:\n  risk: 0.04\n"))
    found = perennial("check", "parcels")
    assert found.exit_code == 0
    assert "gate.risk is now called gate.non_inferiority_alpha" in found.stdout
    assert f"{file}:" in found.stdout


def test_one_bad_model_leaves_the_others_in_the_table(home: Path, project: Path) -> None:
    shutil.copytree(project / "tests" / "data" / "bad_specs" / "unknown_key", home / "models" / "unknown_key")
    found = perennial("check", "unknown_key", "parcels")
    assert found.exit_code == 1
    assert "did you mean 'holdout'?" in found.stderr
    assert "parcels" in found.stdout


def test_a_model_that_is_not_there_is_answered_with_the_nearest(home: Path) -> None:
    found = perennial("check", "parcel")
    assert found.exit_code == 1
    assert "SpecError: no model 'parcel'; did you mean 'parcels'?" in found.stderr


def test_a_models_folder_that_is_not_there_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_MODELS", f"{home / 'models'}:{home / 'modles'}")
    found = perennial("check", "parcels")
    assert found.exit_code == 1
    assert f"PERENNIAL_MODELS names {home / 'modles'}, which is not a folder" in found.stderr


def judged(home: Path, *, spread: float) -> None:
    """The ledger of `parcels` with two gates: the first champion's, and one whose days differ by `spread` a row."""
    url = f"sqlite:///{home / 'home' / 'ledger.db'}"
    (home / "home").mkdir()
    upgrade(url)
    for number, champion in enumerate((None, "1")):
        differences = [spread * 100 * (-1) ** day for day in range(7)]
        pairs = tuple(
            PairedSum(f"2025-06-{day + 1:02d}", 100, 50.0, 50.0 + d, d, d * d / 100 + 20.0)
            for day, d in enumerate(differences)
        )
        evidence = PromotionEvidence(
            f"run-{number}", champion, "log_loss", pairs, {}, 0.9, (), 700, 4000, 0.3, 0.3, 700, champion_label_mean=0.3
        )
        decision = promotion.decide(evidence, load_spec(home / "models" / "parcels" / "spec.yaml").gate)
        with closing(SqlLedger(make_engine(url))) as ledger:
            ledger.append(
                model="parcels",
                kind="promotion",
                subject=f"run-{number}",
                verdict=decision.verdict,
                as_of=NOW + timedelta(days=number),
                body=to_json(decision),
                run=RUN,
            )


def test_check_plans_the_gates_rows_before_any_gate_has_judged_and_leaves_no_trace(home: Path) -> None:
    found = perennial("check", "parcels")
    assert found.exit_code == 0, found.output
    assert "are needed to admit a challenger that is better by 2 % in 90 % of the gates" in found.stdout
    assert "(planning values; no gate has judged yet)" in found.stdout
    assert not (home / "home").exists()


def test_check_measures_at_the_newest_gate_and_warns_of_a_holdout_that_is_too_small(home: Path) -> None:
    judged(home, spread=0.02)
    found = perennial("check", "parcels")
    assert found.exit_code == 0, found.output
    assert "(measured at the gate of 2025-06-03)" in found.stdout
    warning = next(line for line in found.stdout.splitlines() if line.startswith("warning: parcels"))
    assert "the derived holdout of about 11 days has about 1,100 rows in 11 days" in warning
    assert "Lengthen training.holdout" in warning


def test_check_does_not_warn_where_the_holdout_is_large_enough(home: Path) -> None:
    judged(home, spread=0.0001)
    spec = home / "models" / "parcels" / "spec.yaml"
    spec.write_text(spec.read_text().replace("\ngate:\n", "\ngate:\n  margin: 0.3\n"))
    found = perennial("check", "parcels")
    assert "better by 30 % in 90 % of the gates (measured" in found.stdout
    assert "warning" not in found.stdout


def test_check_says_that_a_holdout_within_a_day_can_never_be_judged(home: Path) -> None:
    spec = home / "models" / "parcels" / "spec.yaml"
    spec.write_text(spec.read_text().replace("  params:", "  holdout: 12h\n  params:"))
    assert "the holdout of 12h has fewer than 2 whole days" in perennial("check", "parcels").stdout


def test_check_plans_without_a_ledger_that_cannot_be_read(home: Path) -> None:
    (home / "home").mkdir()
    (home / "home" / "ledger.db").write_text("no database")
    found = perennial("check", "parcels")
    assert found.exit_code == 0, found.output
    assert "The gate's rows are planned without it." in found.stdout
    assert "planning values" in found.stdout


# --- new -------------------------------------------------------------------------------------------------------------


def test_check_of_one_model_goes_on_beside_a_model_of_which_nothing_can_be_computed(home: Path) -> None:
    create_model(home / "models", "letters", suites=home / "great_expectations", tests=home / "tests")
    file = home / "models" / "letters" / "spec.yaml"
    file.write_text(file.read_text().replace("gate:\n", f"gate:\n  min_rows: {'9' * 320}\n"))
    both = perennial("check", "parcels", "letters")
    assert both.exit_code == 1
    assert f"{file}: what its gate can show cannot be checked (OverflowError" in both.output
    assert "parcels: " in both.output
    assert perennial("check", "parcels").exit_code == 0


def test_new_writes_a_model_that_check_accepts(home: Path) -> None:
    made = perennial("new", "orders", "--models", str(home / "models"), "--tests", str(home / "tests"))
    assert made.exit_code == 0, made.output
    assert made.stdout.count("wrote ") == 5
    assert "Next: perennial check orders" in made.stdout
    assert perennial("check", "orders").exit_code == 0


def test_new_says_how_to_find_a_folder_that_nobody_looks_into(home: Path) -> None:
    made = perennial("new", "orders", "--models", str(home / "more"), "--tests", str(home / "tests"))
    assert f"export PERENNIAL_MODELS={home / 'more'}" in made.stdout


def test_new_refuses_a_name_that_is_taken(home: Path) -> None:
    again = perennial("new", "parcels", "--models", str(home / "models"), "--tests", str(home / "tests"))
    assert again.exit_code == 1
    assert "exists already; nothing was written" in again.stderr


# --- status ----------------------------------------------------------------------------------------------------------


def test_status_of_a_model_without_a_champion_is_empty_and_no_error(stores: Stores) -> None:
    found = perennial("status", "--json")
    assert found.exit_code == 0, found.output
    model = next(m for m in json.loads(found.stdout)["models"] if m["name"] == "parcels")
    assert (model["champion"], model["challenger"], model["decisions"], model["leases"]) == (None, None, {}, {})


def test_status_shows_who_serves_the_stage_the_decisions_and_the_lease(stores: Stores) -> None:
    deployment = Deployment(
        model="parcels",
        revision=1,
        champion="3",
        challenger="4",
        split=0.25,
        stage=1,
        salt="s",
        rollout_id="r1",
        since="2025-05-26T00:00:00",
    )
    stores.ledger.deploy(deployment, kind="rollout", subject="r1", verdict="STAGE", as_of=NOW, body={}, run=RUN)
    entry = decide(stores)
    stores.ledger.claim("parcels", "retrain", "run-7", NOW)
    scored = {"model": "parcels", "kind": "scoring", "verdict": "SERVED", "as_of": NOW, "body": {}, "run": RUN}
    stores.ledger.append(subject="2025-05-26T00:00:00", **scored)
    found = perennial("status", "--json")
    model = next(m for m in json.loads(found.stdout)["models"] if m["name"] == "parcels")
    assert (model["champion"], model["challenger"], model["split"], model["stage"]) == ("3", "4", 0.25, 1)
    assert model["stages"] == 4
    assert model["last_partition"] == "2025-05-26T00:00:00"
    assert model["decisions"]["retraining"]["id"] == entry.id
    assert model["leases"] == {"retrain": "run-7"}
    shown = perennial("status").stdout
    for text in ("25%", "2 of 4", "retrain: run-7", f"retraining {entry.verdict}"):
        assert text in shown


# --- ledger ----------------------------------------------------------------------------------------------------------


def test_a_command_closes_the_ledger_that_it_opened(
    home: Path, files_open_below: Callable[[Path], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Stores] = []  # what nobody holds might be closed by the garbage collector

    def keep(settings: Settings) -> Stores:
        kept.append(open_stores(settings))
        return kept[-1]

    monkeypatch.setattr("perennial.stores.open.open_stores", keep)
    assert perennial("ledger", "verify").stdout == "0 entries hold.\n"
    assert perennial("ledger", "show", "0000").exit_code == 1
    assert len(kept) == 2
    assert files_open_below(home) == []


def test_the_ledger_is_listed_shown_and_verified(stores: Stores) -> None:
    entry = decide(stores)
    assert entry.id in perennial("ledger", "list", "parcels").stdout
    assert perennial("ledger", "list", "parcels", "--kind", "drift", "--json").stdout.strip() == "[]"
    assert json.loads(perennial("ledger", "show", entry.id[:6]).stdout)["hash"] == entry.hash
    assert "1 entries hold" in perennial("ledger", "verify").stdout


def test_a_decision_replays_byte_for_byte(stores: Stores) -> None:
    entry = decide(stores)
    found = perennial("ledger", "replay", entry.id)
    assert found.exit_code == 0, found.output
    assert f"stored:     {entry.verdict}" in found.stdout
    assert f"recomputed: {entry.verdict}" in found.stdout
    assert "equal byte for byte" in found.stdout


def test_a_ledger_of_an_earlier_release_opens_verifies_shows_and_replays(
    home: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One entry of each rule, written by the release before the rules' present versions."""
    file = shutil.copy(project / "tests" / "data" / "old_entries" / "ledger.db", home / "ledger.db")
    monkeypatch.setenv("PERENNIAL_LEDGER", f"sqlite:///{file}")
    assert perennial("ledger", "verify").stdout == "5 entries hold.\n"
    listed = json.loads(perennial("ledger", "list", "made", "--json").stdout)
    assert {entry["kind"] for entry in listed} == {"drift", "label_drift", "retraining", "promotion", "rollout"}
    for entry in listed:
        assert json.loads(perennial("ledger", "show", entry["id"]).stdout) == entry
        replayed = perennial("ledger", "replay", entry["id"])
        if entry["body"]["rule_version"] not in {former.version for former in RULES[entry["body"]["rule"]].former}:
            # its rule decides otherwise now
            assert replayed.exit_code == 1
            assert "to replay it, use the release that decided it" in replayed.stderr
            continue
        assert replayed.exit_code == 0, replayed.output
        assert f"rule {entry['body']['rule']} {entry['body']['rule_version']}" in replayed.stdout
        numbers = "" if entry["body"]["rule"] == "drift" else " statistics, thresholds,"
        assert f"verdict,{numbers} alpha, evidence, policy, history, read as version" in replayed.stdout
        assert ("not compared" in replayed.stdout) == (entry["body"]["rule"] == "drift")


def test_an_edited_decision_does_not_replay(stores: Stores) -> None:
    honest = decide(stores)
    forged = {**honest.body, "reasons": ["because I say so"]}
    entry = stores.ledger.append(
        model="parcels", kind="retraining", subject="x", verdict="RETRAIN", as_of=NOW, body=forged, run=RUN
    )
    found = perennial("ledger", "replay", entry.id)
    assert found.exit_code == 1
    assert "does not replay: ['reasons'] differ" in found.stderr


def test_only_decisions_of_rules_can_be_replayed(stores: Stores) -> None:
    entry = stores.ledger.append(
        model="parcels", kind="snapshot", subject="x", verdict="FROZEN", as_of=NOW, body={"rows": 1}, run=RUN
    )
    found = perennial("ledger", "replay", entry.id)
    assert found.exit_code == 1
    assert "is a 'snapshot' of 'parcels', not the decision of a rule" in found.stderr


def test_an_entry_that_is_not_there_is_one_message(stores: Stores) -> None:
    found = perennial("ledger", "show", "ffffff")
    assert found.exit_code == 1
    assert "LedgerError" in found.stderr
    assert "Traceback" not in found.output


# --- usage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["check", "--nonsense"], ["ledger", "show"], ["ledger", "list", "--newest", "0"]]
)
def test_wrong_usage_is_exit_code_two(home: Path, arguments: list[str]) -> None:
    assert perennial(*arguments).exit_code == 2


def test_an_error_that_nobody_foresaw_keeps_its_traceback(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> Stores:
        raise ZeroDivisionError

    monkeypatch.setattr(shell, "stores_now", fail)
    assert isinstance(perennial("ledger", "verify").exception, ZeroDivisionError)


@pytest.mark.parametrize("text", ["yesterday", "10.06.2025"])
def test_a_moment_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(PerennialError, match="is not an ISO date or time"):
        shell.moment_of(text)


def test_a_moment_without_offset_is_utc() -> None:
    assert shell.moment_of("2025-06-02") == NOW
    assert shell.moment_of("2025-06-02T02:00:00+02:00") == NOW
    assert shell.moment_of(None) is None


def test_the_batch_of_a_command_is_the_newest_complete_one(stores: Stores) -> None:
    moments = ("2025-06-02T00:00:00+00:00", "2025-06-01T23:59:59+00:00", "2030-01-01T00:00:00+00:00")
    batches = [shell.batch_context("parcels", "score", None, moment)[1].key[:10] for moment in moments]
    # the last one: the model's recorded history ends
    assert batches == ["2025-05-26", "2025-05-19", "2025-08-25"]


def test_a_batch_that_was_named_is_taken_and_recorded_history_sets_its_moment(stores: Stores) -> None:
    context, partition = shell.batch_context("parcels", "score", "2025-05-26", None)
    assert (partition.start, context.as_of) == (NOW - timedelta(days=7), NOW)


# --- the steps, from the first champion to a rollback ----------------------------------------------------------------


def test_the_steps_of_the_loop_from_the_shell(stores: Stores, home: Path) -> None:
    spec = home / "models" / "parcels" / "spec.yaml"
    # a week teaches nothing new here: the challenger is as good as the champion
    spec.write_text(spec.read_text().replace("\ngate:\n", "\ngate:\n  mode: non_inferior\n"))

    def done(*arguments: str, code: int = 0) -> str:
        found = perennial(*arguments)
        assert found.exit_code == code, found.output
        return found.output

    assert "has no champion" in done("score", "parcels", "2025-03-03", code=1)
    assert "is the first champion" in done("retrain", "parcels", "--as-of", "2025-03-03")
    assert "700 rows scored; served: 700 by version" in done("score", "parcels", "2025-03-03")
    assert "a backfill" in done("score", "parcels", "2025-03-03")
    later = ("--as-of", "2025-03-11")
    monitored = done("monitor", "parcels", "2025-03-03", "--no-report", *later)
    assert "quality measured for: 2025-03-03" in monitored
    assert "WAIT" in monitored
    assert "no rollout of parcels is under way" in done("rollout", "parcels", code=1)
    assert "Next: perennial rollout parcels 2" in done("retrain", "parcels", *later)
    digest = stores.registry.version("parcels", "2").artifact_digest
    refused = done("rollout", "parcels", "2", code=1)
    assert f"bound to its artifact digest {digest}; found None" in refused
    assert "needs a person's approval" in done("rollout", "parcels", "2", "--approve", digest[:4], code=1)
    assert "version 2 serves 5% of parcels" in done("rollout", "parcels", "2", "--approve", digest[:12], *later)
    assert "stage 1 at 5%: HOLD" in done("rollout", "parcels", *later)
    assert "Missing option '--reason'" in done("advance", "parcels", code=2)
    assert "version 2 serves 25%" in done("advance", "parcels", "--reason", "a test", *later)
    again = done("advance", "parcels", "--reason", "a test", *later)
    assert "nothing was changed. version 2 serves 25% since 2025-03-11 00:00 UTC" in again
    assert "To send it on, to 50%: perennial advance parcels --from 25% --reason ..." in again
    assert "version 2 serves 50%" in done("advance", "parcels", "--reason", "a test", "--from", "25%", *later)
    assert "has not come to 75%" in done("advance", "parcels", "--reason", "a test", "--from", "0.75", code=1)
    assert "'much' is no share" in done("advance", "parcels", "--reason", "a test", "--from", "much", code=2)
    assert "ends by 2025-" in done("status")
    assert "version 1 serves alone, 2 is out" in done("rollback", "parcels", "--reason", "a test")
    assert "no rollout of 'parcels' is under way" in done("advance", "parcels", "--reason", "a test", code=1)
    again = done("rollback", "parcels")
    assert "nothing was changed. version 1 serves since" in again
    assert "To go back further" not in again
    assert "nothing to roll back to" in done("rollback", "parcels", "--from", "1", code=1)
    assert "version '9' of 'parcels' has never served" in done("rollback", "parcels", "--from", "9", code=1)
    assert "nobody holds the lease" in done("retrain", "parcels", "--abandon")
    stores.ledger.claim("parcels", "retrain", "dead-run", NOW)
    assert "dead-run is under way" in done("retrain", "parcels", code=1)
    assert "freed the lease of dead-run" in done("retrain", "parcels", "--abandon")


def test_a_retrain_that_fails_frees_its_lease(stores: Stores, home: Path) -> None:
    pipeline = home / "models" / "parcels" / "pipeline.py"
    pipeline.write_text(pipeline.read_text() + "\n\ndef build(params, seed):\n    raise RuntimeError('no')\n")
    assert perennial("retrain", "parcels", "--as-of", "2025-03-03").exit_code == 1
    assert stores.ledger.holder("parcels", "retrain") is None
    assert stores.ledger.deployment("parcels") is None


def test_check_warns_of_guardrails_that_the_batch_loop_does_not_measure(home: Path) -> None:
    file = home / "models" / "parcels" / "spec.yaml"
    text = file.read_text()
    assert "\nrollout:\n" in text
    file.write_text(text.replace("\nrollout:\n", "\nrollout:\n  guardrails: [errors]\n"))
    checked = perennial("check", "parcels")
    assert checked.exit_code == 0
    assert "every rollout would wait for a person. Name one of ['loss', 'missing']." in checked.stdout
