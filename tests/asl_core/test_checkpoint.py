import errno
import os
from pathlib import Path

import pytest
import torch

from asl_core.engine.checkpoint import CheckpointFolder
from asl_core.errors import InputError


def test_newest_two_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "ckpt")
    for step in (5, 20, 100):
        folder.save(step, {"x": torch.tensor(step)})
    assert len(list((tmp_path / "ckpt").iterdir())) == 2
    loaded = folder.load_newest()
    assert loaded is not None
    assert loaded[0] == 100
    assert loaded[1]["x"] == 100


def test_what_a_killed_process_left_half_written_goes_at_the_next_save(tmp_path: Path) -> None:
    (tmp_path / ".step-000000004.99.tmp").write_bytes(b"half of a checkpoint")
    newest = CheckpointFolder(tmp_path).save(5, {"x": 1})
    assert list(tmp_path.iterdir()) == [newest]


def test_damaged_checkpoint_is_skipped_for_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(1, {"x": 1})
    newest = folder.save(2, {"x": 2})
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(bytes(damaged))
    assert folder.load_newest() == (1, {"x": 1})
    assert "damaged" in caplog.text
    newest.write_bytes(b"")
    assert folder.load_newest() == (1, {"x": 1})


def test_only_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(1, {"x": 1}).write_bytes(b"no")
    with pytest.raises(InputError, match="damaged; delete"):
        folder.load_newest()


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path / "absent").load_newest() is None


def test_full_disk_leaves_the_old_checkpoint_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(1, {"x": torch.ones(3)})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        folder.save(2, {"x": torch.zeros(3)})
    assert len(list(tmp_path.iterdir())) == 1
    loaded = folder.load_newest()
    assert loaded is not None
    assert loaded[0] == 1
