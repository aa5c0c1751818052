"""Whom to trust: the certificates of this system, wherever its distribution keeps them."""

import os
from typing import TYPE_CHECKING

from shimmy.errors import PullFailed

if TYPE_CHECKING:
    from ssl import SSLContext

# As Go's crypto/x509 looks for them, with NixOS and Guix.
FILES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch, Gentoo, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL 6
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/pki/tls/cacert.pem",  # OpenELEC
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # RHEL 7 and newer
    "/etc/ssl/cert.pem",  # Alpine, BSDs
    "/etc/ssl/certs/ca-bundle.crt",  # NixOS
    "/run/current-system/profile/etc/ssl/certs/ca-certificates.crt",  # Guix
    "/system/etc/security/cacerts.pem",  # Android's terminals
)
FOLDERS = ("/etc/ssl/certs", "/etc/pki/tls/certs", "/system/etc/security/cacerts")


def context(ca_file: str = "", ca_folder: str = "") -> "SSLContext":
    """Verifies by these, the values of SSL_CERT_FILE and SSL_CERT_DIR, or by the system's where both are ''."""
    import ssl  # unpacks OpenSSL in the frozen file

    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies, and checks the host's name
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(["http/1.1"])
    if ca_file or ca_folder:
        return _with(made, ca_file, ca_folder)
    for path in FILES:
        if os.path.isfile(path):  # noqa: PTH113 - never raises
            return _with(made, path, "")
    for path in FOLDERS:
        if os.path.isdir(path) and os.listdir(path):  # noqa: PTH112, PTH208
            return _with(made, "", path)
    raise PullFailed(
        "this system has no certificates to verify servers with: install its package `ca-certificates`, or name a "
        "file of certificates with SSL_CERT_FILE"
    )


def _with(made: "SSLContext", ca_file: str, ca_folder: str) -> "SSLContext":
    try:
        made.load_verify_locations(ca_file or None, ca_folder or None)
    except OSError as exc:  # also SSLError
        named = " and ".join(filter(None, (ca_file, ca_folder)))
        raise PullFailed(f"no certificates can be read from `{named}`: {exc.strerror or exc}") from exc
    return made
