"""What differs from torchvision's Mask R-CNN."""

import torch
import torch.nn.functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RPNHead

from asl_core.transfer.detection.corrections import (
    PASTE_CHUNK_PIXELS,
    AlignedPooler,
    L1RegionProposalNetwork,
    mask_targets,
    paste_masks,
)
from asl_core.transfer.detection.heads import box_loss


def ramps(strides: tuple[int, ...], side: int) -> list[torch.Tensor]:
    """Maps whose value at each cell is the cell centre's x and y in pixels, (1, 2, h, w) each."""
    maps = []
    for stride in strides:
        centre = (torch.arange(side // stride) + 0.5) * stride
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        maps.append(torch.stack([x, y])[None])
    return maps


def test_pooling_a_linear_ramp_reads_the_pixel_coordinates_exactly() -> None:
    strides = (4, 8, 16, 32)
    boxes = torch.tensor(
        [[40.0, 52, 61, 80], [100, 90, 260, 230], [70, 60, 380, 350], [40.5, 33, 460, 471.25]]
    )
    pooler = AlignedPooler(tuple(float(s) for s in strides), 7)
    assert pooler.levels(boxes).tolist() == [0, 1, 2, 2]
    pooled = pooler(ramps(strides, 512), [boxes])  # (4, 2, 7, 7)
    cells = (torch.arange(7) + 0.5) / 7
    x = boxes[:, 0, None] + cells * (boxes[:, 2] - boxes[:, 0])[:, None]
    y = boxes[:, 1, None] + cells * (boxes[:, 3] - boxes[:, 1])[:, None]
    torch.testing.assert_close(pooled[:, 0], x[:, None, :].expand(-1, 7, -1), rtol=0, atol=1e-3)
    torch.testing.assert_close(pooled[:, 1], y[:, :, None].expand(-1, -1, 7), rtol=0, atol=1e-3)


def test_a_box_of_224_pixels_reads_the_level_of_stride_16() -> None:
    boxes = torch.tensor([[0.0, 0, 223, 223], [0, 0, 224, 224], [0, 0, 448, 448], [0, 0, 9, 9]])
    assert AlignedPooler((4.0, 8.0, 16.0, 32.0), 7).levels(boxes).tolist() == [1, 2, 3, 0]


def test_boxes_of_several_images_read_their_own_image() -> None:
    features = [torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 1, 8, 8)]
    boxes = [torch.tensor([[1.0, 1, 5, 5]]), torch.zeros(0, 4), torch.tensor([[2.0, 2, 6, 6]])]
    pooled = AlignedPooler((4.0,), 2)(features, boxes)
    assert pooled.mean(dim=(1, 2, 3)).tolist() == [0.0, 2.0]


def test_a_mask_target_of_the_box_itself_is_binary_and_matches_the_pixels() -> None:
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[1, 4:12, 6:14] = torch.rand(8, 8, generator=torch.Generator().manual_seed(1)) > 0.5
    boxes = torch.tensor([[6.0, 4, 14, 12]])
    target = mask_targets(masks, boxes, torch.tensor([1]), 8)
    assert torch.equal(target[0].bool(), masks[1, 4:12, 6:14])


def test_pasting_puts_a_mask_of_pixel_size_back_where_it_was() -> None:
    original = torch.zeros(1, 40, 50, dtype=torch.bool)
    original[0, 5:33, 9:37] = torch.rand(28, 28, generator=torch.Generator().manual_seed(2)) > 0.5
    boxes = torch.tensor([[9.0, 5, 37, 33]])
    target = mask_targets(original, boxes, torch.tensor([0]), 28)
    assert torch.equal(paste_masks(target, boxes, 40, 50), original)


def test_targets_pasted_back_cover_a_disk_almost_wholly() -> None:
    y, x = torch.meshgrid(torch.arange(90.0), torch.arange(100.0), indexing="ij")
    disk = ((x - 47.3) ** 2 + (y - 40.8) ** 2 < 31.4**2)[None]
    boxes = torch.tensor([[16.0, 10, 79, 73]])
    pasted = paste_masks(mask_targets(disk, boxes, torch.tensor([0]), 28), boxes, 90, 100)
    iou = (pasted & disk).sum() / (pasted | disk).sum()
    assert iou > 0.97


def test_pasting_in_chunks_equals_pasting_one_by_one() -> None:
    torch.manual_seed(0)
    masks = torch.rand(5, 28, 28)
    corners = torch.rand(5, 2) * 20
    boxes = torch.cat([corners, corners + 5 + torch.rand(5, 2) * 20], dim=1)
    height = width = 2900  # two masks a chunk
    assert PASTE_CHUNK_PIXELS // (height * width) == 1
    together = paste_masks(masks, boxes, height, width)
    for i in range(5):
        alone = paste_masks(masks[i : i + 1], boxes[i : i + 1], 60, 60)
        assert torch.equal(together[i, :60, :60], alone[0])
    assert paste_masks(masks[:0], boxes[:0], 6, 7).shape == (0, 6, 7)


def test_the_box_losses_have_the_gradient_of_l1() -> None:
    # a smooth L1 would give 9 * difference for differences below 1/9
    deltas = torch.zeros(3, 12, requires_grad=True)
    labels, targets = torch.tensor([2, 0, 1]), torch.full((3, 4), 0.01)
    box_loss(deltas, labels, targets).backward()
    expected = torch.zeros(3, 3, 4)
    expected[0, 2] = expected[2, 1] = -1 / 3
    torch.testing.assert_close(deltas.grad, expected.reshape(3, 12))


def test_the_rpn_box_loss_is_l1_over_sampled_anchors() -> None:
    rpn = L1RegionProposalNetwork(
        AnchorGenerator(((8,),), ((1.0,),)), RPNHead(4, 1), 0.7, 0.3, 4, 0.5,
        {"training": 9, "testing": 9}, {"training": 9, "testing": 9}, 0.7,
    )  # fmt: skip
    deltas = torch.zeros(6, 4, requires_grad=True)
    labels = [torch.tensor([1.0, 0, 0]), torch.tensor([-1.0, 0, -1])]
    targets = [torch.full((3, 4), 0.01), torch.full((3, 4), 7.0)]
    objectness, boxes = rpn.compute_loss(torch.zeros(6, 1), deltas, labels, targets)
    boxes.backward()
    expected = torch.zeros(6, 4)
    expected[0] = -1 / 4  # one object and three background anchors are sampled
    torch.testing.assert_close(deltas.grad, expected)
    torch.testing.assert_close(objectness, F.softplus(torch.tensor(0.0)))
