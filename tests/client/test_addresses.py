"""Addresses of servers as callers write them, and what is said where nobody answers."""

from __future__ import annotations

import asyncio

import pytest
from typer.testing import CliRunner

from nereid.serving.options import free_ports
from nereid_client import AsyncClient, Client, ConnectionLostError, InvalidRequestError
from nereid_client.addresses import AddressError, HttpAddress, triton_address
from nereid_client.main import app


def free_port() -> int:
    """One that nobody gets meanwhile."""
    (port,) = free_ports(1)
    return port


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ("127.0.0.1", "127.0.0.1:8001"),
        ("host.example", "host.example:8001"),
        ("[::1]", "[::1]:8001"),
        ("host.example:9000", "host.example:9000"),
        ("dns:///host.example:9000", "dns:///host.example:9000"),
        ("unix:/run/triton.sock", "unix:/run/triton.sock"),
        ("grpc:8001", "grpc:8001"),  # a service's name in compose files
    ],
)
def test_a_host_alone_has_tritons_usual_port_and_names_of_grpc_stay(given: str, known: str) -> None:
    assert triton_address(given, 8001, path=False) == known


def test_over_http_a_path_may_stand_behind_the_host() -> None:
    assert triton_address("host.example/triton", 8000, path=True) == "host.example:8000/triton"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8001", "https://host", "grpc://host:8001", "127.0.0.1:8001/v1", "localhost:8001/v1", "", " "]
)
def test_what_is_no_address_of_a_triton_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^url: '.*' is not allowed; it must be host:port$"):
        Client(url)


@pytest.mark.parametrize("url", ["ftp://host", "127.0.0.1:x", "http://", "http://user@host", "http://host/?a=1"])
def test_what_is_no_address_of_openais_api_is_refused(url: str) -> None:
    with pytest.raises(AddressError, match=r"is not allowed; it must be host:port, or http"):
        HttpAddress.of(url)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_where_nobody_listens_the_sentence_names_the_address_alone(protocol: str) -> None:
    url = f"127.0.0.1:{free_port()}"
    said = rf"^no server answers at {url} \(Connection refused\)$"
    with Client(url, protocol=protocol, retries=0) as client, pytest.raises(ConnectionLostError, match=said) as failed:
        client.generate_text("hello")
    assert not failed.value.sent


def test_the_same_from_an_event_loop() -> None:
    async def ask(url: str) -> None:
        async with AsyncClient(url, retries=0) as client:
            await client.generate_text("hello")

    url = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionLostError, match=rf"^no server answers at {url} \(Connection refused\)$"):
        asyncio.run(ask(url))


def test_a_host_without_a_number_is_one_that_does_not_answer() -> None:
    with Client("nobody.invalid:8001", retries=0) as client, pytest.raises(ConnectionLostError) as failed:
        client.generate_text("hello")
    assert str(failed.value).startswith("no server answers at nobody.invalid:8001 (")
    assert not failed.value.sent


def test_chat_takes_the_address_that_openais_clients_take() -> None:
    port = free_port()
    made = CliRunner().invoke(app, ["chat", "hello", "--url", f"http://127.0.0.1:{port}/v1"])
    assert made.exit_code == 1
    assert "error: no gateway answers at" in made.output
    made = CliRunner().invoke(app, ["chat", "hello", "--url", "127.0.0.1:port"])
    assert made.exit_code == 1
    assert "error: url: '127.0.0.1:port' is not allowed; it must be host:port, or" in made.output
