"""``optiq generate``: one completion, streamed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

import click

from optiq_daemon.cli import output
from optiq_daemon.cli.options import Connection, complete_adapter, connection_options, json_option

if TYPE_CHECKING:
    from optiq_client import Generation


@click.command(
    epilog='\b\nExamples:\n  optiq generate "Say hello."\n'
    '  optiq generate --adapter roman "What is 12 in Roman numerals?"\n'
    "  git diff | optiq generate --adapter reviewer --max-tokens 200 -\n"
    '  optiq generate --adapter roman --temperature 0.7 --seed 1 --json "What is 12?"\n'
    '  optiq generate --adapter polite=0.7 --adapter pirate=0.3 "Where is the harbour?"\n'
    '  optiq generate --json-schema ./city.schema.json "Name a city in France."'
)
@click.argument("prompt", required=False)
@click.option(
    "--adapter",
    "-a",
    "adapters",
    multiple=True,
    metavar="NAME[=WEIGHT]",
    shell_complete=complete_adapter,
    help="Adapter, or adapter@digest; the bare base if not given. More than one, or a weight, blends their effects.",
)
@click.option("--route", default="", help="Route, in place of an adapter.")
@click.option("--sticky-key", default="", help="Same key: same target of a sticky route.")
@click.option("--adapter-scale", type=float, help="Factor on the adapter's effect [1].")
@click.option("--system", help="System message.")
@click.option("--raw", is_flag=True, help="Give the prompt to the model as it is, without the chat template.")
@click.option("--max-tokens", "-n", type=click.IntRange(min=1), help="Tokens to generate at most.")
@click.option("--temperature", "-t", type=float, help="0 is greedy [0].")
@click.option("--top-p", type=float, help="Nucleus mass.")
@click.option("--top-k", type=int, help="Most likely tokens to keep.")
@click.option("--min-p", type=float, help="Smallest probability relative to the most likely token.")
@click.option("--seed", type=int, help="Same seed, prompt and adapter: same text.")
@click.option("--stop", multiple=True, help="End before this text; may be given more than once.")
@click.option(
    "--json-schema",
    type=click.File(encoding="utf-8"),
    help="The answer keeps to the JSON schema in this file; - is stdin.",
)
@click.option("--timeout", type=float, help="Seconds for the whole generation.")
@click.option("--verbose", "-v", is_flag=True, help="Say on stderr what served it, and how fast.")
@connection_options
@json_option
def generate(
    *,
    prompt: str | None,
    adapters: tuple[str, ...],
    route: str,
    sticky_key: str,
    adapter_scale: float | None,
    system: str | None,
    raw: bool,
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    min_p: float | None,
    seed: int | None,
    stop: tuple[str, ...],
    json_schema: TextIO | None,
    timeout: float | None,
    verbose: bool,
    connection: Connection,
    as_json: bool,
) -> None:
    """Generate text with an adapter.

    PROMPT - reads stdin. Ctrl-C cancels.
    """
    if system and raw:
        raise click.UsageError("--system needs the chat template, which --raw leaves out")
    adapter, blend = _parse_adapters(adapters)
    text = _read_prompt(prompt)
    from optiq_client import Message, OptiqClientError

    conversation = [Message("system", system), Message("user", text)] if system else None

    with (
        connection.client() as client,
        client.generate(
            conversation or text,
            adapter=adapter,
            adapters=blend,
            adapter_scale=adapter_scale,
            raw=raw,
            max_tokens=max_tokens or 0,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            seed=seed,
            stop=stop,
            route=route,
            sticky_key=sticky_key,
            json_schema=json_schema.read() if json_schema is not None else "",
            timeout=timeout,
        ) as generation,
    ):
        try:
            for piece in generation:
                if not as_json:
                    click.echo(piece, nl=False)
        except (KeyboardInterrupt, OptiqClientError):
            if not as_json and generation.text:
                click.echo()
            raise
        if as_json:
            output.print_json(_as_dict(generation))
        else:
            click.echo()
        if verbose:
            output.note(_summary(generation))


def _parse_adapters(given: tuple[str, ...]) -> tuple[str, dict[str, float]]:
    """The one adapter that was named, or the blend."""
    if len(given) <= 1 and "=" not in "".join(given):
        return "".join(given), {}
    blend: dict[str, float] = {}
    for text in given:
        name, equals, weight = text.partition("=")
        if name in blend:
            raise click.UsageError(f"--adapter {name} is given twice; add the weights")
        try:
            blend[name] = float(weight) if equals else 1.0
        except ValueError:
            raise click.UsageError(f"--adapter {text}: the weight must be a number, as in {name}=0.5") from None
    return "", blend


def _read_prompt(prompt: str | None) -> str:
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise click.UsageError("give a prompt, or - to read it from stdin")
    text = sys.stdin.read()
    if not text.strip():
        raise click.UsageError("the prompt on stdin is empty")
    return text


def _as_dict(generation: Generation) -> dict[str, object]:
    return {
        "text": generation.text,
        "token_ids": generation.token_ids,
        "started": generation.started,
        "finished": generation.finished,
    }


def _summary(generation: Generation) -> str:
    from optiq_client import humanize

    started, finished = generation.started, generation.finished
    if started is None or finished is None:
        return "the stream ended early"
    who = " + ".join(
        f"{'' if part.weight == 1 else f'{part.weight:g} * '}"
        f"{part.name.rpartition('/')[2]}@{humanize.short_digest(part.digest)}"
        for part in started.adapters
    )
    return (
        f"{who or 'base'}: {finished.usage.prompt_tokens} prompt tokens ({finished.usage.cached_tokens} cached), "
        f"{finished.usage.completion_tokens} generated, {finished.reason.lower()}; "
        f"first token after {finished.timings.time_to_first_token_ms:.0f} ms, "
        f"{finished.timings.tokens_per_second:.1f} tokens/s; "
        f"beside up to {finished.batch.max_rows} rows and {finished.batch.max_adapters} adapters"
    )
