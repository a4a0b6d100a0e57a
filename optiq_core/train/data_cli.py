"""``optiq data``: look at training data before training on it. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json

import click

from optiq_core.errors import OptiqError


@click.group(epilog="\b\nExamples:\n  optiq data check ./my-data\n  optiq data check ./my-data --base ./my-base --json")
def data() -> None:
    """Check training data before training on it."""


@data.command(epilog="\b\nExamples:\n  optiq data check ./my-data\n  optiq data check ./my-data --max-seq-length 512")
@click.argument("folder")
@click.option("--base", default="embedded", show_default=True, help="Whose tokenizer and chat template count.")
@click.option("--max-seq-length", default=2048, show_default=True, help="Tokens; what training would cut to.")
@click.option("--mask-prompt/--no-mask-prompt", default=None, help="As in training.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def check(folder: str, base: str, max_seq_length: int, mask_prompt: bool | None, as_json: bool) -> None:
    """Count examples and tokens in FOLDER, a file or a hub id; find what would be cut, dropped, or is there twice.

    Exit code 1 if a line cannot be read or no example could be trained on.
    """
    from optiq_core.train.records import check_data

    try:
        check_data(folder)
        from optiq_core.base.device import setup_device

        setup_device()
        from mlx_lm.utils import load_tokenizer

        from optiq_core.base.loader import resolve_base
        from optiq_core.train.survey import survey_folder

        path = resolve_base(base, progress=lambda message: click.echo(message, err=True))
        surveys = survey_folder(folder, load_tokenizer(path), max_seq_length=max_seq_length, mask_prompt=mask_prompt)
    except OptiqError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps({"base": path.name, "files": [survey.as_dict() for survey in surveys]}, indent=2))
    else:
        click.echo("\n".join(survey.as_text(max_seq_length) for survey in surveys))
    if not surveys[0].trained:
        raise click.ClickException(f"{folder}: no example has a token to train on")
