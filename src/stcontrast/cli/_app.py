"""The command line: ``stcontrast demo | features | grid | fit | predict | classify | evaluate | similar | info``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stcontrast.cli._files import check_out, columns, outputs, read, read_spatialdata, slide_files, table_of, write
from stcontrast.cli._group import Group, set_up_log
from stcontrast.cli._options import (
    BatchKey,
    Complete,
    DonorKey,
    Encoder,
    FieldUm,
    Genes,
    ImageKey,
    LabelKey,
    Layer,
    LibraryKey,
    MaxSpots,
    ModelEncoder,
    ModelFolder,
    NGenes,
    Overwrite,
    Seed,
    Slides,
    Standardize,
    Store,
    TableKey,
    Tower,
    TowerOption,
    UmPerPx,
    UseRep,
    listed,
    one_or_several,
    options,
    refuse,
)  # fmt: skip

__all__ = ["app"]

app = typer.Typer(
    cls=Group,
    help="Expression and tissue subtypes from H&E, learnt from your own spatial transcriptomics.",
    epilog=(
        "\b\nA typical order, from slides with counts to predictions on new slides:\n"
        "  stcontrast evaluate train.zarr --donor-key donor\n"
        "  stcontrast fit train.zarr --model model_dir --donor-key donor\n"
        "  stcontrast predict slide.svs --model model_dir --out result.zarr\n\n"
        "\b\nSlides are SpatialData stores (.zarr) or AnnData (.h5ad). `stcontrast COMMAND --help` has an example.\n"
        "Exit codes: 0 done, 1 an error that the message explains, 2 wrong usage, 130 interrupted."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(*, asked: bool) -> None:
    if asked:
        from stcontrast import __version__

        typer.echo(f"stcontrast {__version__}")
        raise typer.Exit


@app.callback()
def main(
    *,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log every stage. May stand anywhere in the command.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=lambda value: _version(asked=value)
        ),
    ] = False,
) -> None:
    set_up_log(verbose=verbose)


@app.command(epilog="\b\nExample:\n  stcontrast demo --out demo-output --overwrite")
def demo(
    *,
    data: Annotated[
        str | None, typer.Option(help="SpatialData store, or 'her2st'; synthetic slides by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for table, figures, model and store.")] = Path("demo-output"),
    donor_key: Annotated[str, typer.Option(help="Column of obs with patient or animal.")] = "donor",
    label_key: LabelKey = "subtype",
    sections: Annotated[
        str | None, typer.Option(help="her2st: sections, separated by commas; C2 to C6 by default.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Hold out one donor: fit, predict its expression and subtypes from its H&E, cross-validate."""
    from stcontrast.cli._demo import WRITTEN, demo_data, run_demo

    if data != "her2st":
        refuse({"sections": sections}, "only `--data her2st` has sections")
    for name in WRITTEN:
        if (out / name).exists():
            check_out(out / name, overwrite=overwrite)
    sdata = demo_data(data, sections=sections, seed=seed)
    typer.echo(run_demo(sdata, out, donor_key=donor_key, label_key=label_key, seed=seed))
    typer.echo(f"Next: stcontrast fit YOUR_SLIDES.zarr --model model_dir --donor-key donor (look at {out}/ first)")


@app.command(epilog="\b\nExample:\n  stcontrast grid images.zarr --out spots.zarr --um-per-px 1.0")
def grid(  # noqa: PLR0913
    store: Annotated[Path, typer.Argument(help="SpatialData store (.zarr) with H&E images and no spots.")],
    *,
    out: Annotated[Path, typer.Option(help="Store to write, with the images and with spots on their tissue.")],
    image_key: Annotated[list[str] | None, typer.Option(help="Image; again for several; all RGB images by default.")] = None,
    um_per_px: Annotated[float | None, typer.Option(help="µm per pixel of the finest level.")] = None,
    pitch_um: Annotated[float, typer.Option(help="Distance between neighbouring spots in µm.")] = 100.0,
    spot_diameter_um: Annotated[float, typer.Option(help="Diameter of the spots in µm.")] = 55.0,
    geometry: Annotated[Literal["visium", "square"], typer.Option(help="Circles on Visium's lattice, or squares.")] = "visium",
    min_tissue: Annotated[float, typer.Option(help="Smallest share of a spot that lies on tissue.")] = 0.5,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Lay spots over the tissue of images. (For a slide file, `stcontrast predict slide.svs` does this itself.)"""
    import stcontrast as stc

    [target] = outputs([store], out, overwrite=overwrite)
    sdata = read_spatialdata(store)
    stc.pp.tissue_grid(
        sdata, image_key=image_key, um_per_px=um_per_px, pitch_um=pitch_um, spot_diameter_um=spot_diameter_um,
        geometry=geometry, min_tissue=min_tissue,
    )  # fmt: skip
    write(sdata, target)
    typer.echo(f"{sdata['table'].n_obs} spots on tissue, written to {target}")
    typer.echo(f"Next: stcontrast predict {target} --model MODEL --out result.zarr")


@app.command(
    epilog="\b\nExample:\n  stcontrast features train.zarr --out features.zarr --encoder color --field-um 100 --field-um 200"
)
def features(  # noqa: PLR0913
    slides: Slides,
    *,
    out: Annotated[Path, typer.Option(help="Result: for one input a store or file, for several a folder.")],
    encoder: Encoder = None,
    field_um: FieldUm = None,
    key_added: Annotated[str, typer.Option(help="Slot of obsm to write.")] = "X_image",
    stain: Annotated[str | None, typer.Option(help="Stain normalisation, such as macenko; none by default.")] = None,
    table_key: TableKey = None,
    image_key: ImageKey = None,
    library_key: LibraryKey = None,
    um_per_px: UmPerPx = None,
    overwrite: Overwrite = False,
) -> None:
    """Compute image features of every spot. (`fit` and `predict` compute the features that they need.)"""
    import stcontrast as stc

    targets = outputs(slides, out, overwrite=overwrite)
    given: dict[str, Any] = {"encoder": one_or_several(encoder), "field_um": field_um}
    for path, target in zip(slides, targets, strict=True):
        data = read(path)
        stc.pp.image_features(
            data, key_added=key_added, stain=stain, table_key=table_key, image_key=image_key, library_key=library_key,
            um_per_px=um_per_px, **{name: value for name, value in given.items() if value},
        )  # fmt: skip
        write(data, target)
        shape = table_of(data, table_key).obsm[key_added].shape
        typer.echo(f"{shape[1]} features of {shape[0]} spots, written to {target}")
    typer.echo(f"Next: stcontrast fit {' '.join(map(str, targets))} --model model_dir --donor-key donor")


@app.command(
    epilog="\b\nExample:\n  stcontrast fit train.zarr --model model_dir --donor-key donor --label-key subtype --option max_epochs=20"
)
def fit(  # noqa: PLR0913
    slides: Slides,
    *,
    model: Annotated[Path, typer.Option(help="Folder to save the model in.")],
    batch_key: BatchKey = None,
    donor_key: DonorKey = None,
    label_key: LabelKey = None,
    method: Annotated[str, typer.Option(help="stcontrast, ridge, bleep, mclstexp, nh2st, tpirbae, knn, mlp, ...")] = "stcontrast",
    option: Annotated[list[str] | None, typer.Option(help="Option of the method, KEY=VALUE or JSON; again for more.")] = None,
    encoder: Encoder = None,
    field_um: FieldUm = None,
    use_rep: UseRep = None,
    n_genes: NGenes = None,
    genes: Genes = None,
    n_neighbors: Annotated[int | None, typer.Option(help="Nearest spots whose features are added.")] = None,
    standardize: Annotated[Literal["slide", "none"], typer.Option(help="How image features are standardised.")] = "slide",
    max_spots: MaxSpots = 100_000,
    layer: Layer = None,
    table_key: TableKey = None,
    image_key: ImageKey = None,
    library_key: LibraryKey = None,
    um_per_px: UmPerPx = None,
    complete: Complete = False,
    image_tower: Tower = "frozen",
    tower_option: TowerOption = None,
    n_jobs: Annotated[int | None, typer.Option(help="Inner folds to fit at once; one by default.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Train a model on slides and save it. The slides are not changed."""
    import stcontrast as stc

    check_out(model, overwrite=overwrite, inputs=slides)
    data = [read(path) for path in slides]
    if donor_key is None and batch_key is None and all("donor" in columns(item) for item in data):
        donor_key = "donor"
    fitted = stc.tl.fit(
        data, batch_key=batch_key, donor_key=donor_key, label_key=label_key, method=method, layer=layer,
        options=options(option or [], name="--option"), encoder=one_or_several(encoder), field_um=field_um or None,
        use_rep=use_rep or None, n_genes=n_genes, genes=listed(genes), n_neighbors=n_neighbors,
        standardize=standardize, max_spots=max_spots, table_key=table_key, image_key=image_key, library_key=library_key,
        um_per_px=um_per_px, complete=complete, image_tower=image_tower,
        tower_options=options(tower_option or [], name="--tower-option"), n_jobs=n_jobs, seed=seed,
    )  # fmt: skip
    fitted.save(model, overwrite=overwrite)
    for score in ("held_out_r", "held_out_macro_f1"):
        if score in fitted.spec:
            unit = fitted.spec["held_out_unit"]
            typer.echo(f"{score} (held-out {unit}s of the training data): {fitted.spec[score]:.3f}")
    typer.echo(f"Model saved in {model}")
    typer.echo(f"Next: stcontrast predict NEW_SLIDE --model {model} --out result.zarr")


@app.command(
    epilog=(
        "\b\nExamples:\n"
        "  stcontrast predict slide.tiff --model model_dir --out result.zarr\n"
        "  stcontrast predict new.zarr --model model_dir --out predicted.zarr --donor-key donor"
    )
)
def predict(  # noqa: PLR0913
    slides: Annotated[list[Path], typer.Argument(help="Slide files (svs, ndpi, tiff, ...), stores (.zarr) or AnnData (.h5ad).")],
    *,
    model: ModelFolder,
    out: Annotated[Path, typer.Option(help="Result: a store or file; for several stores a folder.")],
    donor_key: DonorKey = None,
    encoder: ModelEncoder = None,
    standardize: Standardize = "slide",
    table_key: TableKey = None,
    image_key: ImageKey = None,
    library_key: LibraryKey = None,
    um_per_px: UmPerPx = None,
    pitch_um: Annotated[float | None, typer.Option(help="Slide files: distance between spots in µm.")] = None,
    gene: Annotated[str | None, typer.Option(help="Gene of the figure; by default the gene that is predicted best.")] = None,
    figure: Annotated[bool, typer.Option(help="Draw expression and classes of a store, next to the result.")] = True,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Predict expression and subtype. If a call on slide files is interrupted, repeat it to continue."""
    import stcontrast as stc
    from stcontrast.cli._results import check_gene, say_predicted, with_classes

    if slide_files(slides):
        of_tables = {"donor_key": donor_key, "table_key": table_key, "image_key": image_key, "library_key": library_key}
        refuse(of_tables, "slide files have no table and one image; it is for stores (.zarr) and AnnData (.h5ad)")
        check_out(out, overwrite=overwrite, inputs=slides)
        fitted = stc.models.load(model)
        check_gene(fitted, gene)
        result = stc.tl.predict_slide(
            slides, fitted, out=out, um_per_px=um_per_px, pitch_um=pitch_um, encoder=one_or_several(encoder),
            standardize=standardize, overwrite=overwrite,
        )  # fmt: skip
        say_predicted(result, out, gene=gene, figure=figure)
        return
    refuse({"pitch_um": pitch_um}, "stores have spots already; it is for slide files")
    if not figure or all(path.suffix == ".h5ad" for path in slides):
        refuse({"gene": gene}, "no figure is drawn")
    targets = outputs(slides, out, overwrite=overwrite)
    fitted = stc.models.load(model)
    check_gene(fitted, gene)
    keys: dict[str, Any] = {
        "table_key": table_key, "image_key": image_key, "library_key": library_key, "um_per_px": um_per_px,
    }  # fmt: skip
    where = {"donor_key": donor_key, "encoder": one_or_several(encoder), "standardize": standardize, **keys}
    for path, target in zip(slides, targets, strict=True):
        data = read(path)
        found = stc.tl.predict_expression(data, fitted, **where) if fitted.has_expression else None
        if fitted.classes:
            stc.tl.classify(data, fitted, **where)
        result = data if found is None else with_classes(found, data)
        write(result, target)
        say_predicted(result, target, gene=gene, figure=figure, keys=keys)


@app.command(epilog="\b\nExample:\n  stcontrast classify new.zarr --model model_dir --out classified.zarr")
def classify(  # noqa: PLR0913
    slides: Slides,
    *,
    model: ModelFolder,
    out: Annotated[Path, typer.Option(help="Result: for one input a store or file, for several a folder.")],
    key_added: Annotated[str, typer.Option(help="Column of obs to write.")] = "stc_class",
    donor_key: DonorKey = None,
    encoder: ModelEncoder = None,
    standardize: Standardize = "slide",
    table_key: TableKey = None,
    image_key: ImageKey = None,
    library_key: LibraryKey = None,
    um_per_px: UmPerPx = None,
    overwrite: Overwrite = False,
) -> None:
    """Predict the tissue subtype of every spot."""
    import stcontrast as stc

    targets = outputs(slides, out, overwrite=overwrite)
    fitted = stc.models.load(model)
    for path, target in zip(slides, targets, strict=True):
        data = read(path)
        stc.tl.classify(
            data, fitted, key_added=key_added, donor_key=donor_key, encoder=one_or_several(encoder),
            standardize=standardize, table_key=table_key, image_key=image_key, library_key=library_key,
            um_per_px=um_per_px,
        )  # fmt: skip
        write(data, target)
        typer.echo(table_of(data, table_key).obs[key_added].value_counts().to_string())
        typer.echo(f"obs[{key_added!r}] written to {target}")
    typer.echo(f"Next: in Python, stc.pl.spatial_class(spatialdata.read_zarr('{targets[0]}'))")


@app.command(
    epilog="\b\nExample:\n  stcontrast evaluate train.zarr --donor-key donor --methods ridge,mean --out scores.csv --report scores.html"
)
def evaluate(  # noqa: PLR0913
    slides: Slides,
    *,
    donor_key: Annotated[str, typer.Option(help="Column of obs with patient or animal, which is held out.")] = "donor",
    batch_key: BatchKey = None,
    label_key: LabelKey = None,
    methods: Annotated[str, typer.Option(help="Methods, separated by commas.")] = "stcontrast,ridge,color,mean",
    option: Annotated[list[str] | None, typer.Option(help='Options of the methods as JSON: {"stcontrast": {"max_epochs": 20}}.')] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file for every score.")] = None,
    report: Annotated[Path | None, typer.Option(help="Web page (.html) with scores, genes, maps and classes.")] = None,
    n_folds: Annotated[int | None, typer.Option(help="Folds of donors; one donor at a time by default.")] = None,
    encoder: Encoder = None,
    field_um: FieldUm = None,
    use_rep: UseRep = None,
    n_genes: NGenes = None,
    genes: Genes = None,
    max_spots: MaxSpots = 100_000,
    layer: Layer = None,
    table_key: TableKey = None,
    image_key: ImageKey = None,
    library_key: LibraryKey = None,
    um_per_px: UmPerPx = None,
    complete: Complete = False,
    image_tower: Tower = "frozen",
    tower_option: TowerOption = None,
    n_jobs: Annotated[int | None, typer.Option(help="Number of processes; chosen by cores and memory by default.")] = None,
    directory: Annotated[Path | None, typer.Option(help="Folder for finished fits, to continue from.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Hold out each donor in turn, and print the scores of the methods."""
    import stcontrast as stc

    for path in (out, report):
        if path is not None:
            check_out(path, overwrite=overwrite, inputs=slides)
    of_method = options(option or [], name="--option") or {}
    names = listed(methods) or []
    if unknown := sorted(set(of_method) - set(names)):
        msg = f"--option names {unknown}, which are not among the methods {names}."
        raise ValueError(msg)
    data = [read(path) for path in slides]
    cv = stc.tl.cross_validate(
        data, donor_key=donor_key, batch_key=batch_key, label_key=label_key, layer=layer,
        methods={name: of_method.get(name, {}) for name in names}, n_folds=n_folds, encoder=one_or_several(encoder),
        field_um=field_um or None, use_rep=use_rep or None, n_genes=n_genes, genes=listed(genes), max_spots=max_spots,
        table_key=table_key, image_key=image_key, library_key=library_key, um_per_px=um_per_px, complete=complete, image_tower=image_tower,
        tower_options=options(tower_option or [], name="--tower-option"), n_jobs=n_jobs, directory=directory, seed=seed,
    )  # fmt: skip
    typer.echo(cv.summary().round(3).to_string())
    if out is not None:
        cv.scores.to_csv(out, index=False)
        typer.echo(f"Every score written to {out}")
    if report is not None:
        cv.report(
            report, data=data, image_key=image_key, library_key=library_key, table_key=table_key, um_per_px=um_per_px,
            overwrite=overwrite,
        )  # fmt: skip
        typer.echo(f"Report written to {report}: open it in a browser")
    typer.echo(f"Next: stcontrast fit {' '.join(map(str, slides))} --model model_dir --donor-key {donor_key}")


@app.command(epilog="\b\nExample:\n  stcontrast similar new.zarr --model model_dir --out matches.csv --k 3")
def similar(  # noqa: PLR0913
    slide: Store,
    *,
    model: ModelFolder,
    out: Annotated[Path, typer.Option(help="CSV file for the matches.")],
    spots: Annotated[str | None, typer.Option(help="Names of spots separated by commas, or a file with one per line; all by default.")] = None,
    k: Annotated[int, typer.Option(help="Number of training spots to find for each spot.")] = 20,
    by: Annotated[Literal["image", "gene"], typer.Option(help="Find spots that look similar, or that express what the image suggests.")] = "image",
    encoder: ModelEncoder = None,
    standardize: Standardize = "slide",
    table_key: TableKey = None,
    image_key: ImageKey = None,
    library_key: LibraryKey = None,
    um_per_px: UmPerPx = None,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Find the measured training spots that look most similar to the spots of a slide."""
    import stcontrast as stc

    check_out(out, overwrite=overwrite, inputs=[slide])
    matches = stc.tl.find_similar(
        read(slide), stc.models.load(model), spots=listed(spots), k=k, by=by, encoder=one_or_several(encoder),
        standardize=standardize,
        table_key=table_key, image_key=image_key, library_key=library_key, um_per_px=um_per_px,
    )  # fmt: skip
    matches.to_csv(out, index=False)
    typer.echo(f"{len(matches)} matches of {matches['query'].nunique()} spots written to {out}")
    typer.echo("Next: in Python, stc.pl.similar shows the crops of a spot and its matches.")


@app.command(epilog="\b\nExample:\n  stcontrast report model_dir --out report.html")
def report(  # noqa: PLR0913
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    *,
    out: Annotated[Path, typer.Option(help="Web page to write (.html).")],
    data: Annotated[list[Path] | None, typer.Option(help="Store with predictions of the model, for maps; again for several.")] = None,
    label_key: LabelKey = None,
    table_key: TableKey = None,
    image_key: ImageKey = None,
    library_key: LibraryKey = None,
    um_per_px: UmPerPx = None,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Write a web page about a model: its training, and which genes can be trusted. (`evaluate --report` says more.)"""
    import stcontrast as stc

    if not data:
        of_data = {
            "label_key": label_key,
            "table_key": table_key,
            "image_key": image_key,
            "library_key": library_key,
            "um_per_px": um_per_px,
        }
        refuse(of_data, "it is about the stores of --data, and there are none")
    check_out(out, overwrite=overwrite, inputs=data or [])
    stc.models.load(model).report(
        out, [read(path) for path in data] if data else None, label_key=label_key, table_key=table_key, image_key=image_key,
        library_key=library_key, um_per_px=um_per_px, overwrite=overwrite,
    )  # fmt: skip
    typer.echo(f"Report written to {out}: open it in a browser")
    typer.echo("Next: stcontrast evaluate YOUR_SLIDES.zarr --report scores.html compares methods on held-out donors")


@app.command(epilog="\b\nExamples:\n  stcontrast info model_dir\n  stcontrast info train.zarr")
def info(
    path: Annotated[Path, typer.Argument(help="Folder of a saved model, store (.zarr) or AnnData (.h5ad).")],
    *,
    table_key: TableKey = None,
) -> None:
    """Describe a model or a store."""
    from stcontrast._files import holds_model
    from stcontrast.cli._results import about_model, about_slides

    if path.is_dir() and holds_model(path):
        typer.echo(about_model(path))
    else:
        typer.echo(about_slides(read(path), table_key=table_key))
