"""`filmloop shards`: what is staged, and whether it is whole."""

from __future__ import annotations

from typing import Annotated

import typer

from filmloop.bootstrap import Site, open_ledger, open_site
from filmloop.cli.options import AsJson, Sets, SiteFile
from filmloop.cli.output import out, print_json, print_table, set_up_logs
from filmloop.core.counted import counted
from filmloop.core.errors import ConfigError, DataError

app = typer.Typer(help="Staged shards.", no_args_is_help=True)
Stream = Annotated[str, typer.Option(help="Only this stream.")]


@app.command("list")
def list_shards(site_file: SiteFile = None, sets: Sets = None, stream: Stream = "", json: AsJson = False) -> None:
    """List the sealed shards with frames, pulse ids, size and state."""
    set_up_logs(quiet=True)
    from filmloop.staging.catalog import sealed_shards

    site = open_site(site_file, sets=sets or ())
    _require_stream(site, stream)
    with open_ledger(site, read_only=True) as ledger:
        states = ledger.shard_states()
    shards = [
        {
            "shard_id": shard.manifest.shard_id,
            "frames": shard.manifest.frames,
            "first_pulse_id": shard.manifest.first_pulse_id,
            "last_pulse_id": shard.manifest.last_pulse_id,
            "size_bytes": shard.manifest.size_bytes,
            "sealed_utc": shard.manifest.sealed_utc,
            "model_versions": shard.manifest.model_versions,
            "state": states.get(shard.manifest.shard_id, "dark" if shard.manifest.is_dark else "sealed"),
        }
        for shard in sealed_shards(site.home.stage, stream or None)
    ]
    if json:
        print_json({"shards": shards})
        return
    columns = ("shard_id", "frames", "first_pulse_id", "last_pulse_id", "MB", "state", "sealed_utc")
    rows = [[f"{s['size_bytes'] / 1e6:.1f}" if c == "MB" else s[c] for c in columns] for s in shards]  # type: ignore[operator]
    print_table(f"{counted(len(shards), 'sealed shard')} in {site.home.stage}", columns, rows)


@app.command("verify")
def verify(site_file: SiteFile = None, sets: Sets = None, stream: Stream = "", json: AsJson = False) -> None:
    """Read every byte of every shard and compare it with its manifest. Exit code 5 if one is damaged.

    A shard that a cycle had set aside as damaged, and that is whole again, takes part in the next cycle.
    """
    set_up_logs(quiet=True)
    from filmloop.staging.catalog import damaged, sealed_shards
    from filmloop.staging.verify import verify_shard

    site = open_site(site_file, sets=sets or ())
    _require_stream(site, stream)
    bad = {str(path): "the manifest cannot be read" for path in damaged(site.home.stage, stream or None)}
    unreadable = len(bad)
    shards = sealed_shards(site.home.stage, stream or None)
    with open_ledger(site) as ledger:
        for shard in shards:
            try:
                verify_shard(shard.manifest_path)
            except DataError as exc:
                if shard.manifest_path.exists():  # else retention removed it while we read
                    bad[shard.shard_id] = exc.message
            else:
                ledger.take_back(shard.shard_id)
    total = len(shards) + unreadable
    if json:
        print_json({"shards": total, "whole": total - len(bad), "damaged": bad})
    else:
        out.print(f"{counted(total, 'shard')} read, {len(bad)} damaged")
        for name, why in bad.items():
            out.print(f"  {name}: {why}", markup=False)
    if bad:
        raise typer.Exit(DataError.exit_code)


def _require_stream(site: Site, stream: str) -> None:
    """See that there is such a stream; the site's own may have no shard yet.

    Raises:
        ConfigError: there is none.
    """
    from filmloop.staging.layout import streams

    if not stream or stream in (known := streams(site.home.stage)) or stream == site.stream:
        return
    there = f"the streams there are {', '.join(known)}" if known else "no stream is there yet"
    raise ConfigError(
        f"There is no stream {stream!r} in {site.home.stage}; {there}.",
        hint="`filmloop shards list` without --stream lists the shards of all.",
        ids={"path": str(site.home.stage)},
    )
