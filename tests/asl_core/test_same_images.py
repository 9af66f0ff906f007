"""Pictures of what an encoder makes of images, against computations written out here."""

import itertools

import numpy as np
import pytest
import torch

from asl_core.analysis.attention import cls_attention
from asl_core.analysis.neighbours import nearest_neighbours
from asl_core.analysis.patch_colours import CUT, patch_colours, principal_components
from asl_core.analysis.pictured import compared_images, pictured_images
from asl_core.analysis.projection import APART, LEAST, apart, project, unit_square
from asl_core.modules.encoder import Encoder
from asl_core.recipes.analysis import TokenAnalysis
from asl_core.recipes.models import Vit


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    """Tokens with a few directions of very different extent, skewed, none centred at 0."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(*shape, generator=generator, dtype=torch.float64).exp()
    return drawn * torch.linspace(3, 0.1, shape[-1]).double() + 2


def components_by_svd(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre, decompose, and turn each component to the side of its third moment."""
    centred = rows - rows.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    scores = left[:, :3] * values[:3]
    for column in range(3):
        if sum(value**3 for value in scores[:, column]) < 0:
            scores[:, column] *= -1
    return scores, values[:3] ** 2 / (values**2).sum()


def test_components_are_those_of_an_svd_with_the_rarer_side_up() -> None:
    rows = tokens(90, 7).numpy()
    scores, shares = principal_components(rows)
    expected, expected_shares = components_by_svd(rows)
    np.testing.assert_allclose(scores, expected, atol=1e-10)
    np.testing.assert_allclose(shares, expected_shares, atol=1e-12)


def test_colours_are_components_of_all_images_together_between_two_percentiles() -> None:
    given = tokens(3, 16, 9)
    found = patch_colours(given)
    scores, shares = components_by_svd(given.flatten(0, 1).numpy())
    for channel in range(3):
        ordered = np.sort(scores[:, channel])
        places = np.array([CUT, 1 - CUT]) * (len(ordered) - 1)
        low, high = np.interp(places, np.arange(len(ordered)), ordered)
        expected = np.minimum(np.maximum((scores[:, channel] - low) / (high - low), 0), 1)
        np.testing.assert_allclose(
            found.colours[..., channel].flatten().numpy(), expected, atol=1e-6
        )
    assert found.explained == pytest.approx(shares, abs=1e-12)
    assert found.foreground is None


def test_a_rotation_of_the_features_leaves_the_colours_as_they_are() -> None:
    given = tokens(2, 25, 6)
    rotation, _ = torch.linalg.qr(tokens(6, 6, seed=1))
    torch.testing.assert_close(
        patch_colours(given @ rotation).colours, patch_colours(given).colours, atol=1e-6, rtol=0
    )


def test_the_foreground_is_coloured_by_its_own_components_and_the_rest_is_black() -> None:
    given = tokens(2, 30, 8)
    rows = given.flatten(0, 1).numpy()
    first = components_by_svd(rows)[0][:, 0]
    found = patch_colours(given, foreground=True)
    assert found.foreground is not None
    kept = found.foreground.flatten().numpy()
    assert (kept == (first > 0)).all()
    assert 0 < kept.sum() < kept.size / 2  # the rarer side
    assert (found.colours.flatten(0, 1)[~found.foreground.flatten()] == 0).all()
    assert found.explained == pytest.approx(components_by_svd(rows[kept])[1], abs=1e-12)


@pytest.mark.parametrize("foreground", [False, True])
@pytest.mark.parametrize("given", [torch.ones(2, 4, 5), torch.rand(1, 1, 5), torch.rand(1, 4, 2)])
def test_too_little_to_tell_apart_has_colours_nevertheless(
    given: torch.Tensor, foreground: bool
) -> None:
    found = patch_colours(given, foreground=foreground)
    assert found.colours.shape == (*given.shape[:2], 3)
    assert ((found.colours >= 0) & (found.colours <= 1)).all()


def test_attention_is_an_explicit_softmax_of_what_the_last_block_is_given() -> None:
    torch.manual_seed(0)
    vit = Vit(image_size=16, patch_size=4, embed_dim=12, depth=3, num_heads=3)
    encoder = Encoder(vit).eval().double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    caught: list[torch.Tensor] = []
    hook = encoder.blocks[-1].attn.qkv.register_forward_hook(
        lambda module, arguments, output: caught.append(output)
    )
    with torch.no_grad():
        encoder(images)
    hook.remove()
    (projected,) = caught  # (B, 1 + N, 3 D): queries, keys, values, each head by head
    maps = cls_attention(encoder, images)
    for image, head in itertools.product(range(2), range(3)):
        columns = slice(4 * head, 4 * head + 4)
        query = projected[image, 0, :12][columns]
        keys = projected[image, :, 12:24][:, columns]
        logits = torch.stack([(query * key).sum() / 4**0.5 for key in keys])
        weights = logits.exp() / logits.exp().sum()
        torch.testing.assert_close(maps[image, head].flatten(), weights[1:], atol=1e-12, rtol=1e-12)


def test_neighbours_are_those_of_a_search_through_all_pairs() -> None:
    vectors = tokens(30, 5)
    vectors[7] = vectors[3] * 2  # the same direction: equally near to each
    found = nearest_neighbours(vectors, [3, 0, 29], 4)
    for row, query in enumerate([3, 0, 29]):
        pairs = []
        for other in range(30):
            if other != query:
                a, b = vectors[query], vectors[other]
                cosine = float((a * b).sum() / ((a * a).sum() * (b * b).sum()) ** 0.5)
                pairs.append((-cosine, other))
        expected = sorted(pairs)[:4]
        assert found.places[row].tolist() == [other for _, other in expected]
        assert found.cosines[row].tolist() == pytest.approx([-c for c, _ in expected], abs=1e-12)
    assert found.places[0, 0] == 7


def test_of_equally_near_images_the_first_comes_first_and_few_have_few() -> None:
    same = torch.ones(4, 3)
    assert nearest_neighbours(same, [2], 5).places.tolist() == [[0, 1, 3]]
    assert nearest_neighbours(same[:1], [0], 5).places.shape == (1, 0)


def test_a_plane_is_the_same_again_and_keeps_groups_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(3).repeat_interleave(20, dim=0) * 5
    vectors = centres + 0.3 * torch.randn(60, 3, generator=generator)
    plane = project(vectors)
    assert plane.tobytes() == project(vectors).tobytes()
    distances = np.linalg.norm(plane[:, None] - plane[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    groups = np.arange(60) // 20
    assert (groups[distances.argmin(axis=1)] == groups).mean() > 0.95


def test_laying_out_leaves_the_number_of_threads_by_which_torch_rounds() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        project(tokens(20, 4))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "vectors", [torch.ones(LEAST, 4), torch.zeros(20, 4), torch.rand(2, 6).repeat(15, 1)]
)
def test_images_that_are_all_alike_have_a_plane_too(vectors: torch.Tensor) -> None:
    assert np.isfinite(project(vectors)).all()


def test_images_in_a_plane_hide_none() -> None:
    plane = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    chosen = apart(plane)
    assert chosen[0] == 0
    places = unit_square(plane)[chosen]
    assert all(
        max(abs(a - b)) > APART for a, b in itertools.combinations(places, 2)
    )  # squares of that side do not overlap
    assert len(chosen) > 30


def test_images_depend_on_the_split_alone() -> None:
    assert pictured_images(4, 400) == [0, 100, 200, 300]
    assert pictured_images(8, 3) == [0, 1, 2]
    pictured = pictured_images(4, 400)
    few, many = compared_images(pictured, 50, 400), compared_images(pictured, 90, 400)
    assert few[:4] == pictured
    assert many[:50] == few
    assert len(set(many)) == 90
    assert sorted(compared_images(pictured, 1000, 400)) == list(range(400))
    assert compared_images(pictured, 1, 400) == pictured


@pytest.mark.parametrize("field", ["pictured", "compared"])
def test_no_images_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        TokenAnalysis(dataset="x", **{field: 0})
