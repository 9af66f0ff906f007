"""Lets a store find its files again when the project was moved or copied.

MLflow notes for each experiment, run and model where its files are, absolutely, and would go on
writing to where the project was; the original, if this is a copy.
"""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy import (
    Connection,
    NullPool,
    column,
    create_engine,
    func,
    inspect,
    literal,
    select,
    table,
    update,
)

from pipeline.tracking.mlflow.address import StoreAddress

LOCATIONS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Tables of MLflow and their columns that say where files are."""


def mend_locations(address: StoreAddress) -> None:
    """Let what lay in the project's folder when it was elsewhere lie in its folder now.

    Of a database outside the project that is done only if the folder is gone where it was:
    otherwise that may be another project, which uses the same database.

    Args:
        address: The store; those that are not databases say themselves where files are.
    """
    folder = address.artifacts
    if folder is None or (address.database is not None and not address.database.exists()):
        return
    engine = create_engine(address.uri, poolclass=NullPool)
    with engine.begin() as connection:
        if not inspect(connection).has_table("experiments"):
            return
        for former in _former_folders(connection, folder):
            if address.place is not None or not former.parent.exists():
                _replace(connection, former.parent, folder.parent)


def _former_folders(connection: Connection, folder: Path) -> set[Path]:
    """Return where the artifacts of our experiments are said to be, if that is not here."""
    name, location = column("name"), column("artifact_location")
    rows = connection.execute(select(name, location).select_from(table("experiments")))
    found = set[Path]()
    for experiment, uri in rows:
        parts = urlsplit(uri or "")
        path = Path(unquote(parts.path))
        suite = str(experiment).removeprefix("asl/")
        ours = str(experiment).startswith("asl/") and parts.scheme == "file"
        if ours and path.parts[-2:] == (folder.name, suite) and path.parent != folder:
            found.add(path.parent)
    return found


def _replace(connection: Connection, former: Path, now: Path) -> None:
    """Replace one folder by another in all locations, written as a path or as an address."""
    for old, new in ((former.as_uri(), now.as_uri()), (str(former), str(now))):
        for name, columns in LOCATIONS.items():
            for each in map(column, columns):
                length = len(old) + 1
                begins = func.substr(each, 1, length) == f"{old}/"
                moved = literal(f"{new}/") + func.substr(each, length + 1)
                rows = table(name, each)
                connection.execute(update(rows).where(begins).values({each: moved}))
