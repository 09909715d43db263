#!/bin/sh
# Run once by PostgreSQL's image when its volume is new: one role and one database for each that keeps something.
set -eu

create() { # name, password
    psql --no-psqlrc --quiet --username postgres --set ON_ERROR_STOP=1 --set name="$1" --set password="$2" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
}

create airflow "$AIRFLOW_DB_PASSWORD"
create perennial "$LEDGER_DB_PASSWORD"
create mlflow "$MLFLOW_DB_PASSWORD"
