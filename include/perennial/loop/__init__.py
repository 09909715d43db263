"""The deeds: one use case for each DAG, same names."""
