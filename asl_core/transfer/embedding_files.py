"""Embeddings as a file: Parquet or npz, with what they were made by inside.

A row is an image: `file`, `sha256`, `height`, `width`, `embedding`, and where they are wanted
`patch_tokens`, (P * D) values row by row from the top left, and `label`. What the file says of
itself is JSON: in Parquet the metadata `asl_pipe` of the schema, in npz the text `about`.
Equal rows and an equal `about` give equal bytes.
"""

import contextlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from asl_core.errors import InputError

SUFFIXES = (".parquet", ".npz")
ABOUT = "asl_pipe"
"""Key of the schema's metadata."""
FORMAT = 1
DAMAGE = (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, pa.ArrowException)
"""What readers raise at a file that is none of ours."""
ROW_GROUP_BYTES = 2**26
"""Embeddings and patches of a group of rows that a reader takes into memory at once."""

Columns = dict[str, NDArray[Any]]
"""file, sha256: text, (N,). height, width: int32, (N,). embedding: float32, (N, E). patch_tokens:
float32, (N, P * D). label: int64, (N,), -1 where there is none."""
TEXTS, VECTORS = ("file", "sha256"), ("embedding", "patch_tokens")


@dataclass(frozen=True)
class EmbeddingFile:
    """What a file of embeddings holds, but for patch tokens.

    Attributes:
        names: Of the images, N.
        sha256: Of their files.
        vectors: (N, E), float32.
        about: What the file says of itself.
    """

    names: list[str]
    sha256: list[str]
    vectors: NDArray[np.float32]
    about: dict[str, Any]


def write_rows(path: Path, parts: Iterator[Columns], about: Mapping[str, Any]) -> None:
    """Write a file from parts of its rows; flushed to the disk, not renamed.

    Args:
        path: Ends in .parquet or .npz, or in one of these and `.part`.
        parts: One or more, all with the same columns.
        about: What the file is to say of itself.
    """
    suffix = next(each for each in path.suffixes[::-1] if each in SUFFIXES)
    writer = _write_parquet if suffix == ".parquet" else _write_npz
    writer(path, parts, json.dumps({"format": FORMAT, **about}, sort_keys=True))
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_embeddings(path: Path) -> EmbeddingFile:
    """Read a file of embeddings.

    Raises:
        InputError: There is none, or it is no such file.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file; give one that asl-pipe embed wrote")
    try:
        found = _read_parquet(path) if path.suffix == ".parquet" else _read_npz(path)
    except DAMAGE as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{path} is no file of embeddings ({said}); give one that asl-pipe embed wrote"
        ) from None
    if found.about.get("format") != FORMAT:
        raise InputError(f"{path} has embeddings of another format; embed the images again")
    return found


def read_about(path: Path) -> dict[str, Any] | None:
    """Return what a file of embeddings says of itself; None where it is none or says nothing."""
    with contextlib.suppress(*DAMAGE):
        if path.suffix == ".parquet":
            return json.loads((pq.read_schema(path).metadata or {})[ABOUT.encode()])
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return json.loads(str(archive["about"]))
    return None


def _write_parquet(path: Path, parts: Iterator[Columns], about: str) -> None:
    first = next(parts)
    fields = [pa.field(name, _arrow_type(name, values)) for name, values in first.items()]
    schema = pa.schema(fields, metadata={ABOUT: about})
    waiting, size = [_arrow_table(first, schema)], _size(first)
    # a dictionary of floats helps nobody
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for part in parts:
            if size >= ROW_GROUP_BYTES:
                writer.write_table(pa.concat_tables(waiting))
                waiting, size = [], 0
            waiting.append(_arrow_table(part, schema))
            size += _size(part)
        writer.write_table(pa.concat_tables(waiting))


def _arrow_type(name: str, values: NDArray[Any]) -> pa.DataType:
    if name in TEXTS:
        return pa.string()
    if name in VECTORS:
        return pa.list_(pa.float32(), values.shape[1])
    return pa.from_numpy_dtype(values.dtype)


def _arrow_table(columns: Columns, schema: pa.Schema) -> pa.Table:
    arrays: list[pa.Array] = []
    for name, values in columns.items():
        if name in VECTORS:
            flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, values.shape[1]))
        else:
            arrays.append(pa.array(values.tolist(), schema.field(name).type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _size(columns: Columns) -> int:
    return sum(values.nbytes for name, values in columns.items() if name in VECTORS)


def _write_npz(path: Path, parts: Iterator[Columns], about: str) -> None:
    """Write column by column; the parts wait in memory."""
    every = list(parts)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name in every[0]:
            values = np.concatenate([part[name] for part in every])
            if name in TEXTS:  # the widest of all parts
                values = np.array(values.tolist(), dtype=np.str_)
            _add_array(archive, name, values)
        _add_array(archive, "about", np.array(about))


def _add_array(archive: zipfile.ZipFile, name: str, values: NDArray[Any]) -> None:
    entry = zipfile.ZipInfo(f"{name}.npy")  # of 1980: no time of writing
    with archive.open(entry, "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.asarray(values, order="C"), allow_pickle=False)


def _read_parquet(path: Path) -> EmbeddingFile:
    table = pq.read_table(path, columns=["file", "sha256", "embedding"])
    about = json.loads((table.schema.metadata or {})[ABOUT.encode()])
    embedding = table["embedding"].combine_chunks()
    flat = embedding.flatten().to_numpy(zero_copy_only=False)
    vectors = np.asarray(flat, dtype=np.float32).reshape(len(table), -1)
    return EmbeddingFile(table["file"].to_pylist(), table["sha256"].to_pylist(), vectors, about)


def _read_npz(path: Path) -> EmbeddingFile:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        about = json.loads(str(archive["about"]))
        names, digests = (archive[name].tolist() for name in TEXTS)
        return EmbeddingFile(names, digests, np.asarray(archive["embedding"], np.float32), about)
