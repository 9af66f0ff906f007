"""MLflow's tables in a database that several machines use, made by one process at a time."""

from mlflow import MlflowClient
from sqlalchemy import NullPool, create_engine, text

LOCK = 0x61736C  # any number that nobody else locks in that database


def make_tables(uri: str) -> None:
    """Let MLflow make its tables where there are none; whoever comes meanwhile waits.

    MLflow looks and then makes; two that do so at once end in errors. Within one project its own
    lock keeps processes apart, but a PostgreSQL is shared by projects and machines: there the
    database's own lock does, which ends with the connection. Of other stores nothing is asked.

    Args:
        uri: Address of the store.
    """
    if not uri.startswith("postgresql"):
        return
    engine = create_engine(uri, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:number)"), {"number": LOCK})
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
