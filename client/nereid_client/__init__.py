"""The SDK: typed image, text, layout and page requests to a Nereid server over gRPC or HTTP, sync or async, with progress.

from nereid_client import Client

with Client("127.0.0.1:8001") as client:
    result = client.generate_image("a red circle above a blue square", seed=7)
    result.image.save("out.png")
"""

from nereid_client.async_client import AsyncClient
from nereid_client.client import Client, PendingImage
from nereid_client.embeddings import EmbeddingResult
from nereid_client.errors import (
    CancelledError,
    ConnectionLostError,
    ContextLengthError,
    DeadlineExceededError,
    InvalidRequestError,
    LostError,
    NereidError,
    NotReadyError,
    QueueFullError,
    ServerError,
    UnavailableError,
    UnhealthyError,
    UnsupportedError,
)
from nereid_client.images import ImageProgress, ImageRequest, ImageResult
from nereid_client.layouts import LayoutProgress, LayoutRequest, LayoutResult, PlacedElement
from nereid_client.options import Protocol, Tls
from nereid_client.pages import PageProgress, PageRequest, PageResult
from nereid_client.texts import TextChoice, TextDelta, TextResult

__all__ = [
    "AsyncClient",
    "CancelledError",
    "Client",
    "ConnectionLostError",
    "ContextLengthError",
    "DeadlineExceededError",
    "EmbeddingResult",
    "ImageProgress",
    "ImageRequest",
    "ImageResult",
    "InvalidRequestError",
    "LayoutProgress",
    "LayoutRequest",
    "LayoutResult",
    "LostError",
    "NereidError",
    "NotReadyError",
    "PageProgress",
    "PageRequest",
    "PageResult",
    "PendingImage",
    "PlacedElement",
    "Protocol",
    "QueueFullError",
    "ServerError",
    "TextChoice",
    "TextDelta",
    "TextResult",
    "Tls",
    "UnavailableError",
    "UnhealthyError",
    "UnsupportedError",
]
