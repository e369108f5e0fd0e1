"""Sockets that serve listens on itself, bound before anything starts."""

from __future__ import annotations

import socket

from nereid.serving.errors import ServingError


def listen(option: str, host: str, port: int, backlog: int) -> socket.socket:
    """A listening socket; raises ServingError that names the option where the port cannot be had."""
    listener = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(backlog)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise ServingError(f"{option}: port {port} on {host} cannot be used ({error.strerror})") from None
    listener.setblocking(False)
    return listener
