from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stcontrast.nn import (
    contrastive_loss,
    distilled_nce,
    fused_nce,
    gaussian_target_loss,
    info_nce,
    one_way_nce,
    sigmoid_loss,
    similarity_target_loss,
    soft_target_loss,
)


def embeddings(n: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gene, image = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return gene, image


def random_mask(n: int, seed: int) -> torch.Tensor:
    upper = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)).triu(1) > 0.5
    return upper | upper.T | torch.eye(n, dtype=torch.bool)


def blocks(*sizes: int) -> torch.Tensor:
    return torch.block_diag(*(torch.ones(size, size) for size in sizes)).bool()


def softmax(values: dict[int, float]) -> dict[int, float]:
    top = max(values.values())
    odds = {key: math.exp(value - top) for key, value in values.items()}
    return {key: value / sum(odds.values()) for key, value in odds.items()}


def dot(a: np.ndarray, b: np.ndarray) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def unit(rows: np.ndarray) -> np.ndarray:
    return np.array([row / math.sqrt(dot(row, row)) for row in rows])


def compared(n: int, mask: np.ndarray | None) -> list[list[int]]:
    return [[j for j in range(n) if mask is None or mask[i, j]] for i in range(n)]


def plain_info_nce(
    gene: np.ndarray, image: np.ndarray, temperature: float, *, normalize: bool, mask: np.ndarray | None = None
) -> float:
    if normalize:
        gene, image = unit(gene), unit(image)
    n = len(gene)
    total = 0.0
    for i, others in enumerate(compared(n, mask)):
        total -= math.log(softmax({j: dot(gene[i], image[j]) / temperature for j in others})[i])
        total -= math.log(softmax({j: dot(gene[j], image[i]) / temperature for j in others})[i])
    return total / (2 * n)


def plain_similarity_target(
    gene: np.ndarray,
    image: np.ndarray,
    temperature: float,
    *,
    normalize: bool,
    inputs: tuple[np.ndarray, np.ndarray] | None = None,
    target_temperature: float | None = None,
    mask: np.ndarray | None = None,
) -> float:
    if normalize:
        gene, image = unit(gene), unit(image)
    s, v = (gene, image) if inputs is None else (unit(inputs[0]), unit(inputs[1]))
    # targets of embeddings have the temperature of the logits
    of_targets = temperature if target_temperature is None else target_temperature
    n = len(gene)
    pairs = compared(n, mask)
    targets = [softmax({j: (dot(v[i], v[j]) + dot(s[i], s[j])) / 2 / of_targets for j in pairs[i]}) for i in range(n)]
    total = 0.0
    for i in range(n):
        by_gene = softmax({j: dot(gene[i], image[j]) / temperature for j in pairs[i]})
        by_image = softmax({j: dot(gene[j], image[i]) / temperature for j in pairs[i]})
        for j in pairs[i]:
            total -= targets[i][j] * math.log(by_gene[j])
            # the rows of the transposed targets are not normalised again
            total -= targets[j][i] * math.log(by_image[j])
    return total / (2 * n)


def plain_soft_target(
    gene: np.ndarray,
    image: np.ndarray,
    coordinates: np.ndarray,
    temperature: float,
    target_temperature: float,
    *,
    normalize: bool,
    mask: np.ndarray | None = None,
) -> float:
    if normalize:
        gene, image = unit(gene), unit(image)
    coordinates = unit(coordinates)
    n = len(gene)
    total = 0.0
    for i, others in enumerate(compared(n, mask)):
        targets = softmax({j: dot(coordinates[i], coordinates[j]) / target_temperature for j in others})
        by_gene = softmax({j: dot(gene[i], image[j]) / temperature for j in others})
        by_image = softmax({j: dot(gene[j], image[i]) / temperature for j in others})
        for j in others:
            total -= targets[j] * (math.log(by_gene[j]) + math.log(by_image[j]))
    return total / (2 * n)


def plain_sigmoid(
    gene: np.ndarray, image: np.ndarray, temperature: float, *, normalize: bool, mask: np.ndarray | None = None
) -> float:
    if normalize:
        gene, image = unit(gene), unit(image)
    n = len(gene)
    total = 0.0
    for i, others in enumerate(compared(n, mask)):
        for j in others:
            logit = dot(gene[i], image[j]) / temperature - math.log(max(len(others) - 1, 1))
            total -= math.log(1 / (1 + math.exp(-logit if i == j else logit)))
    return total / n


def plain_fused_nce(image: np.ndarray, gene: np.ndarray, temperature: float, scale: float) -> float:
    image, gene = unit(image), unit(gene)
    n = len(image)
    total = 0.0
    for i in range(n):
        logits = {j: dot(image[i], gene[j]) * (1.0 if i == j else scale) / temperature for j in range(n)}
        total -= math.log(softmax(logits)[i])
    return total / n


sizes = {"n": st.integers(2, 7), "d": st.integers(2, 6), "seed": st.integers(0, 99)}


@given(**sizes, normalize=st.booleans(), masked=st.booleans())
def test_info_nce_is_the_double_loop(n, d, seed, normalize, masked):
    gene, image = embeddings(n, d, seed)
    allowed = random_mask(n, seed) if masked else None
    mask = None if allowed is None else allowed.numpy()
    expected = plain_info_nce(gene.numpy(), image.numpy(), 0.5, normalize=normalize, mask=mask)
    loss = info_nce(gene, image, temperature=0.5, normalize=normalize, allowed=allowed)
    assert float(loss) == pytest.approx(expected, abs=1e-6)


@given(**sizes, normalize=st.booleans(), of_inputs=st.booleans(), masked=st.booleans())
def test_similarity_target_is_the_double_loop(n, d, seed, normalize, of_inputs, masked):
    gene, image = embeddings(n, d, seed)
    inputs = embeddings(n, 3, seed + 1) if of_inputs else None
    allowed = random_mask(n, seed) if masked else None
    expected = plain_similarity_target(
        gene.numpy(),
        image.numpy(),
        0.7,
        normalize=normalize,
        inputs=None if inputs is None else (inputs[0].numpy(), inputs[1].numpy()),
        target_temperature=0.2 if of_inputs else None,
        mask=None if allowed is None else allowed.numpy(),
    )
    loss = similarity_target_loss(
        gene, image, temperature=0.7, normalize=normalize, targets_from=inputs, target_temperature=0.2, allowed=allowed
    )
    assert float(loss) == pytest.approx(expected, abs=1e-6)


@given(**sizes, scale=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_fused_nce_is_the_double_loop(n, d, seed, scale):
    gene, image = embeddings(n, d, seed)
    expected = plain_fused_nce(image.numpy(), gene.numpy(), 0.3, scale)
    loss = fused_nce(image, gene, temperature=0.3, negative_scale=scale)
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_fused_nce_has_images_for_rows_and_the_published_factors():
    gene, image = embeddings(6, 3, 0)
    assert float(fused_nce(image, gene)) == pytest.approx(plain_fused_nce(image.numpy(), gene.numpy(), 0.05, 0.1))
    assert float(fused_nce(image, gene)) != pytest.approx(float(fused_nce(gene, image)), abs=1e-3)


@pytest.mark.parametrize("n", [2, 5, 64])
def test_collapsed_embeddings_cost_ln_n(n):
    gene, image = torch.ones(n, 4, dtype=torch.float64), torch.full((n, 4), 2.0, dtype=torch.float64)
    assert float(info_nce(gene, image)) == pytest.approx(math.log(n), abs=1e-9)
    # and BLEEP's published form agrees with the collapse: its targets have become uniform
    assert float(similarity_target_loss(gene, image)) == pytest.approx(math.log(n), abs=1e-9)


@given(n=st.integers(2, 9), seed=st.integers(0, 99))
def test_collapsed_embeddings_cost_the_mean_log_of_the_pairs_allowed(n, seed):
    allowed = random_mask(n, seed)
    same = torch.ones(n, 3, dtype=torch.float64)
    expected = float(allowed.sum(dim=1).double().log().mean())
    assert float(info_nce(same, same, allowed=allowed)) == pytest.approx(expected, abs=1e-9)


def test_collapsed_embeddings_cost_the_mean_log_of_the_size_of_their_block():
    same = torch.ones(9, 3, dtype=torch.float64)
    loss = similarity_target_loss(same, same, allowed=blocks(4, 2, 3))
    assert float(loss) == pytest.approx((4 * math.log(4) + 2 * math.log(2) + 3 * math.log(3)) / 9, abs=1e-9)


@pytest.mark.parametrize("n", [2, 8, 64])
def test_collapse_has_a_fused_nce_near_zero(n):
    same = torch.ones(n, 4, dtype=torch.float64)
    loss = float(fused_nce(same, same, temperature=0.05, negative_scale=0.1))
    assert loss == pytest.approx(math.log(1 + (n - 1) * math.exp(-0.9 / 0.05)), abs=1e-12)
    assert loss < 1e-5


@pytest.mark.parametrize("loss", [info_nce, similarity_target_loss])
@pytest.mark.parametrize("normalize", [True, False])
def test_blocks_have_separate_losses(loss, normalize):
    gene, image = embeddings(7, 4, 0)
    both = loss(gene, image, normalize=normalize, allowed=blocks(4, 3))
    parts = [loss(gene[rows], image[rows], normalize=normalize) for rows in (slice(4), slice(4, 7))]
    assert float(both) == pytest.approx(float(4 * parts[0] + 3 * parts[1]) / 7, abs=1e-9)


@pytest.mark.parametrize("loss", [info_nce, similarity_target_loss])
def test_a_mask_that_allows_everything_changes_nothing(loss):
    gene, image = embeddings(5, 4, 0)
    assert float(loss(gene, image, allowed=blocks(5))) == pytest.approx(float(loss(gene, image)), abs=1e-12)


def test_a_spot_compared_only_with_itself_has_no_loss():
    gene, image = (part.requires_grad_() for part in embeddings(4, 3, 0))
    for loss in (info_nce, similarity_target_loss):
        value = loss(gene, image, allowed=torch.eye(4, dtype=torch.bool))
        value.backward()
        assert float(value.detach()) == pytest.approx(0, abs=1e-12)
        assert float(gene.grad.abs().max()) == pytest.approx(0, abs=1e-12)


def test_layer_norm_length_is_a_temperature():
    """Rows of length √d at temperature 1 are unit rows at temperature 1/d."""
    gene, image = embeddings(6, 16, 0)
    gene, image = (4 * torch.nn.functional.normalize(part, dim=1) for part in (gene, image))
    plain = info_nce(gene, image, temperature=1.0, normalize=False)
    assert float(plain) == pytest.approx(float(info_nce(gene, image, temperature=1 / 16)), abs=1e-9)


@pytest.mark.parametrize("loss", [info_nce, similarity_target_loss, fused_nce])
def test_gradient_reaches_both_towers(loss):
    gene, image = (part.requires_grad_() for part in embeddings(5, 4, 0))
    loss(gene, image).backward()
    assert float(gene.grad.abs().sum()) > 0
    assert float(image.grad.abs().sum()) > 0


@pytest.mark.parametrize("loss", [info_nce, similarity_target_loss])
def test_gradient_under_a_mask_is_that_of_the_formula(loss):
    allowed = random_mask(5, 3)
    inputs = tuple(part.requires_grad_() for part in embeddings(5, 3, 0))
    assert torch.autograd.gradcheck(lambda s, v: loss(s, v, allowed=allowed), inputs)


def test_a_learnt_temperature_gets_a_gradient():
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    info_nce(*embeddings(5, 4, 0), temperature=temperature).backward()
    assert float(temperature.grad.abs()) > 0


def test_targets_from_inputs_carry_no_gradient():
    gene, image = (part.requires_grad_() for part in embeddings(5, 4, 0))
    inputs = tuple(part.requires_grad_() for part in embeddings(5, 3, 1))
    similarity_target_loss(gene, image, targets_from=inputs).backward()
    assert inputs[0].grad is None
    assert inputs[1].grad is None
    assert float(gene.grad.abs().sum()) > 0
    assert float(image.grad.abs().sum()) > 0


@given(scale=st.floats(0.1, 100), normalize=st.booleans())
def test_the_length_of_the_inputs_does_not_matter_to_the_targets(scale, normalize):
    gene, image = embeddings(5, 4, 0)
    s, v = embeddings(5, 3, 1)
    losses = [
        float(similarity_target_loss(gene, image, normalize=normalize, targets_from=inputs))
        for inputs in ((s, v), (scale * s, v / scale))
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


def test_targets_from_the_embeddings_carry_gradient():
    gene, image = (part.requires_grad_() for part in embeddings(5, 4, 0))
    similarity_target_loss(gene, image, normalize=True).backward()
    published = gene.grad.clone()
    gene.grad = None
    similarity_target_loss(gene, image, normalize=True, targets_from=(gene, image)).backward()
    assert float((published - gene.grad).abs().max()) > 1e-3


@given(order=st.permutations(range(6)), seed=st.integers(0, 99))
def test_the_order_of_the_batch_does_not_matter(order, seed):
    order = list(order)
    gene, image = embeddings(6, 4, seed)
    inputs = embeddings(6, 3, seed + 1)
    allowed = random_mask(6, seed)
    shuffled = allowed[order][:, order]
    moved = tuple(part[order] for part in inputs)
    for before, after in [
        (info_nce(gene, image), info_nce(gene[order], image[order])),
        (info_nce(gene, image, allowed=allowed), info_nce(gene[order], image[order], allowed=shuffled)),
        (similarity_target_loss(gene, image), similarity_target_loss(gene[order], image[order])),
        (
            similarity_target_loss(gene, image, allowed=allowed, targets_from=inputs),
            similarity_target_loss(gene[order], image[order], allowed=shuffled, targets_from=moved),
        ),
        (fused_nce(image, gene), fused_nce(image[order], gene[order])),
    ]:
        assert float(before) == pytest.approx(float(after), abs=1e-9)


def test_pairs_that_match_cost_less_than_pairs_that_do_not():
    image, _ = embeddings(6, 16, 0)
    for loss in (info_nce, fused_nce):
        assert float(loss(image, image)) < float(loss(image, image.roll(1, dims=0)))


@given(**sizes, normalize=st.booleans(), masked=st.booleans())
def test_soft_targets_are_the_double_loop(n, d, seed, normalize, masked):
    gene, image = embeddings(n, d, seed)
    coordinates, _ = embeddings(n, 3, seed + 1)
    allowed = random_mask(n, seed) if masked else None
    expected = plain_soft_target(
        gene.numpy(),
        image.numpy(),
        coordinates.numpy(),
        0.7,
        0.4,
        normalize=normalize,
        mask=None if allowed is None else allowed.numpy(),
    )
    options = {"temperature": 0.7, "normalize": normalize, "target_temperature": 0.4, "allowed": allowed}
    loss = soft_target_loss(gene, image, targets_from=coordinates, **options)
    assert float(loss) == pytest.approx(expected, abs=1e-9)
    # the image inputs have no part in the targets
    named = contrastive_loss(gene, image, loss="soft_target", targets_from=(coordinates, image * 0), **options)
    assert float(named) == float(loss)


@given(**sizes, normalize=st.booleans(), masked=st.booleans())
def test_the_sigmoid_loss_is_the_double_loop(n, d, seed, normalize, masked):
    gene, image = embeddings(n, d, seed)
    allowed = random_mask(n, seed) if masked else None
    mask = None if allowed is None else allowed.numpy()
    expected = plain_sigmoid(gene.numpy(), image.numpy(), 0.5, normalize=normalize, mask=mask)
    loss = sigmoid_loss(gene, image, temperature=0.5, normalize=normalize, allowed=allowed)
    assert float(loss) == pytest.approx(expected, abs=1e-5)
    named = contrastive_loss(gene, image, loss="sigmoid", temperature=0.5, normalize=normalize, allowed=allowed)
    assert float(named) == float(loss)


@pytest.mark.parametrize("n", [2, 5, 64])
def test_soft_targets_cost_ln_n_where_the_embeddings_have_collapsed(n):
    """Whatever the targets: a row of them sums to one."""
    same = torch.ones(n, 4, dtype=torch.float64)
    for coordinates in (same, embeddings(n, 3, 0)[0]):
        loss = soft_target_loss(same, 2 * same, targets_from=coordinates)
        assert float(loss) == pytest.approx(math.log(n), abs=1e-9)


@given(n=st.integers(2, 9), seed=st.integers(0, 99))
def test_soft_targets_of_a_collapse_under_a_mask(n, seed):
    allowed = random_mask(n, seed)
    same = torch.ones(n, 3, dtype=torch.float64)
    loss = soft_target_loss(same, same, targets_from=embeddings(n, 3, seed)[0], allowed=allowed)
    assert float(loss) == pytest.approx(float(allowed.sum(dim=1).double().log().mean()), abs=1e-9)


def test_soft_targets_of_a_low_temperature_are_info_nce():
    gene, image = embeddings(6, 4, 0)
    coordinates, _ = embeddings(6, 3, 1)
    loss = soft_target_loss(gene, image, targets_from=coordinates, target_temperature=1e-4)
    assert float(loss) == pytest.approx(float(info_nce(gene, image)), abs=1e-9)


def test_soft_targets_cost_at_least_their_entropy():
    """No embedding is better than one whose similarities are those of the targets."""
    coordinates = torch.nn.functional.normalize(embeddings(6, 3, 0)[0], dim=1)
    targets = (coordinates @ coordinates.T / 0.3).softmax(dim=1)
    entropy = float(-(targets * targets.log()).sum(dim=1).mean())
    best = soft_target_loss(coordinates, coordinates, targets_from=coordinates, temperature=0.3)
    assert float(best) == pytest.approx(entropy, abs=1e-9)
    for seed in range(5):
        assert float(soft_target_loss(*embeddings(6, 3, seed), targets_from=coordinates)) > entropy


def test_no_gradient_goes_through_the_coordinates():
    gene, image = (part.requires_grad_() for part in embeddings(5, 4, 0))
    coordinates = embeddings(5, 3, 1)[0].requires_grad_()
    soft_target_loss(gene, image, targets_from=coordinates).backward()
    assert coordinates.grad is None
    assert float(gene.grad.abs().sum()) > 0
    assert float(image.grad.abs().sum()) > 0
    # the embeddings themselves as coordinates: still no gradient through the targets
    published = gene.grad.clone()
    gene.grad = None
    soft_target_loss(gene, image, targets_from=gene).backward()
    alone = gene.grad.clone()
    gene.grad = None
    soft_target_loss(gene, image, targets_from=gene.detach().clone()).backward()
    torch.testing.assert_close(gene.grad, alone)
    assert not torch.equal(published, alone)


@given(scale=st.floats(0.1, 100))
def test_the_length_of_the_coordinates_does_not_matter(scale):
    gene, image = embeddings(5, 4, 0)
    coordinates, _ = embeddings(5, 3, 1)
    losses = [float(soft_target_loss(gene, image, targets_from=part)) for part in (coordinates, scale * coordinates)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


def soft(gene: torch.Tensor, image: torch.Tensor, *, allowed: torch.Tensor | None = None) -> torch.Tensor:
    coordinates = torch.linspace(-1, 1, 3 * len(gene), dtype=torch.float64).sin().reshape(len(gene), 3)
    return soft_target_loss(gene, image, targets_from=coordinates, allowed=allowed)


@pytest.mark.parametrize("loss", [soft, sigmoid_loss])
def test_gradients_of_the_soft_targets_and_the_sigmoid_are_those_of_the_formula(loss):
    allowed = random_mask(5, 3)
    inputs = tuple(part.requires_grad_() for part in embeddings(5, 3, 0))
    assert torch.autograd.gradcheck(lambda s, v: loss(s, v, allowed=allowed), inputs)
    assert torch.autograd.gradcheck(lambda s, v: loss(s, v), inputs)


def test_blocks_have_separate_soft_targets_and_sigmoid_losses():
    gene, image = embeddings(7, 4, 0)
    coordinates, _ = embeddings(7, 3, 1)
    rows = (slice(4), slice(4, 7))
    both = soft_target_loss(gene, image, targets_from=coordinates, allowed=blocks(4, 3))
    parts = [soft_target_loss(gene[r], image[r], targets_from=coordinates[r]) for r in rows]
    assert float(both) == pytest.approx(float(4 * parts[0] + 3 * parts[1]) / 7, abs=1e-9)
    both = sigmoid_loss(gene, image, allowed=blocks(4, 3))
    parts = [sigmoid_loss(gene[r], image[r]) for r in rows]
    assert float(both) == pytest.approx(float(4 * parts[0] + 3 * parts[1]) / 7, abs=1e-6)


@given(order=st.permutations(range(6)), seed=st.integers(0, 99))
def test_the_order_of_the_batch_does_not_matter_to_soft_targets_and_sigmoid(order, seed):
    order = list(order)
    gene, image = embeddings(6, 4, seed)
    coordinates, _ = embeddings(6, 3, seed + 1)
    allowed = random_mask(6, seed)
    shuffled = allowed[order][:, order]
    before = soft_target_loss(gene, image, targets_from=coordinates, allowed=allowed)
    after = soft_target_loss(gene[order], image[order], targets_from=coordinates[order], allowed=shuffled)
    assert float(before) == pytest.approx(float(after), abs=1e-9)
    before = sigmoid_loss(gene, image, allowed=allowed)
    assert float(before) == pytest.approx(float(sigmoid_loss(gene[order], image[order], allowed=shuffled)), abs=1e-6)


def test_pairs_that_match_have_a_smaller_sigmoid_loss():
    image, _ = embeddings(6, 16, 0)
    assert float(sigmoid_loss(image, image)) < float(sigmoid_loss(image, image.roll(1, dims=0)))


def test_a_spot_that_expresses_alike_is_no_mistake():
    """Two spots with the same coordinates: taking one's image for the other's costs nothing more."""
    gene, _ = embeddings(4, 8, 0)
    coordinates = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, -1]], dtype=torch.float64)
    swapped = gene[[1, 0, 2, 3]]
    one, other = (float(soft_target_loss(gene, image, targets_from=coordinates)) for image in (gene, swapped))
    assert other == pytest.approx(one, abs=1e-9)
    assert float(info_nce(gene, swapped)) > float(info_nce(gene, gene)) + 1


@given(st.integers(2, 6), st.integers(0, 99))
def test_both_one_way_losses_together_are_info_nce(n, seed):
    gene, image = embeddings(n, 3, seed)
    allowed = random_mask(n, seed)
    for how in ({}, {"allowed": allowed}):
        both = one_way_nce(gene, image, temperature=0.3, **how) + one_way_nce(image, gene, temperature=0.3, **how)
        assert both.item() / 2 == pytest.approx(info_nce(gene, image, temperature=0.3, **how).item())


def test_one_way_nce_classifies_the_images_for_the_genes():
    gene, image = embeddings(3, 4, 0)
    cosine = torch.nn.functional.cosine_similarity(gene[:, None], image[None], dim=2)
    expected = [-math.log(softmax({j: cosine[i, j].item() / 0.3 for j in range(3)})[i]) for i in range(3)]
    assert one_way_nce(gene, image, temperature=0.3).item() == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("masked", [False, True])
def test_gaussian_targets_by_hand(masked):
    gene, image = (part / part.norm(dim=1, keepdim=True) for part in embeddings(5, 3, 1))
    allowed = random_mask(5, 4) if masked else torch.ones(5, 5, dtype=torch.bool)
    expected = []
    for i in range(5):
        of = [j for j in range(5) if allowed[i, j]]
        near = {
            j: sum(math.exp(-float((part[i] - part[j]).pow(2).sum()) / (2 * 0.5**2)) for part in (gene, image)) / 2
            for j in of
        }
        target, found = softmax(near), softmax({j: float(gene[i] @ image[j]) / 0.3 for j in of})
        expected.append(sum(target[j] * math.log(target[j] / found[j]) for j in of))
    how = {"allowed": allowed} if masked else {}
    # length does not matter
    found = gaussian_target_loss(3 * gene, image, temperature=0.3, bandwidth=0.5, **how)
    assert found.item() == pytest.approx(np.mean(expected))


def test_gaussian_targets_have_no_gradient_of_their_own():
    gene, image = embeddings(4, 3, 2)
    gene.requires_grad_()
    (found,) = torch.autograd.grad(gaussian_target_loss(gene, image, temperature=1e6, bandwidth=0.2), gene)
    # with all logits alike, what is left would be the gradient of the targets
    assert found.abs().max() < 1e-5


def test_distilled_targets_by_hand():
    query, keys = embeddings(5, 3, 3)
    query, teacher = (part / part.norm(dim=1, keepdim=True) for part in (query[:3], embeddings(3, 3, 4)[0]))
    keys = keys / keys.norm(dim=1, keepdim=True)
    allowed = torch.ones(3, 5, dtype=torch.bool)
    allowed[1, 4] = False
    expected = []
    for i in range(3):
        of = [j for j in range(5) if allowed[i, j]]
        found, soft = (softmax({j: float(part[i] @ keys[j]) / 0.2 for j in of}) for part in (query, teacher))
        expected.append(-sum((0.4 * soft[j] + 0.6 * (i == j)) * math.log(found[j]) for j in of))
    found = distilled_nce(query, keys, teacher, temperature=0.2, share=0.4, allowed=allowed)
    assert found.item() == pytest.approx(np.mean(expected))


def test_without_a_teacher_and_a_queue_distilled_nce_is_one_way():
    query, keys = (part / part.norm(dim=1, keepdim=True) for part in embeddings(4, 3, 5))
    found = distilled_nce(query, keys, -query, temperature=0.1, share=0.0)
    assert found.item() == pytest.approx(one_way_nce(query, keys, temperature=0.1).item())


def test_collapsed_towers_are_at_chance():
    same = torch.ones(6, 2, dtype=torch.float64) / math.sqrt(2)
    assert distilled_nce(same[:3], same, same[:3], temperature=0.07, share=0.4).item() == pytest.approx(math.log(6))
    assert one_way_nce(same, same).item() == pytest.approx(math.log(6))
    assert gaussian_target_loss(same, same).item() == pytest.approx(0, abs=1e-12)
