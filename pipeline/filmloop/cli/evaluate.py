"""`filmloop evaluate`: a model on recorded frames, beside the classical baselines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from filmloop.bootstrap import open_registry, open_site, registry_is_new
from filmloop.cli.options import AsJson, Sets, SiteFile
from filmloop.cli.output import Progress, print_json, print_table, set_up_logs
from filmloop.core.counted import counted
from filmloop.core.errors import DataError
from filmloop.ports.registry import none_yet


def evaluate(
    data: Annotated[str, typer.Option(help="Recorded frames: an HDF5 file, or a folder with sealed shards.")],
    model: Annotated[
        str, typer.Option(help="champion, challenger, a version number, or a bundle's folder.")
    ] = "champion",
    site_file: SiteFile = None,
    sets: Sets = None,
    limit: Annotated[int | None, typer.Option(help="At most this many frames of the file.", min=1)] = None,
    json: AsJson = False,
) -> None:
    """Score a model on the held-out frames of a file: thinned NLL without labels, MSE where the file has labels.

    MSE is taken after a fitted gain and integer bin shift, for the model and each baseline alike.
    """
    set_up_logs(quiet=True)
    from filmloop.adapters.sources.replay import read_labelled
    from filmloop.bundle import RESULT, verify_bundle

    site = open_site(site_file, sets=sets or (), source=f"replay:{data}")
    folder = Path(model)
    in_registry = not os.path.isfile(folder / RESULT)  # says no, too, of a name that no file can have
    if in_registry and ("/" in model or model.startswith(".")):
        raise DataError(
            f"{folder} is no bundle: there is no {RESULT} in it.",
            hint="Name a bundle's folder, as cycles/<cycle_id>/bundle in the state folder, or a version of "
            "`filmloop models list`.",
            ids={"path": str(folder)},
        )
    if in_registry and registry_is_new(site):
        raise none_yet(site.config.registered_model)
    with Progress() as tell:
        tell("read", data)
        counts, labels, pulse_ids = read_labelled(Path(data), limit)
        if not in_registry:
            verify_bundle(folder)
        else:
            from filmloop.shipping import local_bundle

            registry = open_registry(site, start=True, tell=tell)
            tell("fetch", f"{model} of {registry.model}")
            folder = local_bundle(site.home, registry, model)
        from filmloop.training.score import score_frames

        tell("score", f"{counted(len(counts), 'frame')}, held-out ones only")
        measured = score_frames(folder, counts, labels, pulse_ids, site.config.training.holdout)
    scores: dict[str, object] = {"model": model, "data": data, **measured}
    if json:
        print_json(scores)
        return
    rows = [
        (key, "" if value is None else f"{value:.6g}" if isinstance(value, float) else value)
        for key, value in scores.items()
    ]
    print_table("held-out frames only", ("score", "value"), rows)
