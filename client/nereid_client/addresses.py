"""Where servers are: the forms of an address that a caller may give."""

from __future__ import annotations

import http.client
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

_HOST = re.compile(r"[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]")
_NAMES = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds|google-c2p):")
"""How gRPC's own names begin (its documentation, "Name Resolution")."""


class AddressError(ValueError):
    """What was given is no address; one sentence, in which the option is not named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAddress:
    """A server with OpenAI's API. `prefix` stands before its own paths, which begin with /v1."""

    secure: bool
    host: str
    prefix: str

    @classmethod
    def of(cls, url: str) -> HttpAddress:
        """`host:port`, or an address with http or https, which may end in /v1; raises AddressError."""
        refused = AddressError(f"{url!r} is not allowed; it must be host:port, or http(s)://host[:port][/v1]")
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            (parts.hostname or "").encode("idna")
            found = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
        except ValueError:  # a host or a port that is none
            raise refused from None
        if not found or not parts.path.isascii() or parts.query or parts.fragment:
            raise refused
        return cls(secure=parts.scheme == "https", host=parts.netloc, prefix=parts.path.rstrip("/").removesuffix("/v1"))

    def connection(self, timeout: float) -> http.client.HTTPConnection:
        """Not connected yet."""
        make = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        return make(self.host, timeout=timeout)


def is_own_time(error: TimeoutError) -> bool:
    """Whether the caller's own seconds have passed; the system gives a connection up with the same type, and a number."""
    return error.errno is None


def why(error: Exception) -> str:
    """What the operating system, or the library, says of a connection that failed, without its number."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def triton_address(url: str, usual_port: int, *, path: bool) -> str:
    """`host:port` of a Triton; the usual port where a host stands alone, and with `path` one behind it.

    gRPC's names (dns:///..., unix:...) stay as they are. Raises AddressError.
    """
    if re.match(r"(https?|grpcs?)://", url) or not url.strip() or (not path and "/" in url and not _NAMES.match(url)):
        raise AddressError(f"{url!r} is not allowed; it must be host:port")
    host, slash, rest = url.partition("/")
    return f"{host}:{usual_port}{slash}{rest}" if _HOST.fullmatch(host) else url
