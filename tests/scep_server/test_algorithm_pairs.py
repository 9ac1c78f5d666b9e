"""CertReps of every algorithm pair that the server can give, read and verified by asn1crypto and cryptography alone.

The same through the daemon with `openssl cms`, and by stock clients, in `tests/end_to_end/test_scep_algorithms.py`.
"""

import itertools
from dataclasses import dataclass
from functools import lru_cache

import pytest
from asn1crypto import cms as a_cms
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from scep_server.algorithms import Digest
from scep_server.certrep import (
    FailInfo,
    choose_algorithms,
    encode_certs_only,
    reply_digest,
    write_failure,
    write_pending,
    write_success,
)
from scep_server.cms import read_certificate
from scep_server.cms_values import Certificate
from scep_server.errors import BadAlg
from scep_server.message import PkiMessage, open_request
from tests.scep_server.client import (
    CIPHERS,
    HASH_OIDS,
    NOW,
    Envelope,
    Request,
    issuer_and_serial,
    make_certificate,
    ra_certificate,
    ra_key,
    rsa_key,
)
from tests.scep_server.serving import CertRep, open_cert_rep

Transport = tuple[str, str] | None
DIGESTS = ("sha1", "sha256", "sha384", "sha512")
REPLY_CIPHERS = ("aes128", "aes192", "aes256", "3des")
TRANSPORTS: dict[str, Transport] = {
    "pkcs1": None,
    "oaep-sha1": ("sha1", "sha1"),
    "oaep-sha1-mgf1-sha256": ("sha1", "sha256"),
    "oaep-sha256-mgf1-sha1": ("sha256", "sha1"),
    "oaep-sha256": ("sha256", "sha256"),
}
OAEP = "1.2.840.113549.1.1.7"


class Ra:
    def __init__(self) -> None:
        self.certificate: Certificate = read_certificate(ra_certificate())

    async def sign(self, data: bytes, digest: Digest) -> bytes:
        return ra_key().sign(data, padding.PKCS1v15(), digest)


def device() -> rsa.RSAPrivateKey:
    return rsa_key("pairs")


@dataclass(frozen=True)
class Read:
    """A CertRep, and how the key of its envelope was encrypted."""

    reply: CertRep
    transport: Transport


def read(body: bytes) -> Read:
    content = a_cms.ContentInfo.load(body, strict=True)["content"]["encap_content_info"]["content"].native
    reply = open_cert_rep(body, ra_certificate(), device())
    if not content:
        return Read(reply, None)
    (info,) = a_cms.ContentInfo.load(content, strict=True)["content"]["recipient_infos"]
    algorithm = info.chosen["key_encryption_algorithm"]
    if algorithm["algorithm"].dotted != OAEP:
        assert algorithm["algorithm"].native == "rsaes_pkcs1v15"
        return Read(reply, None)
    parameters = algorithm["parameters"]
    assert parameters["mask_gen_algorithm"]["algorithm"].native == "mgf1"
    mask = parameters["mask_gen_algorithm"]["parameters"]["algorithm"].native
    return Read(reply, (parameters["hash_algorithm"]["algorithm"].native, mask))


def ask(digest: str, cipher: str = "aes128", transport: Transport = None) -> PkiMessage:
    return open_request(Request(key=device(), digest=digest, envelope=Envelope(cipher=cipher, oaep=transport)).encode())


async def success(request: PkiMessage, *, weak: bool) -> bytes:
    chosen = choose_algorithms(request, allow_sha1=weak, allow_3des=weak)
    bundle = encode_certs_only([issued(), ra_certificate()])
    return await write_success(request, bundle, algorithms=chosen, signer=Ra(), now=NOW)


@lru_cache(maxsize=1)
def issued() -> bytes:
    return make_certificate(device().public_key(), common_name="issued", serial=99)


@pytest.mark.parametrize("transport", TRANSPORTS.values(), ids=TRANSPORTS)
@pytest.mark.parametrize("cipher", REPLY_CIPHERS)
@pytest.mark.parametrize("digest", DIGESTS)
async def test_a_success_of_every_pair_is_read(digest: str, cipher: str, transport: Transport) -> None:
    request = ask(digest, cipher, transport)
    found = read(await success(request, weak=True))
    assert (found.reply.status, found.reply.digest, found.reply.cipher) == ("0", digest, cipher)
    assert found.transport == transport
    assert found.reply.certificates == (issued(), ra_certificate())
    assert found.reply.recipients == (issuer_and_serial(request.signer.der),)


@pytest.mark.parametrize("fail_info", list(FailInfo))
@pytest.mark.parametrize("digest", DIGESTS)
async def test_a_failure_of_every_digest_is_read(digest: str, fail_info: FailInfo) -> None:
    request = ask(digest)
    chosen = reply_digest(request.digest, allow_sha1=True)
    body = await write_failure(request.transaction, fail_info, "Refused.", signer=Ra(), now=NOW, digest=chosen)
    reply = read(body).reply
    assert (reply.status, reply.digest, reply.fail_info, reply.text) == ("2", digest, str(int(fail_info)), "Refused.")


@pytest.mark.parametrize("digest", DIGESTS)
async def test_a_pending_of_every_digest_is_read(digest: str) -> None:
    request = ask(digest)
    chosen = reply_digest(request.digest, allow_sha1=True)
    reply = read(await write_pending(request.transaction, signer=Ra(), now=NOW, digest=chosen)).reply
    assert (reply.status, reply.digest, reply.fail_info) == ("3", digest, None)


@pytest.mark.parametrize("allow_3des", [True, False], ids=["3des", "no-3des"])
@pytest.mark.parametrize("allow_sha1", [True, False], ids=["sha1", "no-sha1"])
def test_no_other_pair_is_ever_given_whatever_is_asked(allow_sha1: bool, allow_3des: bool) -> None:
    """So the tables above are whole."""
    given: set[tuple[str, str]] = set()
    for digest, cipher in itertools.product(HASH_OIDS, CIPHERS):
        if digest == "md5":
            with pytest.raises(BadAlg):
                ask(digest, cipher)
            continue
        chosen = choose_algorithms(ask(digest, cipher), allow_sha1=allow_sha1, allow_3des=allow_3des)
        (name,) = (name for name, (oid, _, _) in CIPHERS.items() if oid == chosen.cipher.oid)
        given.add((chosen.digest.name, name))
    digests = [name for name in DIGESTS if allow_sha1 or name != "sha1"]
    ciphers = [name for name in REPLY_CIPHERS if allow_3des or name != "3des"]
    assert given == set(itertools.product(digests, ciphers))


async def test_a_reply_whose_signature_is_bent_is_not_read() -> None:
    """The twin: what reads these replies can tell."""
    body = await success(ask("sha256"), weak=False)
    read(body)
    with pytest.raises(InvalidSignature):
        read(body[:-1] + bytes((body[-1] ^ 1,)))
