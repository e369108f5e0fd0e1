"""The SDK under the name that users type: `from nereid.client import Client`; everything lives in nereid_client."""

from nereid_client import *  # noqa: F403
from nereid_client import __all__ as __all__
