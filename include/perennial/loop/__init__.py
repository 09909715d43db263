"""The steps of the loop: one use case for each DAG, same names; `turn.py` takes them whole."""
