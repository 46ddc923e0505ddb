"""`voco bench`: measurements that anyone can repeat."""

import json
from pathlib import Path

import click

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
@click.option("--train", is_flag=True, help="First train what has no weights; an interrupted run goes on.")
@click.option("--again", is_flag=True, help="Evaluate also what has a result.")
def retention_command(runs: Path, train: bool, again: bool) -> None:
    """Compare ways of compressing a picture as the paper does: what of full attention's accuracy does each keep?

    RUNS holds a plan.yaml, the base.yaml that its runs change, and the runs' weights and results. Those that have
    weights and no result yet are evaluated; the tables, also written to RUNS/table.md, show the others as gaps.

    \b
    Example:
      voco bench retention benchmarks/retention --again
      voco bench retention benchmarks/retention --train
    """
    from vococache.pipeline.comparison import compare
    from vococache.pipeline.comparison_table import tables

    plan = compare(runs, train=train, again=again, say=lambda line: click.echo(line, err=True))
    text, values = tables(plan)
    (runs / TABLE).write_text(text)
    click.echo(text)
    click.echo(json.dumps({"benchmark": "retention", **values}))


COMMANDS = (bench_group,)
