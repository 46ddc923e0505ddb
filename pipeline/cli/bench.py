"""`voco bench`: measurements that anyone can repeat."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from vococache.pipeline.cli.options import device_option
from vococache.pipeline.cli.terminal import say, say_lines

TABLE = "table.md"


@click.group("bench")
def bench_group() -> None:
    """Repeat what is claimed of the method.

    \b
    Example:
      voco bench retention benchmarks/retention
    """


@bench_group.command("retention")
@click.argument("runs", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--train", is_flag=True, help="Train the runs without weights first; resumes.")
@click.option("--again", is_flag=True, help="Evaluate again what already has a result.")
def retention_command(runs: Path, train: bool, again: bool) -> None:
    """Compare ways of compressing a picture as the paper does: what of full attention's accuracy does each keep?

    RUNS holds a plan.yaml, the base.yaml that its runs change, and the runs' weights and results. Those that have
    weights and no result yet are evaluated; the tables, also written to RUNS/table.md, show the others as gaps.

    \b
    Example:
      voco bench retention benchmarks/retention --again
      voco bench retention benchmarks/retention --train
    """
    from vococache.pipeline.paper.retention import compare
    from vococache.pipeline.paper.retention_tables import tables

    plan = compare(runs, train=train, again=again, say=lambda line: say(line, err=True))
    text, values = tables(plan)
    (runs / TABLE).write_text(text)
    say_lines(text)
    click.echo(json.dumps({"benchmark": "retention", **values}))


@bench_group.command("efficiency")
@click.option("--size", type=click.Choice(["7b", "small"]), default="7b", show_default=True, help="Model size.")
@click.option(
    "--segments", type=click.IntRange(1), multiple=True, help="Frames to measure at.  [default: 1, 16, 64, 256, 1024]"
)
@device_option
def efficiency_command(size: str, segments: tuple[int, ...], device: str | None) -> None:
    """Time, FLOPs and bytes of an answer without cache, with all vision tokens cached, and with VoCo caches.

    The paper's Table 7, on this machine and over any number of frames, with random weights: "7b" is CLIP-L/14 at 336
    pixels and Vicuna-7B. What does not fit into memory is said and left out.

    \b
    Example:
      voco bench efficiency
      voco bench efficiency --size small --segments 1 --segments 16
    """
    from vococache.pipeline.paper.efficiency import SEGMENTS, build, measure, table

    model, costs = build(size, device), []
    for cost in measure(model, segments or SEGMENTS):
        # At once, so that a run that is cut off has left what it found.
        click.echo(json.dumps({"benchmark": "efficiency", "size": size, "cost": asdict(cost)}), err=True)
        costs.append(cost)
    text, values = table(costs, model.device)
    say_lines(text)
    click.echo(json.dumps({"benchmark": "efficiency", "size": size, **values}))


COMMANDS = (bench_group,)
