"""`transfer choose-layer` and `transfer skew`: measurements on the stream that decide how to
publish. Each runs `bench/transfer_NAME.py` in a process of its own, so that this one needs no
torch."""

from __future__ import annotations

from pathlib import Path

import typer

from runtime.verbs.study import RESUME_HELP, ROOT, run_script

app = typer.Typer(help="Measure what published vectors are worth downstream.", no_args_is_help=True)
_SEEDS = typer.Option(5, "--seeds", min=1, help="Runs per arm.")
_QUICK = typer.Option(False, "--quick", help="A small stream: proves that it runs.")
_OUT = typer.Option(
    ROOT / "docs" / "studies",
    "--out",
    show_default="docs/studies",
    help="Where table and plot go.",
)
_RESUME = typer.Option(False, "--resume", help=RESUME_HELP)
_JSON = typer.Option(False, "--json", help="Print the result, too.")


@app.command("choose-layer")
def choose_layer(
    seeds: int = _SEEDS,
    quick: bool = _QUICK,
    out: Path = _OUT,
    as_json: bool = _JSON,
    resume: bool = _RESUME,
) -> None:
    """Which layer to publish as CR: downstream AUC on the stream for every layer, and the best."""
    run_script(
        "transfer_choose_layer",
        "choose_layer",
        seeds,
        quick=quick,
        out=out,
        show=as_json,
        resume=resume,
    )


@app.command()
def skew(
    seeds: int = _SEEDS,
    quick: bool = _QUICK,
    out: Path = _OUT,
    as_json: bool = _JSON,
    resume: bool = _RESUME,
) -> None:
    """One side fixed, the other swept: AUC and cosine drift, in a free and an anchored basis."""
    run_script("transfer_skew", "skew", seeds, quick=quick, out=out, show=as_json, resume=resume)
