"""HTTPS: the certificate and its key, checked before anything else is done with them."""

import ssl
from pathlib import Path

from export.errors import UsageError
from serve.settings import ServeSettings


class TlsError(UsageError):
    """A certificate and a key that cannot serve."""


def tls_context(settings: ServeSettings) -> ssl.SSLContext | None:
    """The context of every TLS connection, for TLS 1.2 and newer; None when the settings name neither file.

    Raises TlsError when one of them is missing, unreadable, not PEM, encrypted, or does not belong to the other.
    """
    certificate, key = settings.tls_cert, settings.tls_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        missing = "--tls-cert" if certificate is None else "--tls-key"
        raise TlsError(f"a certificate and its key go together; give {missing}, too")
    for option, path in (("--tls-cert", certificate), ("--tls-key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise TlsError(f"{option} {path}: {error.strerror}; name a PEM file that this user may read") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, certificate, key)
    return context


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    encrypted = False

    def no_password() -> str:
        # Without this callback OpenSSL would ask for the password at the terminal.
        nonlocal encrypted
        encrypted = True
        return ""

    try:
        context.load_cert_chain(certificate, key, no_password)
    except ssl.SSLError as error:
        raise TlsError(_what_is_wrong(error, certificate, key, encrypted=encrypted)) from error


def _what_is_wrong(error: ssl.SSLError, certificate: Path, key: Path, *, encrypted: bool) -> str:
    if encrypted:
        return f"--tls-key {key} is encrypted; decrypt it: openssl pkey -in {key} -out plain.pem"
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"--tls-key {key} is not the key of --tls-cert {certificate}; give a certificate and its own key"
    return (
        f"no PEM certificate with its private key in {certificate} and {key} ({error.reason or 'unreadable'}); "
        "give the chain to --tls-cert and the key to --tls-key"
    )
