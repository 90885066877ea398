"""The tables of ``benchmarks/accuracy.py``: a line of results a row, task, held-out slide or donor, and seed."""

from __future__ import annotations

import numpy as np
import pandas as pd


def by_task(results, metric):
    """Mean over the slides of a group, then over groups; rows x tasks."""
    return results.groupby(["row", "task", "group"])[metric].mean().groupby(["row", "task"]).mean().unstack()


def accuracy(results, tasks):
    """Mean r of each task, and macro-F1: within a mouse, then over mice; and of all spots of all mice together."""
    expression = results[results["mean r"].notna()]
    parts = {}
    for task in [task for task in tasks if task in set(expression["task"])]:
        here = expression[expression["task"] == task]
        if task.startswith("her2st A, C"):
            more = " + counts" if "counts" in task else ""
            parts[f"C > A{more}"] = here[here["group"] == "A"].groupby("row")["mean r"].mean()
            parts[f"A > C{more}"] = here[here["group"] == "C"].groupby("row")["mean r"].mean()
        elif task == "arrays 1, 2":
            parts["1 > 2"] = here[here["group"] == "2"].groupby("row")["mean r"].mean()
            parts["2 > 1"] = here[here["group"] == "1"].groupby("row")["mean r"].mean()
        else:
            parts[task] = by_task(here, "mean r")[task]
    for task in [task for task in tasks if "layers" in task and task in set(results["task"])]:
        here = results[results["task"] == task]
        parts[f"{task}: F1"] = by_task(here, "macro-F1")[task]
        parts[f"{task}: pooled"] = here.groupby("row")["confusion"].agg(
            lambda many: macro_f1(np.sum(list(many), axis=0))
        )
    parts["CPU s a fit"] = results.groupby("row")["seconds"].mean().round(1)
    parts["peak GiB"] = results.groupby("row")["GiB"].max().round(2)
    return pd.DataFrame(parts)


def macro_f1(confusion):
    """Mean over classes of F1, from counts of true (rows) and predicted classes."""
    right = np.diag(confusion)
    return float(np.mean(2 * right / (confusion.sum(axis=0) + confusion.sum(axis=1))))


def margins(results, reference="ridge"):
    """Mean difference in r to ridge over genes, and the share of genes that gain, by row and held-out group."""
    lines = []
    for (task, group), here in results[results["mean r"].notna()].groupby(["task", "group"]):
        of_row = {
            row: pd.concat([pd.Series(r) for r in part["r by gene"]], axis=1).mean(axis=1) for row, part in here.groupby("row")
        }  # fmt: skip
        for row, r in of_row.items():
            gain = (r - of_row[reference]).dropna()
            text = f"{gain.mean():+.3f} ({(gain > 0).mean():.0%})"
            lines.append({"row": row, "held out": f"{task}: {group}", "gain": text})
    return pd.DataFrame(lines).pivot(index="row", columns="held out", values="gain")


def intervals(results):
    """Coverage of nominal 90 % intervals, their width over that of the mean's, and the shape of predictions."""
    expression = results[results["mean r"].notna()]
    width = by_task(expression, "width")
    parts = {"coverage": by_task(expression, "coverage"), "width / mean's": width / width.loc["mean"]}
    parts |= {
        metric: by_task(expression, metric)
        for metric in ("r given depth", "rmse", "variance ratio", "Moran difference", "ceiling")
    }
    return pd.concat(parts, axis=1)


def retrieval(results):
    """Recall at 10 from image to gene above chance on held-out slides: mean, and its 95 % interval over slides."""
    lines = []
    of_task = results[results["recall"].notna()]
    for (task, row), here in of_task.groupby(["task", "row"], sort=False):
        for kind in ("by expression", "by embedding"):
            # of one slide its mean over seeds: they are no further slides
            values = here["recall"].map(lambda recall, kind=kind: recall.get(kind)).astype(float)
            values = values.groupby(here["slide"]).mean().dropna().to_numpy()
            if len(values) == 0:
                continue
            draws = np.random.default_rng(0).choice(values, size=(2000, len(values))).mean(axis=1)
            low, high = np.quantile(draws, [0.025, 0.975])
            text = f"{values.mean():.3f} ({low:.3f} to {high:.3f})"
            lines.append({"row": f"{row}, {kind}", "task": task, "recall": text})
    return pd.DataFrame(lines).pivot(index="row", columns="task", values="recall") if lines else pd.DataFrame()


def over_seeds(results):
    """r of each task, or macro-F1, by row: mean over the seeds, and the range of the single ones."""
    lines = []
    for metric in ("mean r", "macro-F1"):
        there = results[results[metric].notna()]
        of_seed = there.groupby(["row", "task", "seed", "group"])[metric].mean().groupby(["row", "task", "seed"]).mean()
        for (row, task), values in of_seed.groupby(["row", "task"]):
            text = f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f}; {len(values)})"
            lines.append({"row": row, "task": task, metric: text})
    return pd.DataFrame(lines).pivot_table(
        index="row", columns="task", values=[name for name in ("mean r", "macro-F1") if any(name in line for line in lines)],
        aggfunc="first",
    )  # fmt: skip
