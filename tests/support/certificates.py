"""A certificate for TLS, made on the spot, for a server called ``localhost``."""

from __future__ import annotations

import ssl
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["tls_contexts"]


@cache
def tls_contexts(
    kind: type[ssl.SSLContext] = ssl.SSLContext,
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a server, and of a client that trusts it alone.

    Arguments:
        kind: their class, for that of gevent.
    """
    with TemporaryDirectory(prefix="xsproto-") as directory:
        key, certificate = Path(directory, "key.pem"), Path(directory, "certificate.pem")
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        files = ["-keyout", str(key), "-out", str(certificate)]
        subprocess.run([*command.split(), *subject, *files], check=True, capture_output=True)
        server = kind(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(certificate, key)
        client = kind(ssl.PROTOCOL_TLS_CLIENT)
        client.load_verify_locations(certificate)
    return server, client
