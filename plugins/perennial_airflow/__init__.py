"""The only library code that knows Airflow: assets, wiring, alerts, triggers and pages."""
