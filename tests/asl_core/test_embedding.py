"""Embeddings: the same vectors as the evaluations', from files of every format, in order."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from asl_core.data.decoding import QUALITY, decode_any
from asl_core.data.encoded_files import EncodedFiles
from asl_core.data.shards import PackedDataset
from asl_core.errors import InputError
from asl_core.modules.encoder import Encoder
from asl_core.recipes.embedding import Embedding
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.transfer.embedding import embed
from asl_core.transfer.embedding_files import read_about, read_embeddings, write_rows
from asl_core.transfer.embedding_vectors import Reading, embed_split, read_out
from asl_core.transfer.features import extract_features, frozen_features

VIT = Vit(image_size=16, patch_size=8, embed_dim=24, depth=3, num_heads=3,
          decoder_embed_dim=16, decoder_num_heads=4)  # fmt: skip
CPU = Resources(device="cpu")


def encoder(**changes: object) -> Encoder:
    torch.manual_seed(0)
    made = Encoder(Vit(**{**VIT.__dict__, **changes}))
    for parameter in made.parameters():  # norms begin at 1 and 0, which would hide them
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made.eval()


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("layer", [-1, -2, -3])
@torch.no_grad()
def test_vectors_are_those_of_the_evaluations(layer: int, registers: int) -> None:
    images, model = torch.randn(2, 3, 16, 16), encoder(registers=registers)
    features = frozen_features(model, images, ("cls", "mean"), blocks=-layer)  # (B, 2 blocks, D)
    cls, mean = features[:, -layer - 1], features[:, 2 * -layer - 1]
    both = read_out(model, images, Reading("cls+mean", layer, patch_tokens=True))
    torch.testing.assert_close(both.vectors, torch.cat([cls, mean], dim=1), rtol=0, atol=1e-6)
    for pooling, expected in (("cls", cls), ("mean", mean)):
        found = read_out(model, images, Reading(pooling, layer))
        torch.testing.assert_close(found.vectors, expected, rtol=0, atol=1e-6)
        assert found.patches is None
    tokens = model.layers(images)[layer]
    assert both.patches is not None
    torch.testing.assert_close(both.patches, model.norm(tokens)[:, 1:])
    assert both.patches.shape == (2, 4, 24)


def test_a_packed_dataset_its_files_and_k_nn_have_the_same_vectors(icons: Path) -> None:
    model, test = encoder(), PackedDataset(icons, "test")
    known = extract_features(
        model, test, poolings=["cls"], precision="fp32", resources=CPU
    ).features[:, 0]  # fmt: skip
    assert torch.equal(embed_split(model, test, Reading(), precision="fp32", resources=CPU), known)
    files = EncodedFiles(icons, "test")
    contents = [files.read(index).numpy().tobytes() for index in range(len(files))]
    rows = embed(
        model, contents, mean=test.manifest.mean, std=test.manifest.std, batch_size=256,
        resources=CPU,
    )  # fmt: skip
    assert torch.equal(rows.vectors, known)
    pixels = [test.read_image(index) for index in range(len(test))]
    again = embed(
        model, pixels, mean=test.manifest.mean, std=test.manifest.std, batch_size=256,
        workers=0, resources=CPU,
    )  # fmt: skip
    assert torch.equal(again.vectors, known)


def test_a_folder_is_gone_through_in_order_and_threads_change_nothing(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(23):
        pixels = generator.integers(0, 256, (20 + number, 31, 3), dtype=np.uint8)
        path = tmp_path / f"{number % 3}" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    (tmp_path / "1/04.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    (tmp_path / "1/notes.txt").write_text("no image")
    results = [
        embed(encoder(), tmp_path, batch_size=4, workers=workers, patch_tokens=True, resources=CPU)
        for workers in (0, 1, 3)
    ]
    names = sorted(f"{number % 3}/{number:02d}.png" for number in range(23) if number != 4)
    for rows in results:
        assert rows.names == names
        assert [each.name for each in rows.rejected] == ["1/04.png"]
        assert rows.heights == [20 + int(name[2:4]) for name in names]
        assert torch.equal(rows.vectors, results[0].vectors)
        assert rows.patches is not None
        assert rows.patches.shape == (22, 4, 24)


def test_every_format_is_read_and_turned_upright() -> None:
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((90, 60), Image.Resampling.NEAREST)
    exact = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    for kind in ("PNG", "BMP", "TIFF"):
        assert torch.equal(decode_any(saved(image, kind)), exact), kind
    for kind in ("JPEG", "WEBP", "AVIF", "HEIF"):
        if kind == "HEIF":
            pytest.importorskip("pillow_heif").register_heif_opener()
        found = decode_any(saved(image, kind, quality=100))
        assert found.shape == exact.shape, kind
        assert (found.float() - exact).abs().mean() < 12, kind
    grey = (small[..., 0].astype(np.uint16) << 8) + 255
    assert torch.equal(
        decode_any(saved(Image.fromarray(grey), "PNG")),
        torch.from_numpy(small[..., 0]).expand(3, -1, -1),
    )
    moving = saved(image.convert("P"), "GIF", save_all=True, append_images=[image.rotate(90)])
    assert decode_any(moving).shape == exact.shape
    assert decode_any(saved(image.convert("CMYK"), "JPEG", quality=100)).shape == exact.shape
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned = decode_any(saved(image, "PNG", exif=exif))
    assert torch.equal(turned, exact.rot90(-1, (1, 2)))
    assert QUALITY == 95  # what sources store, unless their recipe says otherwise


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"GIF8 and no more", "cannot be decoded"), (b"text", "no format|of no")],
)
def test_what_cannot_be_decoded_says_why(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode_any(content)


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="use -1 to -3"):
        embed(encoder(), [torch.zeros(3, 8, 8, dtype=torch.uint8)], layer=-4, resources=CPU)
    with pytest.raises(ValueError, match="counts from the last"):
        Embedding(dataset="icons", layer=0)
    with pytest.raises(ValueError, match="none twice"):
        Embedding(dataset="icons", splits=("test", "test"))
    with pytest.raises(ValueError, match="cls, mean, cls\\+mean"):
        Reading("max")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no image that can be read among 0"):
        embed(encoder(), tmp_path, resources=CPU)
    with pytest.raises(InputError, match="is no folder"):
        embed(encoder(), tmp_path / "nowhere", resources=CPU)
    with pytest.raises(InputError, match="among 1, the first 0: is \\(8, 8\\)"):
        embed(encoder(), [torch.zeros(8, 8)], resources=CPU)
    broken = encoder()
    broken.norm.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        embed(broken, [torch.zeros(3, 8, 8, dtype=torch.uint8)], resources=CPU)


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_equal_rows_are_equal_bytes_and_read_back(tmp_path: Path, suffix: str) -> None:
    def part(first: int, count: int) -> dict[str, np.ndarray]:
        return {
            "file": np.array([f"{'long/' * first}{n}" for n in range(count)], dtype=np.str_),
            "sha256": np.array(["ab"] * count, dtype="<U64"),
            "height": np.full(count, 3, np.int32),
            "width": np.full(count, 4, np.int32),
            "embedding": np.arange(count * 2, dtype=np.float32).reshape(count, 2) + first,
            "patch_tokens": np.zeros((count, 6), np.float32),
        }

    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        write_rows(path, iter([part(0, 0), part(1, 2), part(9, 3)]), {"made_by": {"x": 1}})
    assert paths[0].read_bytes() == paths[1].read_bytes()
    found = read_embeddings(paths[0])
    assert found.names[1:3] == ["long/1", "long/" * 9 + "0"]
    assert found.vectors.tolist()[2] == [9.0, 10.0]
    assert found.about["made_by"] == {"x": 1}
    assert read_about(paths[0]) == found.about
    (tmp_path / f"c{suffix}").write_bytes(paths[0].read_bytes()[:-40])
    with pytest.raises(InputError, match="is no file of embeddings"):
        read_embeddings(tmp_path / f"c{suffix}")
    assert read_about(tmp_path / f"c{suffix}") is None
