from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy.special import erf

from stcontrast.nn import (
    Contrast,
    DualScalePair,
    HeadPair,
    PairModule,
    SlidePair,
    SpotTable,
    fused_nce,
    hyperedges,
    info_nce,
    similarity_target_loss,
)

if TYPE_CHECKING:
    from torch import Tensor

    from stcontrast.nn import ProjectionHead

N_IMAGE, N_GENE, N_TARGETS, N_EMBEDDING = 5, 3, 2, 4


def make_table(shapes: tuple[tuple[int, int], ...] = ((3, 4), (2, 3)), *, seed: int = 0) -> SpotTable:
    """Slides of so many rows and columns, the spots of all in random order."""
    rng = np.random.default_rng(seed)
    xy = [(x, y) for n_rows, n_columns in shapes for y in range(n_rows) for x in range(n_columns)]
    slide = np.repeat(np.arange(len(shapes)), [n_rows * n_columns for n_rows, n_columns in shapes])
    order = rng.permutation(len(slide))
    image, gene, target = (rng.normal(size=(len(slide), n)).astype(np.float32) for n in (N_IMAGE, N_GENE, N_TARGETS))
    table = SpotTable.of(
        image, slide[order], 10.0 * np.array(xy, dtype=np.float64)[order], n_nearest=9, gene=gene, target=target
    )
    return replace(table, **{name: getattr(table, name).double() for name in ("image", "gene", "target")})


def changed(table: SpotTable, name: str, rows: Tensor) -> SpotTable:
    values = getattr(table, name).clone()
    values[rows] = torch.randn(values[rows].shape, generator=torch.Generator().manual_seed(9), dtype=values.dtype)
    return replace(table, **{name: values})


def filled(make: Any, *args: Any, **kwargs: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make(*args, **kwargs).double()
        for parameter in module.parameters():
            if parameter.requires_grad:
                # ones in norms and zeros in biases would hide half of the formula
                torch.nn.init.normal_(parameter)
    return module.eval()


def head_pair(contrast: Contrast | None = None, dropout: float = 0.1) -> HeadPair:
    contrast = contrast or Contrast(loss="similarity_target", normalize=False, temperature=1.0)
    return filled(HeadPair, contrast, n_image=N_IMAGE, n_gene=N_GENE, n_embedding=N_EMBEDDING, dropout=dropout)


def slide_pair(**kwargs: Any) -> SlidePair:
    options = {"n_embedding": N_EMBEDDING, "dropout": 0.0, "n_layers": 2, "n_heads": 2, "n_per_head": 2, **kwargs}
    return filled(SlidePair, Contrast(normalize=False, temperature=1.0), n_image=N_IMAGE, n_gene=N_GENE, **options)


def dual_scale_pair(variant: str, contrast: Contrast | None = None) -> DualScalePair:
    return filled(
        DualScalePair,
        contrast or Contrast(temperature=0.05),
        variant=variant,
        n_image=N_IMAGE,
        n_gene=N_GENE,
        n_targets=N_TARGETS,
        n_embedding=N_EMBEDDING,
        n_layers=1,
        n_heads=2,
        dropout=0.5,
        query_weight=2.0,
        neighbor_weight=0.5,
    )


def all_kinds() -> list[PairModule]:
    return [head_pair(), slide_pair(), dual_scale_pair("paper"), dual_scale_pair("code")]


def n_trained(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def n_head(n_input: int, n_output: int) -> int:
    return n_input * n_output + n_output + n_output * n_output + n_output + 2 * n_output


def plain_head(head: ProjectionHead, x: np.ndarray) -> np.ndarray:
    w = {name: p.detach().numpy() for name, p in head.named_parameters()}
    projected = x @ w["projection.weight"].T + w["projection.bias"]
    gelu = projected * (1 + erf(projected / math.sqrt(2))) / 2
    out = gelu @ w["hidden.weight"].T + w["hidden.bias"] + projected
    centred = out - out.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * w["norm.weight"] + w["norm.bias"]


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def unit(*parts: Tensor) -> Tensor:
    return torch.cat([part / part.norm(dim=1, keepdim=True) for part in parts], dim=1)


ROWS = torch.tensor([4, 0, 17, 9, 11])


def test_head_pair_parameters():
    assert n_trained(head_pair()) == n_head(N_IMAGE, N_EMBEDDING) + n_head(N_GENE, N_EMBEDDING)


def test_head_pair_is_a_head_for_each_modality():
    module, table = head_pair(), make_table()
    image = plain_head(module.image_head, table.image.numpy()[ROWS])
    gene = plain_head(module.gene_head, table.gene.numpy()[ROWS])
    np.testing.assert_allclose(module.embed_image(table, ROWS).detach().numpy(), image, atol=1e-9)
    np.testing.assert_allclose(module.embed_genes(table, ROWS).detach().numpy(), gene, atol=1e-9)
    expected = similarity_target_loss(torch.as_tensor(gene), torch.as_tensor(image))
    assert {name: loss.item() for name, loss in module.losses(table, ROWS).items()} == {
        "contrastive": pytest.approx(expected.item(), abs=1e-9)
    }


def test_head_pair_hands_dropout_to_both_heads():
    module = head_pair(dropout=0.3)
    assert [head.dropout.p for head in (module.image_head, module.gene_head)] == [0.3, 0.3]


def test_slide_pair_parameters():
    module = slide_pair()
    inner = 2 * 2
    block = 2 * N_GENE + 3 * inner * N_GENE + inner * N_GENE + N_GENE + 2 * N_GENE + 2 * (N_GENE**2 + N_GENE)
    heads = n_head(N_IMAGE, N_EMBEDDING) + n_head(N_GENE, N_EMBEDDING)
    assert n_trained(module) == 2 * 512 * N_GENE + 2 * block + heads


def whole(table: SpotTable, *slides: int) -> Tensor:
    return torch.cat([(table.slide == code).nonzero().flatten() for code in slides])


def test_slide_pair_informs_the_spots_of_a_slide_and_embeds_them():
    module, table = slide_pair(), make_table()
    rows = whole(table, 1, 0)
    informed = [module.transformer(table.gene[part], table.lattice[part]) for part in (rows[:6], rows[6:])]
    gene = plain_head(module.gene_head, torch.cat(informed).detach().numpy())
    image = plain_head(module.image_head, table.image.numpy()[rows])
    np.testing.assert_allclose(module.embed_genes(table, rows).detach().numpy(), gene, atol=1e-9)
    np.testing.assert_allclose(module.embed_image(table, rows).detach().numpy(), image, atol=1e-9)
    expected = info_nce(torch.as_tensor(gene), torch.as_tensor(image), temperature=1.0, normalize=False)
    assert module.losses(table, rows)["contrastive"].item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("max_sequence", [4096, 4])
def test_slide_pair_embeds_a_slide_the_same_whatever_the_others_are(max_sequence):
    module, table = slide_pair(max_sequence=max_sequence), make_table(((3, 4), (2, 3), (4, 4)))
    own = whole(table, 0)
    alone = module.embed_genes(table, own)
    for others in ((1,), (2, 1)):
        rows = torch.cat([whole(table, *others), own])
        torch.testing.assert_close(module.embed_genes(table, rows)[-12:], alone, atol=1e-5, rtol=0)
    other = changed(table, "gene", whole(table, 1, 2))
    torch.testing.assert_close(module.embed_genes(other, torch.arange(34))[own], alone, atol=1e-5, rtol=0)
    # of its own slide, every spot matters
    moved = changed(table, "gene", own[:1])
    assert float((module.embed_genes(moved, own) - alone)[1:].detach().abs().max()) > 1e-6


@pytest.mark.parametrize("max_sequence", [4096, 4])
def test_slide_pair_gives_rows_back_in_the_order_asked(max_sequence):
    module, table = slide_pair(max_sequence=max_sequence), make_table()
    expected = module.embed_genes(table, torch.arange(18))
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module.embed_genes(table, order), expected[order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 7, 30])
@pytest.mark.parametrize("max_sequence", [4096, 4])
def test_slide_pair_evaluates_whole_sequences(batch_size, max_sequence):
    module, table = slide_pair(max_sequence=max_sequence), make_table(((3, 4), (2, 3), (4, 4)))
    parts = {frozenset(part.tolist()) for part in module._sequences(table)}
    batches = module.evaluation_batches(table, batch_size)
    assert sorted(torch.cat(batches).tolist()) == list(range(34))
    for rows in batches:
        inside = [part for part in parts if part <= set(rows.tolist())]
        assert sum(map(len, inside)) == len(rows)
    assert all(len(rows) >= batch_size for rows in batches[:-1])


@pytest.mark.parametrize(
    ("batch_size", "max_sequence", "lengths"),
    [
        (34, 4096, {0: [12], 1: [6], 2: [16]}),
        (10, 4096, {0: [12], 1: [6], 2: [8, 8]}),
        (6, 4096, {0: [6, 6], 1: [6], 2: [5, 5, 6]}),
        (34, 6, {0: [6, 6], 1: [6], 2: [5, 5, 6]}),
    ],
)
def test_slide_pair_trains_on_parts_of_one_slide(batch_size, max_sequence, lengths):
    module, table = slide_pair(max_sequence=max_sequence), make_table(((3, 4), (2, 3), (4, 4)))
    batches = module.batches(table, batch_size)
    assert sorted(torch.cat(batches).tolist()) == list(range(34))
    found: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for rows in batches:
        (slide,) = set(table.slide[rows].tolist())
        found[slide].append(len(rows))
    assert {slide: sorted(sizes) for slide, sizes in found.items()} == lengths


def test_slide_pair_draws_other_parts_every_epoch():
    module, table = slide_pair(), make_table(((4, 4),))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {frozenset(frozenset(part.tolist()) for part in module.batches(table, 8)) for _ in range(5)}
    assert len(parts) == 5


def test_slide_pair_attends_to_the_spots_of_the_batch_and_slide_in_a_step():
    module, table = slide_pair(), make_table()
    rows = torch.cat([whole(table, 0)[:5], whole(table, 1)[2:5]])[torch.tensor([0, 6, 3, 1, 7, 2, 5, 4])]
    informed = [
        module.transformer(table.gene[part], table.lattice[part])
        for part in (rows[table.slide[rows] == code] for code in (0, 1))
    ]
    order = torch.cat([rows[table.slide[rows] == code] for code in (0, 1)])
    gene = plain_head(module.gene_head, torch.cat(informed).detach().numpy())
    image = plain_head(module.image_head, table.image.numpy()[order])
    expected = info_nce(torch.as_tensor(gene), torch.as_tensor(image), temperature=1.0, normalize=False)
    assert module.losses(table, rows)["contrastive"].item() == pytest.approx(expected.item(), abs=1e-9)
    # spots of the slide that are not in the batch do not matter, those in it do
    others = changed(table, "gene", torch.tensor([i for i in range(18) if i not in rows.tolist()]))
    assert torch.equal(module.losses(others, rows)["contrastive"], module.losses(table, rows)["contrastive"])


def test_slide_pair_batches_embed_as_the_whole_table():
    module, table = slide_pair(max_sequence=5), make_table()
    whole_table = module.embed_genes(table, torch.arange(18))
    for rows in module.evaluation_batches(table, 4):
        torch.testing.assert_close(module.embed_genes(table, rows), whole_table[rows], atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_dual_scale_pair_parameters(variant):
    d = N_EMBEDDING
    tokens = (N_IMAGE * d + d) + (N_GENE * d + d) + (d * d + d)
    graphs = (N_IMAGE * 2 * d + 2 * d) + (2 * d * d + d) + (d * 2 * d + 2 * d) + (2 * d * d + d)
    cross = 2 * d + 4 * d * d + d + 2 * d + 2 * (d * d + d) + 2 * d
    decoder = (d * d // 2 + d // 2) + (d // 2 * N_TARGETS + N_TARGETS)
    assert n_trained(dual_scale_pair(variant)) == tokens + graphs + cross + decoder


def parts_of(module: DualScalePair, table: SpotTable, rows: Tensor) -> dict[str, Tensor]:
    """Tokens of both branches from the layers, spot by spot."""
    image = table.image[rows] @ module.image_query.weight.T + module.image_query.bias
    layers: Any = module.gene_token
    first, second = layers

    def token(gene: Tensor) -> Tensor:
        return (gene @ first.weight.T + first.bias) @ second.weight.T + second.bias

    nodes, near_gene = [], []
    for row in rows.tolist():
        near = table.near[row]
        joined = hyperedges(table.image[near][None])
        nodes.append(module.image_graph(table.image[near][None], joined)[0])
        near_gene.append(module.gene_graph(token(table.gene[near])[None], joined)[0].mean(dim=0))
    around = torch.stack(nodes)
    return {
        "image": image,
        "gene": token(table.gene[rows]),
        "nodes": around,
        "near_image": around.mean(dim=1),
        "near_gene": torch.stack(near_gene),
    }


def looked_at(module: DualScalePair, query: Tensor, context: Tensor) -> Tensor:
    return module.cross(query[:, None], context[:, None])[:, 0]


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_dual_scale_pair_embeds_both_scales_before_fusion(variant):
    module, table = dual_scale_pair(variant), make_table()
    parts = parts_of(module, table, ROWS)
    torch.testing.assert_close(module.embed_image(table, ROWS), unit(parts["image"], parts["near_image"]))
    torch.testing.assert_close(module.embed_genes(table, ROWS), unit(parts["gene"], parts["near_gene"]))
    # retrieval by cosine weighs both scales the same
    np.testing.assert_allclose(module.embed_image(table, ROWS).norm(dim=1).detach(), math.sqrt(2))


def test_dual_scale_pair_as_in_the_code():
    module, table = dual_scale_pair("code"), make_table()
    parts = parts_of(module, table, ROWS)
    image = looked_at(module, parts["image"], parts["gene"])
    gene = looked_at(module, parts["gene"], image)
    near_image = looked_at(module, parts["near_image"], parts["near_gene"])
    near_gene = looked_at(module, parts["near_gene"], near_image)
    losses = module.losses(table, ROWS)
    decoded = module.decoder[1](module.decoder[0](parts["image"]))
    torch.testing.assert_close(module.regress(table, ROWS), decoded)
    assert {name: loss.item() for name, loss in losses.items()} == {
        "query": pytest.approx(fused_nce(image, gene, temperature=0.05, negative_scale=0.1).item(), rel=1e-6),
        "neighbourhood": pytest.approx(
            fused_nce(near_image, near_gene, temperature=0.05, negative_scale=0.1).item(), rel=1e-6
        ),
        "expression": pytest.approx(float(((decoded - table.target[ROWS]) ** 2).mean().detach())),
    }
    # the other order of looking would show
    other = fused_nce(looked_at(module, parts["image"], gene), looked_at(module, parts["gene"], parts["image"]))
    assert losses["query"].item() != pytest.approx(other.item(), rel=1e-3)


def test_dual_scale_pair_as_in_the_paper():
    module, table = dual_scale_pair("paper"), make_table()
    parts = parts_of(module, table, ROWS)
    decoded = module.decoder[1](module.decoder[0](module.cross(parts["image"][:, None], parts["nodes"])[:, 0]))
    torch.testing.assert_close(module.regress(table, ROWS), decoded)
    own = info_nce(parts["gene"], parts["image"], temperature=0.05)
    near = info_nce(parts["near_gene"], parts["near_image"], temperature=0.05)
    assert {name: loss.item() for name, loss in module.losses(table, ROWS).items()} == {
        "contrastive": pytest.approx(own.item(), rel=1e-6),
        "neighbourhood": pytest.approx(near.item(), rel=1e-6),
        "expression": pytest.approx(float(((decoded - table.target[ROWS]) ** 2).mean().detach())),
    }


@pytest.mark.parametrize(("variant", "own"), [("paper", "contrastive"), ("code", "query")])
def test_dual_scale_pair_weighs_the_scales(variant, own):
    """Losses are noted as they are; the weights are for training."""
    module = dual_scale_pair(variant)
    names = module.losses(make_table(), ROWS)
    assert {name: module.weights.get(name, 1.0) for name in names} == {own: 2.0, "neighbourhood": 0.5, "expression": 1}


def test_other_pairs_have_one_loss_and_no_weights():
    assert [dict(module.weights) for module in (head_pair(), slide_pair())] == [{}, {}]


def test_dual_scale_pair_of_the_paper_takes_negatives_from_the_contrast():
    table = make_table()
    losses = [
        dual_scale_pair("paper", Contrast(temperature=0.05, negatives=negatives)).losses(table, ROWS)["neighbourhood"]
        for negatives in ("all", "within-slide")
    ]
    assert losses[0].item() > losses[1].item()


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_only_the_paper_predicts_from_the_neighbourhood(variant):
    module, table = dual_scale_pair(variant), make_table()
    row = ROWS[:1]
    before = module.regress(table, row)
    after = module.regress(changed(table, "image", table.near[row[0], 1:]), row)
    difference = float((before - after).detach().abs().max())
    assert difference == 0 if variant == "code" else difference > 1e-3
    # neither sees genes, nor spots that are not near
    torch.testing.assert_close(module.regress(changed(table, "gene", torch.arange(18)), row), before)
    far = torch.tensor([i for i in range(18) if i not in table.near[row[0]].tolist()])
    torch.testing.assert_close(module.regress(changed(table, "image", far), row), before)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_small_slides_are_embedded_too(variant):
    module, table = dual_scale_pair(variant), make_table(((1, 1), (1, 2), (3, 3)))
    rows = torch.arange(12)
    total(module.losses(table, rows)).backward()
    assert all(bool(p.grad.isfinite().all()) for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", range(4), ids=["heads", "slide", "paper", "code"])
def test_gradient_reaches_every_weight(kind):
    module, table = all_kinds()[kind], make_table()
    total(module.losses(table, torch.arange(18))).backward()
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        # of one token of context there is nothing to choose: neither query nor key is looked at
        idle = kind == 3 and name in ("cross.blocks.0.query.weight", "cross.blocks.0.key.weight")
        moved = parameter.grad is not None and float(parameter.grad.abs().max()) > 0
        assert moved != idle, name


@pytest.mark.parametrize("kind", range(4), ids=["heads", "slide", "paper", "code"])
def test_the_contrast_alone_reaches_both_towers(kind):
    module, table = all_kinds()[kind], make_table()
    losses = module.losses(table, torch.arange(18))
    total({name: loss for name, loss in losses.items() if name != "expression"}).backward()
    towers = {
        HeadPair: ("image_head", "gene_head"),
        SlidePair: ("image_head", "gene_head", "transformer"),
        DualScalePair: ("image_query", "image_graph", "gene_token", "gene_graph"),
    }[type(module)]
    for tower in towers:
        assert sum(float(p.grad.abs().sum()) for p in getattr(module, tower).parameters()) > 0, tower


@pytest.mark.parametrize("kind", range(4), ids=["heads", "slide", "paper", "code"])
def test_images_are_embedded_without_looking_at_genes(kind):
    module, table = all_kinds()[kind], make_table()
    rows = torch.arange(18)
    expected = module.embed_image(table, rows)
    assert torch.equal(module.embed_image(changed(table, "gene", rows), rows), expected)
    assert torch.equal(module.embed_image(changed(table, "target", rows), rows), expected)
    bare = replace(table, gene=table.gene[:, :0], target=table.target[:, :0])
    assert torch.equal(module.embed_image(bare, rows), expected)


@pytest.mark.parametrize("kind", range(4), ids=["heads", "slide", "paper", "code"])
def test_images_of_other_slides_do_not_matter(kind):
    module, table = all_kinds()[kind], make_table()
    rows = whole(table, 0)
    other = changed(table, "image", whole(table, 1))
    torch.testing.assert_close(module.embed_image(other, rows), module.embed_image(table, rows))
