"""`filmloop simulate`: frames of the simulated detector, with their truth, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from filmloop.bootstrap import open_site
from filmloop.cli.options import AsJson, Sets, SiteFile
from filmloop.cli.output import out, print_json, set_up_logs
from filmloop.core.counted import counted
from filmloop.core.errors import ConfigError


def simulate(
    target: Annotated[Path, typer.Argument(help="HDF5 file to write (Ximg counts, Ypdf truth, pulse parameters).")],
    frames: Annotated[int, typer.Option(help="Number of frames.", min=1)] = 2000,
    first: Annotated[
        int, typer.Option(help="Number of the first frame: where on the drift schedule.", min=0, max=10**15)
    ] = 0,
    site_file: SiteFile = None,
    sets: Sets = None,
    json: AsJson = False,
) -> None:
    """Write simulated frames with their truth; `filmloop retrain --source replay:FILE` and `evaluate` read them back."""
    set_up_logs(quiet=True)
    from filmloop.adapters.sources.write_simulated import write_simulated
    from filmloop.config.schema import SimulatorSource

    site = open_site(site_file, sets=sets or ())
    if not isinstance(site.config.source, SimulatorSource):
        raise ConfigError(
            "This site's source is not the simulator.",
            hint="Name a site with a simulated source, e.g. --site site_configs/local.toml.",
        )
    written = write_simulated(target, site.config.source, site.config.frame_shape, first=first, frames=frames)
    if json:
        print_json(written)
    else:
        out.print(f"{counted(frames, 'frame')} in {target} ({written['hits_per_frame']:.0f} hits a frame)")
