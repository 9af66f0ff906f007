import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from asl_core.modules.encoder import Encoder
from asl_core.protocol import Draw
from asl_core.recipes.models import Vit
from asl_core.recipes.transfer import Segmentation
from asl_core.transfer.segmentation.augment import SegmentationBatch
from asl_core.transfer.segmentation.evaluate import SegmentationScores, count_pixels
from asl_core.transfer.segmentation.model import Segmenter, blank_padding, pixel_cross_entropy
from asl_core.transfer.segmentation.upernet import UPerHead

VIT = Vit(image_size=32, patch_size=4, embed_dim=32, depth=4, num_heads=2)


def small_segmenter(dropout: float = 0.1) -> Segmenter:
    torch.manual_seed(0)
    recipe = Segmentation(
        dataset="scenes",
        crop_size=32,
        slide_stride=24,
        channels=16,
        auxiliary_channels=8,
        dropout=dropout,
    )
    return Segmenter(Encoder(VIT), 3, recipe, (0.5,) * 3, (0.25,) * 3)


def quadrants(count: int) -> SegmentationBatch:
    """Return images whose left and right halves have a colour and a class each."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 40, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    semantic = torch.zeros(count, 32, 32, dtype=torch.uint8)
    for i in range(count):
        images[i, i % 3, :, 16:] += 200
        semantic[i, :, 16:] = 1 + i % 2
        semantic[i, :4] = 255
    sizes = torch.full((count, 2), 32)
    return SegmentationBatch(images, semantic, sizes, torch.arange(count))


def plain_uperhead(state: dict[str, Tensor], maps: list[Tensor]) -> Tensor:
    """Compute UPerNet's decoder from the weights alone, statistics at rest."""

    def unit(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.0.weight"]
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        gain = state[f"{name}.1.weight"] / (state[f"{name}.1.running_var"] + 1e-5).sqrt()
        x = (x - state[f"{name}.1.running_mean"][:, None, None]) * gain[:, None, None]
        return (x + state[f"{name}.1.bias"][:, None, None]).clamp(min=0)

    def grow(x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)

    a, b, c, d = maps
    pooled = [
        grow(unit(f"pooling.stages.{i}.1", F.adaptive_avg_pool2d(d, scale)), d)
        for i, scale in enumerate((1, 2, 3, 6))
    ]
    p = unit("pooling.fuse", torch.cat([d, *pooled], 1))
    c = unit("laterals.2", c) + grow(p, c)
    b = unit("laterals.1", b) + grow(c, b)
    a = unit("laterals.0", a) + grow(b, a)
    a, b, c = unit("smooth.0", a), unit("smooth.1", b), unit("smooth.2", c)
    fused = unit("fuse", torch.cat([a, grow(b, a), grow(c, a), grow(p, a)], 1))
    return F.conv2d(fused, state["classifier.1.weight"], state["classifier.1.bias"])


def test_head_equals_a_plain_computation() -> None:
    torch.manual_seed(0)
    head = UPerHead([5, 6, 7, 8], channels=9, num_classes=4).eval()
    for name, tensor in head.state_dict().items():
        if name.endswith(("running_mean", "running_var", "1.weight", "1.bias")):
            tensor.uniform_(0.5, 1.5)
    sides = ((24, 20), (12, 10), (6, 5), (3, 2))
    maps = [torch.randn(2, 5 + i, *side) for i, side in enumerate(sides)]
    expected = plain_uperhead(head.state_dict(), maps)
    assert expected.shape == (2, 4, 24, 20)
    torch.testing.assert_close(head(maps), expected)


def test_classifier_starts_near_zero_and_convolutions_by_fan_out() -> None:
    torch.manual_seed(0)
    head = UPerHead([64] * 4, channels=64, num_classes=50)
    assert head.classifier[1].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert head.classifier[1].bias.abs().max() == 0
    expected = (2 / (64 * 9)) ** 0.5
    assert head.fuse[0].weight.std().item() == pytest.approx(expected, rel=0.02)


def test_loss_is_the_mean_over_all_pixels_where_ignored_ones_count_zero() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    semantic = torch.randint(0, 3, (2, 4, 5), dtype=torch.uint8)
    semantic[0, :2] = 255
    loss = pixel_cross_entropy(logits, semantic)
    logs = logits.log_softmax(1)
    kept = [
        -logs[b, semantic[b, y, x].long(), y, x]
        for b in range(2) for y in range(4) for x in range(5)
        if semantic[b, y, x] != 255
    ]  # fmt: skip
    assert len(kept) == 30
    torch.testing.assert_close(loss, torch.stack(kept).sum() / 40)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, :, :2].abs().max() == 0
    assert logits.grad[0, :, 2:].abs().min() > 0


def test_a_batch_without_any_class_has_loss_zero() -> None:
    semantic = torch.full((2, 4, 5), 255, dtype=torch.uint8)
    assert pixel_cross_entropy(torch.randn(2, 3, 2, 2), semantic) == 0


def test_padding_is_zero_after_normalisation_and_the_image_is_kept() -> None:
    images = torch.ones(2, 3, 4, 5)
    blanked = blank_padding(images, torch.tensor([[4, 5], [2, 3]]))
    assert torch.equal(blanked[0], images[0])
    assert blanked[1].sum() == 3 * 2 * 3
    assert blanked[1, :, :2, :3].min() == 1


def test_auxiliary_loss_counts_with_its_weight() -> None:
    step = small_segmenter()(quadrants(4), Draw(0, 0))
    expected = step.terms["loss_main"] + 0.4 * step.terms["loss_auxiliary"]
    torch.testing.assert_close(step.loss, expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_parameter_gets_a_finite_gradient(precision: str) -> None:
    model = small_segmenter().train()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        step = model(quadrants(4), Draw(0, 0))
    assert step.loss.dtype == torch.float32
    step.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_four_images_are_learnt_by_heart() -> None:
    model = small_segmenter(dropout=0.0).train()
    batch = quadrants(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(40):
        optimizer.zero_grad()
        model(batch, Draw(0, step)).loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits = F.interpolate(
            model.head(model.pyramid(model.backbone((batch.images / 255 - 0.5) / 0.25))), (32, 32)
        )
    scores = SegmentationScores(count_pixels(batch.semantic, logits.argmax(1), 3)).metrics()
    assert scores["aacc"] > 95
    assert scores["miou"] > 90
