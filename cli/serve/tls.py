"""TLS of both APIs, from certificate files."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from ...protos.errors import FailedPrecondition, InvalidArgument
from ...protos.hosts import canonical

__all__ = ["Tls"]


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificate chain, private key and, where clients must show a certificate, who may have signed it. All PEM."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    @classmethod
    def of(cls, cert: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
        """What the options ask for; None without them. Raises for half of a pair, and for files that cannot be used."""
        if cert is None and key is None and client_ca is None:
            return None
        if cert is None or key is None:
            raise InvalidArgument("TLS needs both --tls-cert and --tls-key (and --tls-client-ca only with them)")
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(cert, key)
            if client_ca is not None:
                context.load_verify_locations(client_ca)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(str(path) for path in (cert, key, client_ca) if path is not None)
            raise FailedPrecondition(f"the TLS files cannot be used ({error}): {files}") from None
        return cls(cert, key, client_ca)

    def names(self) -> tuple[str, ...]:
        """Names and addresses that the certificate is for, canonical; `*.lab` among them. Raises FailedPrecondition."""
        from cryptography import x509  # takes a moment, and most servers here have no certificate

        try:
            certificate = x509.load_pem_x509_certificate(self.cert.read_bytes())
            found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return ()
        except ValueError as error:
            raise FailedPrecondition(f"the certificate {self.cert} cannot be read: {error}") from None
        addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
        return tuple(map(canonical, [*found.get_values_for_type(x509.DNSName), *addresses]))

    def credentials(self) -> grpc.ServerCredentials:
        """For gRPC."""
        return grpc.ssl_server_credentials(
            [(self.key.read_bytes(), self.cert.read_bytes())],
            root_certificates=self.client_ca.read_bytes() if self.client_ca else None,
            require_client_auth=self.client_ca is not None,
        )

    def options(self) -> dict[str, Any]:
        """For uvicorn."""
        options: dict[str, Any] = {"ssl_certfile": str(self.cert), "ssl_keyfile": str(self.key)}
        if self.client_ca is not None:
            options |= {"ssl_ca_certs": str(self.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
        return options
