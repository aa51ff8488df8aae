"""The certificates of the tests: one authority, servers that it vouches for, clients that trust it."""

from __future__ import annotations

import ssl
from typing import Any

import trustme

AUTHORITY = trustme.CA()
PEM: bytes = AUTHORITY.cert_pem.bytes()
NAMES = ("localhost", "127.0.0.1")


def server_context(*names: str, **options: Any) -> ssl.SSLContext:
    """Make a server's context, whose certificate is for these names or, without any, for :data:`NAMES`.

    :param options: of ``trustme.CA.issue_cert``
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(*names or NAMES, **options).configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    """Make the context of a client that trusts the authority."""
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context
