from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf

from stcontrast.nn import SpotTable, ThreeViews

N_IMAGE, N_TARGETS, D, N_HEADS = 5, 3, 4, 2
SIDE = 21


def made(**options: Any) -> ThreeViews:
    how = {"n_heads": N_HEADS, "n_layers": 2, "dropout": 0.3, "distillation": 0.3, "max_sequence": 4096, **options}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = ThreeViews(n_image=N_IMAGE, n_targets=N_TARGETS, n_model=D, **how).double()
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter)
    return module.eval()


def spots(shapes: tuple[tuple[int, int], ...] = ((3, 4), (2, 3))) -> SpotTable:
    rng = np.random.default_rng(0)
    xy = [(x, y) for n_rows, n_columns in shapes for y in range(n_rows) for x in range(n_columns)]
    slide = np.repeat(np.arange(len(shapes)), [n_rows * n_columns for n_rows, n_columns in shapes])
    order = rng.permutation(len(slide))
    image, target = (rng.normal(size=(len(slide), n)).astype(np.float32) for n in (N_IMAGE, N_TARGETS))
    table = SpotTable.of(image, slide[order], 9.0 * np.array(xy, dtype=float)[order], n_nearest=25, target=target)
    return replace(table, image=table.image.double(), target=table.target.double())


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def linear(x: np.ndarray, layer: Any) -> np.ndarray:
    out = x @ array(layer.weight).T
    return out if layer.bias is None else out + array(layer.bias)


def norm(x: np.ndarray, layer: Any) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * array(layer.weight) + array(layer.bias)


def code(offset: np.ndarray) -> int:
    x, y = (int(np.clip(round(2 * float(step)), -10, 10)) + 10 for step in offset)
    return x * SIDE + y


def attention(query: np.ndarray, context: np.ndarray, layer: Any, bias: np.ndarray | None = None) -> np.ndarray:
    """Token by token and head by head; bias (heads, n_query, n_context)."""
    q = linear(norm(query, layer.query_norm), layer.query)
    k, v = np.split(linear(norm(context, layer.context_norm), layer.key_value), 2, axis=1)
    width, found = D // N_HEADS, np.zeros_like(q)
    for head in range(N_HEADS):
        own = slice(head * width, (head + 1) * width)
        logits = q[:, own] @ k[:, own].T / math.sqrt(width) + (0 if bias is None else bias[head])
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        found[:, own] = weights / weights.sum(axis=1, keepdims=True) @ v[:, own]
    query = query + linear(found, layer.output[0])
    normed, first, _, _, second, _ = layer.feed_forward
    hidden = linear(norm(query, normed), first)
    return query + linear(hidden * (1 + erf(hidden / math.sqrt(2))) / 2, second)


def plain(module: ThreeViews, table: SpotTable, row: int) -> dict[str, np.ndarray]:
    """The four predictions of a spot, computed from the layers by hand."""
    m: Any = module
    image, lattice = table.image.numpy(), table.lattice.numpy().astype(float)
    target = linear(image[[row]], m.target)
    around = table.near[row].tolist()
    near = linear(image[around], m.near)
    for layer in m.near_layers:
        bias = np.array([[array(layer.bias.weight)[code(lattice[j] - lattice[i])] for j in around] for i in around])
        near = attention(near, near, layer.attention, bias.transpose(2, 0, 1))
    here = np.flatnonzero(table.slide.numpy() == int(table.slide[row]))
    positions = array(m.positions.weight)
    tokens = []
    for i in here:
        token = linear(image[[i]], m.whole)[0]
        for j in table.near[i].tolist()[:9]:
            token = token + positions[code(lattice[j] - lattice[i])] * linear(image[[j]], m.whole)[0]
        tokens.append(token)
    whole = np.array(tokens)
    for layer in m.whole_layers:
        whole = attention(whole, whole, layer)
    own = whole[here == row]
    fused = attention(own, target, m.target_fusion) + attention(own, near, m.near_fusion)
    views = {"fused": norm(fused, m.norm)[0], "target": target[0], "near": near.mean(axis=0), "whole": own[0]}
    return {name: linear(token, m.heads[name]) for name, token in views.items()}


ROWS = torch.tensor([4, 0, 17, 9])


def test_the_views_are_those_of_a_computation_by_hand():
    module, table = made(), spots()
    found = module.views(table, ROWS)
    for i, row in enumerate(ROWS.tolist()):
        for name, expected in plain(module, table, row).items():
            np.testing.assert_allclose(array(found[name])[i], expected, atol=1e-9, err_msg=name)
    torch.testing.assert_close(module.regress(table, ROWS), found["fused"])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_every_view_learns_the_expression_and_the_fused_prediction(share):
    module, table = made(distillation=share), spots()
    by_hand = [plain(module, table, row) for row in ROWS.tolist()]
    views = {name: np.array([one[name] for one in by_hand]) for name in by_hand[0]}
    y = table.target[ROWS].numpy()
    of_views = sum(
        (1 - share) * ((views[name] - y) ** 2).mean() + share * ((views[name] - views["fused"]) ** 2).mean()
        for name in ("target", "near", "whole")
    )
    losses = module.losses(table, ROWS)
    assert losses["expression"].item() == pytest.approx(((views["fused"] - y) ** 2).mean(), rel=1e-9)
    assert losses["views"].item() == pytest.approx(of_views, rel=1e-9)


def test_gradient_reaches_every_weight():
    module, table = made(), spots()
    torch.stack(list(module.losses(table, torch.arange(18)).values())).sum().backward()
    for name, parameter in module.named_parameters():
        # of the one token of the spot there is nothing to choose: neither query nor norm before it is looked at
        idle = name.startswith(("target_fusion.query.", "target_fusion.query_norm."))
        assert (float(parameter.grad.abs().max()) > 0) != idle, name


def test_all_spots_of_the_slide_matter_and_none_of_another():
    module, table = made(), spots()
    before = module.regress(table, ROWS[:1])
    slide = table.slide[ROWS[0]]
    far = torch.where(table.slide == slide)[0]
    for rows, matters in ((far[far != ROWS[0]][-1:], True), (torch.where(table.slide != slide)[0], False)):
        image = table.image.clone()
        image[rows] += 1
        after = module.regress(replace(table, image=image), ROWS[:1])
        assert torch.equal(after, before) != matters


def test_a_long_slide_is_halved_and_predicted_as_one_batch_or_many():
    module, table = made(max_sequence=4), spots()
    whole = module.regress(table, torch.arange(18))
    assert not torch.allclose(whole, made().regress(table, torch.arange(18)))
    torch.testing.assert_close(torch.cat([module.regress(table, row[None]) for row in torch.arange(18)]), whole)


def test_a_step_takes_spots_of_one_slide():
    batches = made().batches(spots(), 5)
    assert sorted(torch.cat(batches).tolist()) == list(range(18))
    assert all(len(set(spots().slide[rows].tolist())) == 1 for rows in batches)
