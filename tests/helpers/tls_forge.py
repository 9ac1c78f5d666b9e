"""Records that no client's library would send: a session's own keys, used by hand after an ordinary handshake."""

import contextlib
import hmac
import socket
import struct
from collections.abc import Iterator

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from OpenSSL import SSL

from tests.helpers.tls_pki import connect

CLIENT_HELLO, NEW_SESSION_TICKET, CERTIFICATE, KEY_UPDATE = 1, 4, 11, 24
"""Handshake types (RFC 8446 4)."""

_CIPHERS = {SSL.TLS1_2_VERSION: b"ECDHE-ECDSA-AES256-GCM-SHA384", SSL.TLS1_3_VERSION: b"TLS_AES_256_GCM_SHA384"}
_KEY, _IV, _SALT = 32, 12, 4  # bytes, of AES-256-GCM


def handshake_message(kind: int, body: bytes = b"") -> bytes:
    """A handshake message with its header."""
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


class Forger:
    """The client's side of a connection whose handshake is finished."""

    def __init__(self, tcp: socket.socket, connection: SSL.Connection, secret: bytes) -> None:
        self.tcp = tcp
        self._is_tls13 = connection.get_protocol_version() == SSL.TLS1_3_VERSION
        self._secret = secret
        if self._is_tls13:
            self._number = 0
            self._use_secret()
        else:
            server_random, client_random = connection.server_random(), connection.client_random()
            assert server_random is not None
            assert client_random is not None
            seed = b"key expansion" + server_random + client_random
            block = _prf(secret, seed, 2 * (_KEY + _SALT))
            self._aead, self._iv = AESGCM(block[:_KEY]), block[2 * _KEY : 2 * _KEY + _SALT]
            self._number = 1  # Finished was 0

    def record(self, content_type: int, content: bytes) -> bytes:
        """One encrypted record."""
        number = self._number.to_bytes(8, "big")
        self._number += 1
        if self._is_tls13:
            header = b"\x17\x03\x03" + struct.pack(">H", len(content) + 1 + 16)
            nonce = bytes(a ^ b for a, b in zip(self._iv, bytes(4) + number, strict=True))
            return header + self._aead.encrypt(nonce, content + bytes([content_type]), header)
        kind = bytes([content_type]) + b"\x03\x03"
        sealed = self._aead.encrypt(self._iv + number, content, number + kind + struct.pack(">H", len(content)))
        return kind + struct.pack(">H", len(number + sealed)) + number + sealed

    def key_update(self, *, wants_one: bool) -> bytes:
        """The record that changes this side's key, and asks for one back or does not (RFC 8446 4.6.3)."""
        record = self.record(22, handshake_message(KEY_UPDATE, bytes([wants_one])))
        self._secret = _expand(self._secret, b"traffic upd", hashes.SHA384.digest_size)
        self._number = 0
        self._use_secret()
        return record

    def _use_secret(self) -> None:
        self._aead = AESGCM(_expand(self._secret, b"key", _KEY))
        self._iv = _expand(self._secret, b"iv", _IV)


@contextlib.contextmanager
def forger(port: int, version: int) -> Iterator[Forger]:
    """Finish a handshake, then take its keys."""
    secrets: dict[bytes, bytes] = {}

    def keep(_connection: SSL.Connection, line: bytes) -> None:
        label, _random, secret = line.split()
        secrets[label] = bytes.fromhex(secret.decode("ascii"))

    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    (context.set_tls13_ciphersuites if version == SSL.TLS1_3_VERSION else context.set_cipher_list)(_CIPHERS[version])
    context.set_keylog_callback(keep)
    with connect(port) as tcp:
        tcp.settimeout(None)  # pyOpenSSL reads the descriptor itself, and a timeout makes that non-blocking
        connection = SSL.Connection(context, tcp)
        connection.set_connect_state()
        connection.do_handshake()
        tcp.settimeout(10)
        secret = secrets[b"CLIENT_TRAFFIC_SECRET_0" if version == SSL.TLS1_3_VERSION else b"CLIENT_RANDOM"]
        yield Forger(tcp, connection, secret)


def _expand(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label with an empty context (RFC 8446 7.1)."""
    name = b"tls13 " + label
    info = struct.pack(">HB", length, len(name)) + name + b"\0"
    return HKDFExpand(hashes.SHA384(), length, info).derive(secret)


def _prf(secret: bytes, seed: bytes, length: int) -> bytes:
    """P_SHA384 (RFC 5246 5)."""
    output, block = b"", seed
    while len(output) < length:
        block = hmac.digest(secret, block, "sha384")
        output += hmac.digest(secret, block + seed, "sha384")
    return output[:length]
