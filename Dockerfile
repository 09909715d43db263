# One image for Airflow's components and for the MLflow server, and one for MinIO that runs without root.
# Bases are pinned by tag. Pin them by digest in your registry: `docker buildx imagetools inspect <image>` prints it.

FROM python:3.11.12-slim-bookworm AS build
ENV UV_PYTHON_DOWNLOADS=never PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m pip install --no-cache-dir "uv>=0.8"
WORKDIR /opt/perennial
COPY pyproject.toml requirements.lock README.md ./
# What pyproject.toml asks for and what a cluster adds, without the tools of developers; versions and hashes of the lock.
RUN uv venv .venv \
    && uv pip install --python .venv/bin/python --no-cache --compile-bytecode --require-hashes \
        --constraints requirements.lock --requirements pyproject.toml --extra cluster
COPY include include
RUN uv pip install --python .venv/bin/python --no-cache --no-deps --build-constraints requirements.lock --editable .

FROM python:3.11.12-slim-bookworm AS perennial
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /opt/perennial/state perennial \
    && install --directory --owner perennial --group perennial /opt/perennial/state /opt/airflow /opt/airflow/logs /opt/airflow/auth
WORKDIR /opt/perennial
COPY --from=build /opt/perennial /opt/perennial
COPY dags dags
COPY plugins plugins
COPY great_expectations great_expectations
COPY docker docker
COPY config /opt/airflow/config
ENV PATH=/opt/perennial/.venv/bin:$PATH \
    HOME=/opt/perennial/state \
    PERENNIAL_HOME=/opt/perennial/state \
    AIRFLOW_HOME=/opt/airflow \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/perennial/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/perennial/plugins \
    AIRFLOW__CORE__LOAD_EXAMPLES=False \
    GX_ANALYTICS_ENABLED=false \
    MLFLOW_DISABLE_TELEMETRY=true \
    DO_NOT_TRACK=1
USER 10001:10001

# The address is quay.io: MinIO no longer publishes on Docker Hub.
FROM quay.io/minio/minio:RELEASE.2025-04-22T22-12-26Z AS minio
# A folder that the user below may write to: a new volume takes over its owner.
COPY --from=perennial --chown=10001:10001 /opt/airflow/logs /objects
ENV MC_CONFIG_DIR=/tmp/mc
USER 10001:10001
