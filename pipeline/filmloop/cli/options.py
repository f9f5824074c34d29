"""Options that most commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SiteFile = Annotated[
    Path | None,
    typer.Option("--site", help="Site file. Default: FILMLOOP_SITE, else site_configs/local.toml.", metavar="FILE"),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override one key of the site file, e.g. training.hyper.train_s=20.", metavar="KEY=VALUE"
    ),
]
Source = Annotated[
    str,
    typer.Option(
        "--source",
        help="Frames: simulator, replay:FILE (CookieNetAE or CookieSimSlim HDF5, or shards), zeromq:ADDRESS or "
        "pvaccess:CHANNEL; more keys of [source] behind a ?.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; logs go to stderr.")]
