from __future__ import annotations

import numpy as np
import pytest
import torch

from stcontrast.nn import Contrast, FieldPair, SpotTable, gaussian_target_loss, one_way_nce

N_IMAGE, N_GENE, N_TARGETS = 7, 4, 3
ROWS = torch.tensor([4, 0, 7, 9, 11])


def table() -> SpotTable:
    rng = np.random.default_rng(0)
    xy = np.array([(x, y) for y in range(3) for x in range(4)], dtype=np.float64)
    image, gene, target = (rng.normal(size=(12, n)).astype(np.float32) for n in (N_IMAGE, N_GENE, N_TARGETS))
    return SpotTable.of(image, np.repeat([0, 1], 6), xy, gene=gene, target=target)


def made(n_fields: int = 3, **how) -> FieldPair:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = FieldPair(
            Contrast(temperature=0.3, **how), n_image=N_IMAGE, n_gene=N_GENE, n_targets=N_TARGETS, n_fields=n_fields,
            n_embedding=6, dropout=0.5, bandwidth=0.4, weights={"contrastive": 0.0},
        )  # fmt: skip
        for parameter in module.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter)
    return module.eval()


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(("n_fields", "widths"), [(1, [7]), (3, [3, 2, 2]), (7, [1] * 7), (20, [1] * 7)])
def test_the_embedding_is_the_mean_of_a_head_for_each_field(n_fields, widths):
    module, spots = made(n_fields), table()
    ends = np.cumsum(widths)
    heads = [
        head(spots.image[ROWS, end - width : end])
        for head, width, end in zip(module.image_heads, widths, ends, strict=True)
    ]
    expected = unit(sum(heads) / len(widths))
    torch.testing.assert_close(module.embed_image(spots, ROWS), expected)
    torch.testing.assert_close(module.embed_genes(spots, ROWS), unit(module.gene_head(spots.gene[ROWS])))


@pytest.mark.parametrize("negatives", ["all", "within-slide"])
def test_the_four_losses(negatives):
    module, spots = made(negatives=negatives), table()
    gene, image = module.embed_genes(spots, ROWS), module.embed_image(spots, ROWS)
    norm, linear = module.second
    whole = spots.image[ROWS]
    normed = (whole - whole.mean(dim=1, keepdim=True)) / (whole.var(dim=1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    second = (normed * norm.weight + norm.bias) @ linear.weight.T + linear.bias
    allowed = None
    if negatives == "within-slide":
        allowed = spots.slide[ROWS][:, None] == spots.slide[ROWS]
    predicted, truth = module.regress(spots, ROWS).detach().numpy(), spots.target[ROWS].numpy()
    r = [np.corrcoef(predicted[:, g], truth[:, g])[0, 1] for g in range(N_TARGETS)]
    expected = {
        "contrastive": one_way_nce(gene, image, temperature=0.3, allowed=allowed).item(),
        "soft": gaussian_target_loss(gene, image, temperature=0.3, bandwidth=0.4, allowed=allowed).item(),
        "second": one_way_nce(gene, second, temperature=0.3, allowed=allowed).item(),
        "expression": ((predicted - truth) ** 2).mean() + 1 - np.mean(r),
    }
    found = {name: part.item() for name, part in module.losses(spots, ROWS).items()}
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_expression_head_reads_the_image_embedding():
    module, spots = made(), table()
    x = module.embed_image(spots, ROWS)
    for i, layer in enumerate(part for part in module.decoder if isinstance(part, torch.nn.Linear)):
        x = (torch.nn.functional.gelu(x) if i else x) @ layer.weight.T + layer.bias
    torch.testing.assert_close(module.regress(spots, ROWS), x)
    assert [part.out_features for part in module.decoder if isinstance(part, torch.nn.Linear)] == [6, 3, N_TARGETS]


def test_a_constant_gene_is_no_accident():
    module, spots = made(), table()
    spots.target[:, 1] = 0
    found = module.losses(spots, ROWS)["expression"]
    found.backward()
    assert torch.isfinite(found)
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
