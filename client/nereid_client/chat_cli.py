"""`nereid chat`: a conversation with a served model, on a terminal."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from nereid_client.chat import Chat
from nereid_client.errors import NereidError
from nereid_client.terminal import say_error


def chat(
    message: Annotated[str | None, typer.Argument(help="One message; without it, a conversation until Ctrl-D.")] = None,
    url: Annotated[
        str, typer.Option(help="`nereid serve --openai-port`: host:port, or an address with http or https, like https://host/v1.")
    ] = "127.0.0.1:8080",
    model: Annotated[str, typer.Option(help="The model's name, as `/v1/models` lists it.")] = "llm",
    system: Annotated[str | None, typer.Option(help="A system message before the first turn.", show_default="none")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest token.", show_default="1")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of one answer.", show_default="what the context holds")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer again.", show_default="random")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that the server may be silent.", min=0.1)] = 600.0,
) -> None:
    """Talk with a served language model; answers appear as they are written, Ctrl-C stops one. The key is NEREID_API_KEY."""
    options = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    talk = Chat(
        url,
        model,
        os.environ.get("NEREID_API_KEY", ""),
        {name: value for name, value in options.items() if value is not None},
        timeout,
        messages=[{"role": "system", "content": system}] if system else [],
    )
    if message is not None:
        if not _answer(talk, message):
            raise typer.Exit(1)
        return
    while True:
        try:
            said = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if said.strip():
            _answer(talk, said)


def _answer(talk: Chat, said: str) -> bool:
    """Print one answer; False where it failed."""
    try:
        for piece in talk.say(said):
            print(piece, end="", flush=True)
        print()
    except KeyboardInterrupt:
        print(" (stopped)")
    except NereidError as error:
        say_error(error)
        return False
    return True
