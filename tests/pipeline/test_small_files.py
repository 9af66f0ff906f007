import hashlib
from pathlib import Path

from pipeline.tracking.small_files import texts_beside


def test_weights_are_referred_to_by_path_size_and_digest(tmp_path: Path) -> None:
    out = tmp_path / "runs/pretrain/asl"
    out.mkdir(parents=True)
    encoder = tmp_path / "runs/encoder/asl"
    encoder.mkdir(parents=True)
    (encoder / "encoder.safetensors").write_bytes(b"weights")
    predictions = tmp_path / "runs/held_out/asl"  # are not weights
    predictions.mkdir(parents=True)
    (predictions / "step-0.safetensors").write_bytes(b"predictions")
    (out / "config.json").write_text("{}")
    (out.parent / "asl.json").write_text('{"loss": 1.0}')
    digest = hashlib.sha256(b"weights").hexdigest()
    assert texts_beside(out, tmp_path) == {
        "config.json": "{}",
        "metrics.json": '{"loss": 1.0}',
        "weights.txt": f"runs/encoder/asl/encoder.safetensors  7 bytes  sha256 {digest}\n",
    }


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    assert texts_beside(tmp_path, tmp_path) == {}
