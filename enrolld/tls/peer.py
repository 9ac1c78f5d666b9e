"""Who is at the other end of a TLS connection, as the handshake proved it."""

from dataclasses import dataclass

from OpenSSL import SSL, crypto

# "The label is 'EXPORTER-Channel-Binding', the context is empty, 32 bytes" -- RFC 9266 2
_EXPORTER_LABEL = b"EXPORTER-Channel-Binding"
_EXPORTER_LENGTH = 32


@dataclass(frozen=True, slots=True)
class TlsPeer:
    """The peer of a finished handshake."""

    chain: tuple[bytes, ...]
    """The client's certificates in DER, in the order it sent them, its own first; empty when it sent none.

    Nothing here has been judged, only possession of the first certificate's key has been proven.
    """

    version: str
    """"TLSv1.2" or "TLSv1.3"."""

    cipher: str
    """OpenSSL's name of the cipher suite, such as "TLS_AES_256_GCM_SHA384"."""

    group: str | None
    """OpenSSL's name of the key exchange group, such as "X25519MLKEM768"."""

    server_name: str | None
    """The name in the peer's SNI, in lower case, or None."""

    tls_unique: bytes | None
    """RFC 5929 3: the client's Finished of the full handshake. None on TLS 1.3, which does not define it."""

    tls_exporter: bytes | None
    """RFC 9266: 32 bytes. None on TLS 1.2, where it would need the extended master secret."""


def sent_chain(connection: SSL.Connection) -> tuple[bytes, ...]:
    """The peer's certificates in DER as they were sent, leaf first; empty without one."""
    leaf = connection.get_peer_certificate()
    if leaf is None:
        return ()
    # On the server side OpenSSL leaves the leaf out of the chain.
    certificates = [leaf, *(connection.get_peer_cert_chain() or ())]
    return tuple(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate) for certificate in certificates)


def describe_peer(connection: SSL.Connection, chain: tuple[bytes, ...], server_name: str | None) -> TlsPeer:
    """What a finished handshake says about the peer."""
    version = connection.get_protocol_version_name()
    is_tls13 = version == "TLSv1.3"
    return TlsPeer(
        chain=chain,
        version=version,
        cipher=connection.get_cipher_name() or "",
        group=connection.get_group_name(),
        server_name=server_name,
        tls_unique=None if is_tls13 else connection.get_peer_finished(),
        tls_exporter=(connection.export_keying_material(_EXPORTER_LABEL, _EXPORTER_LENGTH, b"") if is_tls13 else None),
    )
