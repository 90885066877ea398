from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stcontrast.nn._losses import info_nce, similarity_target_loss


def embeddings(n: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gene, image = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return gene, image


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    odds = [math.exp(value - top) for value in values]
    return [value / sum(odds) for value in odds]


def dot(a: np.ndarray, b: np.ndarray) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def unit(rows: np.ndarray) -> np.ndarray:
    return np.array([row / math.sqrt(dot(row, row)) for row in rows])


def plain_info_nce(gene: np.ndarray, image: np.ndarray, temperature: float, *, normalize: bool) -> float:
    if normalize:
        gene, image = unit(gene), unit(image)
    n = len(gene)
    total = 0.0
    for i in range(n):
        total -= math.log(softmax([dot(gene[i], image[j]) / temperature for j in range(n)])[i])
        total -= math.log(softmax([dot(gene[j], image[i]) / temperature for j in range(n)])[i])
    return total / (2 * n)


def plain_similarity_target(
    gene: np.ndarray, image: np.ndarray, inputs: tuple[np.ndarray, np.ndarray], temperature: float, *, normalize: bool
) -> float:
    s, v = inputs
    if normalize:
        gene, image, s, v = unit(gene), unit(image), unit(s), unit(v)
    n = len(gene)
    targets = [softmax([(dot(v[i], v[j]) + dot(s[i], s[j])) / 2 / temperature for j in range(n)]) for i in range(n)]
    total = 0.0
    for i in range(n):
        by_gene = softmax([dot(gene[i], image[j]) / temperature for j in range(n)])
        by_image = softmax([dot(gene[j], image[i]) / temperature for j in range(n)])
        for j in range(n):
            total -= targets[i][j] * math.log(by_gene[j])
            # the rows of the transposed targets are not normalised again
            total -= targets[j][i] * math.log(by_image[j])
    return total / (2 * n)


@given(n=st.integers(2, 7), d=st.integers(2, 6), seed=st.integers(0, 99), normalize=st.booleans())
def test_info_nce_is_the_double_loop(n, d, seed, normalize):
    gene, image = embeddings(n, d, seed)
    expected = plain_info_nce(gene.numpy(), image.numpy(), 0.5, normalize=normalize)
    assert float(info_nce(gene, image, temperature=0.5, normalize=normalize)) == pytest.approx(expected, abs=1e-6)


@given(n=st.integers(2, 7), d=st.integers(2, 6), seed=st.integers(0, 99), normalize=st.booleans(), given_=st.booleans())
def test_similarity_target_is_the_double_loop(n, d, seed, normalize, given_):
    gene, image = embeddings(n, d, seed)
    inputs = embeddings(n, 3, seed + 1) if given_ else None
    taken = (gene.numpy(), image.numpy()) if inputs is None else (inputs[0].numpy(), inputs[1].numpy())
    expected = plain_similarity_target(gene.numpy(), image.numpy(), taken, 0.7, normalize=normalize)
    loss = similarity_target_loss(gene, image, temperature=0.7, normalize=normalize, targets_from=inputs)
    assert float(loss) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n", [2, 5, 64])
def test_collapsed_embeddings_cost_ln_n(n):
    gene, image = torch.ones(n, 4, dtype=torch.float64), torch.full((n, 4), 2.0, dtype=torch.float64)
    assert float(info_nce(gene, image)) == pytest.approx(math.log(n), abs=1e-9)
    # and BLEEP's published form agrees with the collapse: its targets have become uniform
    assert float(similarity_target_loss(gene, image)) == pytest.approx(math.log(n), abs=1e-9)


def test_layer_norm_length_is_a_temperature():
    """Rows of length √d at temperature 1 are unit rows at temperature 1/d."""
    gene, image = embeddings(6, 16, 0)
    gene, image = (4 * torch.nn.functional.normalize(part, dim=1) for part in (gene, image))
    plain = info_nce(gene, image, temperature=1.0, normalize=False)
    assert float(plain) == pytest.approx(float(info_nce(gene, image, temperature=1 / 16)), abs=1e-9)


@pytest.mark.parametrize("loss", [info_nce, similarity_target_loss])
def test_gradient_reaches_both_towers(loss):
    gene, image = (part.requires_grad_() for part in embeddings(5, 4, 0))
    loss(gene, image).backward()
    assert float(gene.grad.abs().sum()) > 0
    assert float(image.grad.abs().sum()) > 0


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
    assert gene.grad is not None


def test_targets_from_the_embeddings_carry_gradient():
    gene, image = (part.requires_grad_() for part in embeddings(5, 4, 0))
    similarity_target_loss(gene, image).backward()
    published = gene.grad.clone()
    gene.grad = None
    similarity_target_loss(gene, image, targets_from=(gene, image)).backward()
    assert float((published - gene.grad).abs().max()) > 1e-3
