"""What the page says of ``variant="code"``, asked of the network."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from stcontrast.methods.published import Nh2st
from stcontrast.nn import DualScalePair, SpotTable, fused_nce, hyperedges

PAGE = Path(__file__).parents[3] / "docs/methods/nh2st.md"
# of the published code: a flattened map of 7 x 7 x 512, and 250 genes
N_MAP, N_GENES = 7 * 7 * 512, 250


def built(*, n_image: int = N_MAP, n_genes: int = N_GENES, device: str = "meta", **options: int) -> DualScalePair:
    method = Nh2st(variant="code", **options)
    with torch.device(device):
        module = method.build(n_image=n_image, n_gene=n_genes, n_targets=n_genes)
    assert isinstance(module, DualScalePair)
    return module


def test_every_module_is_in_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("| part | published code |") : text.index("## What was ambiguous")]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:] if line.startswith("|")]
    assert all(len(row) == 4 for row in rows)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row[3])} == {
        name for name, _ in built().named_children()
    }


def test_layers_and_sizes_are_those_of_the_published_code() -> None:
    shapes = {name: tuple(value.shape) for name, value in built().named_parameters()}
    block = "cross.blocks.0."
    graphs = {"image_graph": (N_MAP, 1024, 512), "gene_graph": (512, 1024, 512)}
    expected: dict[str, tuple[int, ...]] = {
        "contrast.log_inverse_temperature": (),
        **_linear("image_query", N_MAP, 512),
        **_linear("gene_token.0", N_GENES, 512), **_linear("gene_token.1", 512, 512),
        **_linear(f"{block}query", 512, 512, bias=False), **_linear(f"{block}key", 512, 512, bias=False),
        **_linear(f"{block}value", 512, 512, bias=False), **_linear(f"{block}output.0", 512, 512),
        **_norm(f"{block}attention_norm"), **_norm(f"{block}feed_forward.0"), **_norm("cross.norm"),
        **_linear(f"{block}feed_forward.1", 512, 512), **_linear(f"{block}feed_forward.4", 512, 512),
        **_linear("decoder.0", 512, 256), **_linear("decoder.1", 256, N_GENES),
    }  # fmt: skip
    for name, (n_input, n_hidden, n_output) in graphs.items():
        for layer, sizes in (("first", (n_input, n_hidden)), ("second", (n_hidden, n_output))):
            expected |= _linear(f"{name}.{layer}.linear", *sizes, bias=False) | {f"{name}.{layer}.bias": (sizes[1],)}
    assert shapes == expected


def _linear(name: str, n_input: int, n_output: int, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (n_output, n_input)} | ({f"{name}.bias": (n_output,)} if bias else {})


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (512,), f"{name}.bias": (512,)}


def test_dropout_is_on_the_outputs_and_in_the_feed_forward_alone() -> None:
    found = {name: part.p for name, part in built().named_modules() if isinstance(part, nn.Dropout)}
    block = "cross.blocks.0."
    assert found == {f"{block}output.1": 0.5, f"{block}feed_forward.3": 0.5, f"{block}feed_forward.5": 0.5}
    assert [part.n_heads for part in built().cross.blocks] == [8]  # type: ignore[union-attr]


def test_the_tokens_and_the_decoder_are_affine() -> None:
    torch.manual_seed(0)
    module = built(n_image=6, n_genes=5, device="cpu", n_embedding=32).eval().double()
    for part, size in ((module.image_query, 6), (module.gene_token, 5), (module.decoder, 32)):
        one, other = torch.randn(2, 3, size, dtype=torch.float64)
        torch.testing.assert_close(part(one) + part(other), part(one + other) + part(torch.zeros_like(one)))


def test_the_hypergraphs_start_as_glorot_s_with_biases_at_zero() -> None:
    torch.manual_seed(0)
    module = built(n_image=300, device="cpu", n_embedding=64)
    for part in (module.image_graph.first, module.gene_graph.second):
        n_output, n_input = part.linear.weight.shape
        bound = math.sqrt(6 / (n_input + n_output))
        assert 0.99 * bound < float(part.linear.weight.detach().abs().max()) <= bound
        assert not part.bias.detach().any()


def test_a_hyperedge_has_a_node_and_the_three_most_similar_others() -> None:
    features = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    joined = hyperedges(features)
    assert bool((joined.sum(dim=1) == 4).all())
    unit = features / features.norm(dim=-1, keepdim=True)
    cosine = unit @ unit.transpose(1, 2) - 2 * torch.eye(9)
    for i, of_slide in enumerate(cosine):
        for edge in range(9):
            there = set(torch.where(joined[i, :, edge] > 0)[0].tolist())
            assert there == {edge, *of_slide[edge].topk(3).indices.tolist()}


def _table() -> SpotTable:
    rng = torch.Generator().manual_seed(0)
    near = torch.stack([torch.roll(torch.arange(12), -i) for i in range(9)], dim=1)
    image, gene, target = (torch.randn(12, size, generator=rng) for size in (6, 5, 5))
    return SpotTable(image, gene, target, torch.zeros(12, dtype=torch.int64), torch.rand(12, 2, generator=rng), near)


def test_the_loss_is_put_together_as_in_the_published_code() -> None:
    torch.manual_seed(0)
    module = built(n_image=6, n_genes=5, device="cpu", n_embedding=32).eval()
    table, rows = _table(), torch.arange(8)
    parts = module.losses(table, rows)
    image, gene = module.image_query(table.image[rows]), module.gene_token(table.gene[rows])
    edges = hyperedges(table.image[table.near[rows]])
    near_image = module.image_graph(table.image[table.near[rows]], edges).mean(dim=1)
    near_gene = module.gene_graph(module.gene_token(table.gene[table.near[rows]]), edges).mean(dim=1)
    for name, one, other in (("query", image, gene), ("neighbourhood", near_image, near_gene)):
        # one module for all four: the image looks at the genes, then the genes at what came of it
        first = module.cross(one[:, None], other[:, None])
        second = module.cross(other[:, None], first)
        expected = fused_nce(first[:, 0], second[:, 0], temperature=0.05, negative_scale=0.1)
        torch.testing.assert_close(parts[name], expected)
    torch.testing.assert_close(parts["expression"], (module.decoder(image) - table.target[rows]).square().mean())
    assert set(parts) == {"query", "neighbourhood", "expression"}
    assert (module.weights["query"], module.weights["neighbourhood"], module.weights.get("expression", 1.0)) == (
        1,
        0.5,
        1,
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_the_prediction_looks_at_the_query_s_image_alone(seed: int) -> None:
    torch.manual_seed(seed)
    module = built(n_image=6, n_genes=5, device="cpu", n_embedding=32).eval()
    table, rows = _table(), torch.arange(3)
    torch.testing.assert_close(module.regress(table, rows), module.decoder(module.image_query(table.image[rows])))
