"""Tokenizers: codes by brute force, DALL-E's graph by its description, files, what is refused."""

import importlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asl_core.analysis.cost import count_flops
from asl_core.data.shards import PackedDataset
from asl_core.errors import InputError
from asl_core.modules.patches import pixel_target
from asl_core.pretrain import build_method
from asl_core.protocol import Draw, Step, Tokenizer, Views
from asl_core.recipes.models import Vit
from asl_core.recipes.normalisation import Rgb
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.tokenized import TokenPretraining
from asl_core.recipes.tokenizers import DalleTokenizer, KMeansTokenizer
from asl_core.recipes.views import View, ViewPlan
from asl_core.tokenizers import dalle, kmeans
from asl_core.tokenizers.dalle import DalleEncoder, from_published, published_name
from asl_core.tokenizers.fitting import fit_clusters
from asl_core.tokenizers.kmeans import PatchClusters, normalised_patches
from asl_core.tokenizers.measuring import measure_codes
from asl_core.tokenizers.store import load_tokenizer, save_tokenizer

ORACLES = os.environ.get("ASL_ORACLES")  # read when the file is: tests hide such variables

Parity = Callable[[str, Tensor, Tensor, float], None]
FIT = KMeansTokenizer(
    dataset="icons", num_codes=12, patch_size=4, image_size=16, images=40, epochs=2
)
KIND = Literal["dalle", "kmeans"]


def pictures(count: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


# --- k-means


def test_codes_are_the_nearest_centres() -> None:
    images = pictures(3, 12)
    images[1, :, :4, :4] = 77  # of one colour
    generator = torch.Generator().manual_seed(5)
    tokenizer = PatchClusters(torch.randn(7, 48, generator=generator), patch_size=4)
    codes = tokenizer.codes(images)
    assert codes.shape == (3, 9)
    assert codes.dtype == torch.int64
    for i, image in enumerate(images):
        for n in range(9):
            row, column = divmod(n, 3)
            patch = image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].double() / 255
            pixels = [patch[c, y, x] for y in range(4) for x in range(4) for c in range(3)]
            values = torch.stack(pixels)
            values = (values - values.mean()) / (values.var() + 1e-6).sqrt()
            distances = [(values - centre.double()).square().sum() for centre in tokenizer.centres]
            assert codes[i, n] == int(torch.stack(distances).argmin())


def test_patches_are_normalised_as_mae_normalises_its_target(parity: Parity) -> None:
    images = pictures(2, 12)
    ids = torch.arange(9).expand(2, 9)
    expected = pixel_target(images.double() / 255, 4, norm_pix=True, ids=ids)
    found = normalised_patches(images, 4)
    assert found.dtype == torch.float32
    parity("tokenizer, normalised patches", found.double(), expected, 1e-6)


@pytest.mark.parametrize("colour", [0, 77, 255])
def test_patches_of_one_colour_are_alike_to_the_bit(colour: int) -> None:
    image = torch.full((1, 3, 32, 32), colour, dtype=torch.uint8)
    assert not normalised_patches(image, 16).any()


def test_of_equally_near_centres_the_lowest_counts() -> None:
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(4, 48, generator=generator)
    tokenizer = PatchClusters(centres.repeat(3, 1), patch_size=4)
    codes = tokenizer.codes(pictures(20, 12))
    assert set(codes.flatten().tolist()) == {0, 1, 2, 3}


def test_codes_do_not_depend_on_the_chunks_or_on_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(5, 12)
    tokenizer = PatchClusters(torch.randn(40, 48), patch_size=4)
    whole = tokenizer.codes(images)
    monkeypatch.setattr(kmeans, "_CHUNK", 40 * 7)
    assert torch.equal(tokenizer.codes(images), whole)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer.codes(images), whole)
    assert torch.equal(tokenizer.double().codes(images), whole)


def test_a_fit_is_reproducible_and_depends_on_its_seed(icons: Path) -> None:
    dataset = PackedDataset(icons, "train")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fit_clusters(FIT, dataset)
    assert torch.equal(torch.get_rng_state(), before)  # draws from no global generator
    torch.manual_seed(2)
    assert torch.equal(fit_clusters(FIT, dataset, num_workers=1).centres, first.centres)
    other = fit_clusters(KMeansTokenizer(**{**vars(FIT), "seed": 1}), dataset)
    assert not torch.equal(other.centres, first.centres)


def test_a_fit_is_better_than_what_it_begins_with_and_uses_its_codes(icons: Path) -> None:
    dataset = PackedDataset(icons, "train")
    measured = measure_codes(fit_clusters(FIT, dataset), FIT, dataset, Resources())
    patches = normalised_patches(dataset.read_image(0)[None], 4)[0, :12].clone()
    begun = measure_codes(PatchClusters(patches, 4), FIT, dataset, Resources())
    assert measured["quantisation_error"] < 0.8 * begun["quantisation_error"]
    assert measured["codes_used"] == 12
    assert measured["measured_patches"] == 32 * 16  # whole batches of 16 images
    assert measured["commonest_code_share"] < 0.5
    assert 6 < measured["code_perplexity"] <= 12


def test_how_codes_are_used_is_counted(icons: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = PackedDataset(icons, "train")
    clusters = fit_clusters(FIT, dataset)
    uneven = torch.tensor([0] * 8 + [1] * 4 + [2] * 2 + [3] * 2)  # of an image's 16 patches

    def codes(images: Tensor) -> Tensor:
        return uneven.expand(len(images), -1)

    monkeypatch.setattr(clusters, "codes", codes)
    measured = measure_codes(clusters, FIT, dataset, Resources())
    assert measured["codes_used"] == 4
    assert measured["commonest_code_share"] == 0.5
    # 2^(1/2 * 1 + 1/4 * 2 + 2 * 1/8 * 3): shares of a half, a quarter and twice an eighth
    assert measured["code_perplexity"] == pytest.approx(2**1.75, rel=1e-12)


def test_dead_codes_are_seen(icons: Path) -> None:
    dataset = PackedDataset(icons, "train")
    far = torch.full((1, 48), 1e3)
    centres = torch.cat([fit_clusters(FIT, dataset).centres[:1], far, far])
    measured = measure_codes(PatchClusters(centres, 4), FIT, dataset, Resources())
    assert measured["codes_used"] == 1
    assert measured["commonest_code_share"] == 1
    assert measured["code_perplexity"] == pytest.approx(1)


def test_more_codes_than_different_patches_are_refused(icons: Path) -> None:
    recipe = KMeansTokenizer(**{**vars(FIT), "num_codes": 700, "images": 100})  # there are 40
    with pytest.raises(InputError, match="num_codes 700 exceeds the 640 different patches of the"):
        fit_clusters(recipe, PackedDataset(icons, "train"))


# --- DALL-E's encoder


def published_state(width: int = 8, num_codes: int = 20) -> dict[str, Tensor]:
    """Random weights under DALL-E's names: width 8 has 2 channels in the first bottleneck."""
    generator = torch.Generator().manual_seed(3)
    state: dict[str, Tensor] = {}

    def put(name: str, n_in: int, n_out: int, side: int) -> None:
        scale = (n_in * side**2) ** -0.5
        shape = (n_out, n_in, side, side)
        state[f"{name}.w"] = scale * torch.randn(shape, generator=generator)
        state[f"{name}.b"] = 0.02 * torch.randn(n_out, generator=generator)

    put("blocks.input", 3, width, 7)
    n_in = width
    for group in range(1, 5):
        n_out = width * 2 ** (group - 1)
        for block in (1, 2):
            name = f"blocks.group_{group}.block_{block}"
            if n_in != n_out:
                put(f"{name}.id_path", n_in, n_out, 1)
            put(f"{name}.res_path.conv_1", n_in, n_out // 4, 3)
            put(f"{name}.res_path.conv_2", n_out // 4, n_out // 4, 3)
            put(f"{name}.res_path.conv_3", n_out // 4, n_out // 4, 3)
            put(f"{name}.res_path.conv_4", n_out // 4, n_out, 1)
            n_in = n_out
    put("blocks.output.conv", n_in, num_codes, 1)
    return state


def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution that keeps the size, as a product with all shifted pictures; x (C, H, W)."""
    side = weight.shape[-1]
    margin = side // 2
    wide = F.pad(x, [margin] * 4)
    total = bias[:, None, None].expand(-1, *x.shape[1:]).clone()
    for dy in range(side):
        for dx in range(side):
            shifted = wide[:, dy : dy + x.shape[1], dx : dx + x.shape[2]]
            total += torch.einsum("oc,chw->ohw", weight[:, :, dy, dx], shifted)
    return total


def dalle_logits(p: dict[str, Tensor], image: Tensor) -> Tensor:
    """DALL-E's encoder by its description; image (3, S, S) in [0, 1], logits (K, S / 8, S / 8)."""

    def conv(x: Tensor, name: str) -> Tensor:
        return convolved(x, p[f"{name}.w"], p[f"{name}.b"])

    x = conv(image * (1 - 2 * 0.1) + 0.1, "blocks.input")
    for group in range(1, 5):
        for block in (1, 2):
            name = f"blocks.group_{group}.block_{block}"
            kept = conv(x, f"{name}.id_path") if f"{name}.id_path.w" in p else x
            for number in range(1, 5):
                x = conv(x.clamp_min(0), f"{name}.res_path.conv_{number}")
            x = kept + x / 64  # eight blocks in all
        if group < 4:
            quarters = [x[:, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)]
            x = torch.stack(quarters).amax(0)
    return conv(x.clamp_min(0), "blocks.output.conv")


def test_dalles_encoder_is_its_description(parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    state = published_state()
    encoder = from_published(state, Path("x"), width=8, num_codes=20).double()
    images = pictures(2, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)  # 24 pixels
    exact = {name: tensor.double() for name, tensor in state.items()}
    expected = torch.stack([dalle_logits(exact, image.double() / 255) for image in images])
    parity("DALL-E's encoder, logits", encoder(images.double() / 255), expected, 1e-10)
    codes = encoder.codes(images)
    assert torch.equal(codes, expected.argmax(1).flatten(1))
    assert codes.shape == (2, 9)
    assert len(codes.unique()) > 2  # random weights do not choose one code everywhere
    monkeypatch.setattr(dalle, "_CHUNK", 1)
    assert torch.equal(encoder.codes(images), codes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder.codes(images), codes)


@pytest.mark.parity
@pytest.mark.skipif(ORACLES is None, reason="set ASL_ORACLES to a folder with openai+DALL-E")
def test_dalles_encoder_is_the_official_one(
    parity: Parity, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(str(ORACLES)) / "openai+DALL-E"  # 5be4b236
    assert folder.is_dir(), f"{folder} is missing; check it out there"
    monkeypatch.syspath_prepend(str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        official = importlib.import_module("dall_e")
    torch.manual_seed(0)
    theirs = official.Encoder(n_hid=64, vocab_size=512)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith(".b"):
                parameter.normal_(std=0.3)
    ours = from_published(theirs.state_dict(), folder, width=64, num_codes=512)
    images = pictures(2, 32)
    mapped = official.map_pixels(images.float() / 255)
    with torch.no_grad():
        logits = theirs(mapped)
        parity("official DALL-E, logits in float32", ours(images.float() / 255), logits, 1e-5)
    assert torch.equal(ours.codes(images), logits.argmax(1).flatten(1))
    exact = theirs.double()
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # their convolutions ask for float32
    with torch.no_grad():
        logits = exact.blocks(0.8 * images.to(torch.float64) / 255 + 0.1)
    double = ours.double()(images.to(torch.float64) / 255)
    parity("official DALL-E, logits in float64", double, logits, 1e-10)


def test_every_parameter_has_a_name_of_dalle() -> None:
    with torch.device("meta"):
        encoder = DalleEncoder(256, 8192)
    named = {published_name(name): tuple(w.shape) for name, w in encoder.state_dict().items()}
    assert len(named) == len(encoder.state_dict())
    assert named["blocks.group_1.block_1.res_path.conv_1.w"] == (64, 256, 3, 3)
    assert named["blocks.group_4.block_1.id_path.w"] == (2048, 1024, 1, 1)
    assert named["blocks.output.conv.w"] == (8192, 2048, 1, 1)
    assert sum(w.numel() for w in encoder.parameters()) == 53_786_240


def changed(name: str, value: object) -> dict[str, object]:
    return {**published_state(), name: value}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "x.pt: blocks.input.w is missing; give the state dict of DALL-E's encoder"),
        (changed("blocks.input.c", torch.ones(1)), "blocks.input.c is no part of it"),
        (
            changed("blocks.input.b", torch.ones(9)),
            r"input.b is \(9,\), expected \(8,\) for width 8",
        ),
        (
            changed("blocks.input.b", torch.arange(8)),
            "blocks.input.b has no floating-point numbers",
        ),
        (changed("blocks.input.b", 3), "blocks.input.b has no floating-point numbers"),
        (changed("blocks.input.b", torch.full((8,), torch.nan)), "blocks.input.b is not finite"),
        (published_state(num_codes=21), r"output.conv.w is \(21, 64, 1, 1\), expected \(20, 64"),
    ],
)
def test_what_is_not_that_encoder_is_refused(state: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        from_published(state, Path("x.pt"), width=8, num_codes=20)
    assert "\n" not in str(raised.value)


# --- files


def tokenizers() -> list[PatchClusters | DalleEncoder]:
    centres = PatchClusters(torch.randn(5, 48), patch_size=4)
    return [centres, from_published(published_state(), Path("x"), width=8, num_codes=20)]


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=["kmeans", "dalle"])
def test_what_is_saved_is_loaded_frozen_and_draws_nothing(
    tokenizer: PatchClusters | DalleEncoder, tmp_path: Path
) -> None:
    save_tokenizer(tokenizer, tmp_path)
    before = torch.get_rng_state()
    loaded = load_tokenizer(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    images = pictures(2, 16)
    assert torch.equal(loaded.codes(images), tokenizer.codes(images))
    assert (loaded.kind, loaded.num_codes) == (tokenizer.kind, tokenizer.num_codes)
    assert loaded.patch_pixels == tokenizer.patch_pixels
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    with torch.enable_grad():
        assert not loaded.codes(images).requires_grad
    again = tmp_path / "again"
    again.mkdir()
    save_tokenizer(loaded, again)
    for file in ("tokenizer.json", "tokenizer.safetensors"):
        assert (again / file).read_bytes() == (tmp_path / file).read_bytes()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", b"{", "are damaged"),
        ("tokenizer.json", b"[]", "are damaged"),
        ("tokenizer.json", b'{"kind": "x", "num_codes": 5, "patch_pixels": 4}', "kind 'x'"),
        ("tokenizer.json", b'{"kind": "kmeans", "num_codes": 5, "patch_pixels": 8}', r"\(5, 48\)"),
        ("tokenizer.json", b'{"kind": "dalle", "num_codes": 5, "patch_pixels": 8}', "stem.bias"),
        ("tokenizer.safetensors", b"", "are damaged"),
        ("tokenizer.safetensors", safetensors.torch.save({"x": torch.ones(1)}), "centres"),
    ],
)
def test_damaged_files_are_named(file: str, content: bytes, message: str, tmp_path: Path) -> None:
    save_tokenizer(tokenizers()[0], tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)
    assert "make the dataset again" in str(raised.value)


def test_a_dataset_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no tokenizer; name an entry of `tokenizers`"):
        load_tokenizer(tmp_path)


# --- methods that predict codes

TINY = Vit(
    image_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2,
    decoder_embed_dim=12, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CountingRecipe(TokenPretraining):
    """A method that does nothing but ask for codes."""

    method: str = "counting"

    def view_plan(self) -> ViewPlan:
        return ViewPlan(views=(View(size=self.token_size),))


class Counting(nn.Module):
    """Its loss is the mean code."""

    def __init__(self, recipe: CountingRecipe, mean: Rgb, std: Rgb, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.recipe, self.mean, self.std, self.tokenizer = recipe, mean, std, tokenizer
        self.encoder = nn.Linear(1, 1)

    def forward(self, batch: Views, draw: Draw) -> Step:
        codes = self.tokenizer.codes(batch.views[0])
        return Step(self.encoder(codes.float().mean()[None]).sum())


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a method be known that wants a tokenizer."""

    def known(name: str) -> Any:
        return Counting

    monkeypatch.setattr("asl_core.pretrain.method_class", known)
    monkeypatch.setattr("asl_core.analysis.cost.method_class", known)


def counting_recipe(tokenizer: KIND = "kmeans", model: Vit = TINY) -> CountingRecipe:
    return CountingRecipe(
        dataset="icons", model=model, tokenizer=tokenizer, epochs=1, warmup_epochs=0
    )


@pytest.mark.usefixtures("counting")
def test_a_method_gets_the_tokenizer_of_its_dataset(icons: Path) -> None:
    method: Any = build_method(counting_recipe(), PackedDataset(icons, "train"))
    assert torch.equal(method.tokenizer.centres, load_tokenizer(icons).state_dict()["centres"])
    assert (method.tokenizer.num_codes, counting_recipe().token_size) == (12, 16)


@pytest.mark.usefixtures("counting")
def test_weights_do_not_depend_on_the_tokenizer(icons: Path, tmp_path: Path) -> None:
    dataset = PackedDataset(icons, "train")
    first: Any = build_method(counting_recipe(), dataset)
    save_tokenizer(tokenizers()[1], tmp_path)
    dataset.folder = tmp_path
    second: Any = build_method(counting_recipe("dalle"), dataset)
    assert isinstance(second.tokenizer, DalleEncoder)
    assert torch.equal(first.encoder.weight, second.encoder.weight)


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (counting_recipe("dalle"), "counting wants codes of dalle, and dataset icons has those of"),
        (
            counting_recipe(model=Vit(**{**vars(TINY), "patch_size": 8})),
            "patches of the model have 8 pixels, those of dataset icons's tokenizer 4; fit one "
            "with patch_size: 8",
        ),
    ],
)
def test_another_tokenizer_than_the_methods_is_refused(
    recipe: CountingRecipe, message: str, icons: Path
) -> None:
    with pytest.raises(InputError, match=message):
        build_method(recipe, PackedDataset(icons, "train"))


@pytest.mark.usefixtures("counting")
def test_a_dataset_without_tokenizer_is_refused(icons: Path, tmp_path: Path) -> None:
    dataset = PackedDataset(icons, "train")
    dataset.folder = tmp_path
    with pytest.raises(InputError, match="dataset icons has no tokenizer; name an entry of `token"):
        build_method(counting_recipe(), dataset)


@pytest.mark.usefixtures("counting")
def test_the_work_of_a_tokenizer_counts() -> None:
    small, large = (PatchClusters(torch.randn(k, 48), patch_size=4) for k in (10, 30))
    counts = [count_flops(counting_recipe(), None, each) for each in (small, large)]
    assert (counts[1].forward_g - counts[0].forward_g) * 1e9 == pytest.approx(16 * 48 * 20)
    assert small.centres.device.type == "cpu"  # counted on a copy without numbers


# --- recipes

KMEANS: dict[str, Any] = {"dataset": "icons"}
DALLE: dict[str, Any] = {"dataset": "icons", "weights": "x.pt", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (KMeansTokenizer, {"num_codes": 1}, "num_codes must be at least 2"),
        (KMeansTokenizer, {"patch_size": 0}, "patch_size must be at least 1"),
        (KMeansTokenizer, {"epochs": 0}, "epochs must be at least 1"),
        (KMeansTokenizer, {"images": 0}, "images must be at least 1"),
        (KMeansTokenizer, {"image_size": 100}, "multiple of the 16 pixels .* use 96"),
        (KMeansTokenizer, {"images": 10}, "num_codes 8192 exceeds the 1960 patches of 10 images"),
        (KMeansTokenizer, {"crop_scale_min": 0.0}, r"crop_scale_min must be in \(0, 1\]"),
        (DalleTokenizer, {"weights": ""}, "weights is empty"),
        (DalleTokenizer, {"sha256": "12"}, "sha256 must be 64 hexadecimal digits, got '12'"),
        (DalleTokenizer, {"image_size": 100}, "multiple of the 8 pixels .* use 96"),
        (DalleTokenizer, {"width": 6}, "width must be a multiple of 4"),
        (DalleTokenizer, {"num_codes": 1}, "num_codes must be at least 2"),
    ],
)
def test_values_that_make_no_sense_are_refused(
    kind: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**{**(KMEANS if kind is KMeansTokenizer else DALLE), **fields})


def test_the_file_of_weights_is_under_the_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "there")
    recipe = DalleTokenizer(**{**DALLE, "weights": "$WHERE/x.pt"})
    assert recipe.file(Path("/data")) == Path("/data/there/x.pt")
    assert DalleTokenizer(**{**DALLE, "weights": "/y.pt"}).file(Path("/data")) == Path("/y.pt")
