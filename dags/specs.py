"""Show the bad model specs as an import error of their own.

The six other files of this folder make the DAGs of every good spec and leave the bad ones out. Airflow knows one error
a file, and an error hides all DAGs of its file: so the errors stand here, where no DAG can be hidden.
"""

from perennial_airflow.workflow import refuse_bad_specs

refuse_bad_specs()
