"""The certificate that the server shows, checked before anything is started."""

from __future__ import annotations

import ssl
from pathlib import Path

from app.domain.errors import StartRefused
from app.settings import Settings


def certificate_files(settings: Settings) -> dict[str, str]:
    """uvicorn's arguments for TLS; none without a certificate.

    Raises:
        StartRefused: a file is missing, unreadable, encrypted or no PEM, or the key is not the certificate's.
    """
    cert, key = settings.tls_cert, settings.tls_key
    if not cert and not key:
        return {}
    if not cert:
        raise StartRefused("JETFORGE_TLS_KEY is set without JETFORGE_TLS_CERT.", hint="Set both, or neither.")
    _check_readable(cert)
    if key:
        _check_readable(key)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key or None, password=_no_password)
    except ssl.SSLError as error:
        raise StartRefused(
            f"JETFORGE_TLS_CERT and JETFORGE_TLS_KEY do not make a server's certificate: {_reason(error)}.",
            hint="Give the certificate with its chain, and its own private key, as PEM files, the key unencrypted.",
        ) from error
    return {"ssl_certfile": cert, **({"ssl_keyfile": key} if key else {})}


def certificate_pem(settings: Settings) -> tuple[bytes, bytes] | None:
    """Private key, and certificate with its chain, of files that `certificate_files` found good; None: no TLS."""
    if not settings.tls_cert:
        return None
    chain = Path(settings.tls_cert).read_bytes()
    return Path(settings.tls_key).read_bytes() if settings.tls_key else chain, chain


def _check_readable(path: str) -> None:
    try:
        Path(path).open("rb").close()
    except OSError as error:
        raise StartRefused(
            f"The file {path} cannot be read: {error.strerror}.",
            hint="Check JETFORGE_TLS_CERT and JETFORGE_TLS_KEY, and that the service's user may read the files.",
        ) from error


def _no_password() -> str:
    """Asked for an encrypted key; OpenSSL itself would ask at the terminal, and wait."""
    raise StartRefused("The private key is encrypted.", hint="Decrypt it: openssl pkey -in locked.key -out plain.key.")


def _reason(error: ssl.SSLError) -> str:
    if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
        return "the key is not that of the certificate"
    return (error.reason or "no PEM data was found").replace("_", " ").lower()
