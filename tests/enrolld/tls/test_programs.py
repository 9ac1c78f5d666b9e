"""The clients that devices and administrators have: what each may ask for, and what its refusal is called here."""

import ssl
from pathlib import Path

import pytest

from enrolld.tls import ServerContext, StreamReason
from tests.end_to_end.clients import needs
from tests.enrolld.tls.conftest import Serve, ServeHttp
from tests.enrolld.tls.test_handshake import TLS12, TLS13, VERSIONS
from tests.enrolld.tls.test_hostile import long_chains
from tests.helpers.tls_pki import Identity, TlsPki, huge_rsa_key, issue, tls_pki
from tests.helpers.tls_programs import PROGRAMS, Asked, Program

pytestmark = [pytest.mark.foreign, pytest.mark.parametrize("loop", ["uvloop"], indirect=True)]


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> Program:
    found = PROGRAMS[request.param]
    needs(found.needs)
    return found


@VERSIONS
def test_a_client_with_a_certificate_is_served_and_known(
    serve: Serve, pki: TlsPki, tmp_path: Path, program: Program, version: ssl.TLSVersion
) -> None:
    served = serve()
    done = program.run(Asked(served.port, version, pki.device), pki, tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"served\n" in done.stdout
    peer = served.next_peer()
    assert peer.chain == pki.device.der_chain
    assert (peer.version, peer.server_name) == ("TLSv1.2" if version is TLS12 else "TLSv1.3", "localhost")
    served.lost.next()
    assert served.refusals.none_waits()


@VERSIONS
def test_a_client_without_a_certificate_is_served_and_not_known(
    serve: Serve, pki: TlsPki, tmp_path: Path, program: Program, version: ssl.TLSVersion
) -> None:
    served = serve()
    done = program.run(Asked(served.port, version), pki, tmp_path)
    assert b"served\n" in done.stdout
    assert served.next_peer().chain == ()
    assert served.refusals.none_waits()


@VERSIONS
@pytest.mark.parametrize(
    "offered",
    [
        pytest.param((), id="nothing"),
        pytest.param(("http/1.1",), id="http11"),
        pytest.param(("http/1.0",), id="http10"),
        pytest.param(("h2", "http/1.1"), id="h2-first"),
    ],
)
def test_a_client_that_offers_http_or_no_protocol_at_all_is_served(
    serve: Serve, pki: TlsPki, tmp_path: Path, program: Program, version: ssl.TLSVersion, offered: tuple[str, ...]
) -> None:
    served = serve()
    done = program.run(Asked(served.port, version, alpn=offered), pki, tmp_path)
    assert b"served\n" in done.stdout
    assert served.refusals.none_waits()


@VERSIONS
@pytest.mark.parametrize("program", ["openssl", "gnutls"], indirect=True)  # curl always offers HTTP/1
@pytest.mark.parametrize(
    "offered",
    [
        pytest.param(("h2",), id="h2-alone"),
        pytest.param(("HTTP/1.1",), id="capital-letters"),
        pytest.param(("acme-tls/1", "h2"), id="two-others"),
    ],
)
def test_a_client_that_offers_only_other_protocols_is_refused(
    serve: Serve, pki: TlsPki, tmp_path: Path, program: Program, version: ssl.TLSVersion, offered: tuple[str, ...]
) -> None:
    served = serve()
    done = program.run(Asked(served.port, version, alpn=offered), pki, tmp_path)
    assert done.returncode != 0
    assert b"served\n" not in done.stdout
    assert served.refusals.next() == StreamReason.NO_SHARED_ALPN
    assert served.peers.none_waits()
    assert served.refusals.none_waits()


@VERSIONS
@pytest.mark.parametrize(
    ("names", "sni", "reason"),
    [
        pytest.param({"localhost"}, "localhost", None, id="twin-right"),
        pytest.param({"localhost"}, "nobody.example", StreamReason.UNKNOWN_NAME, id="wrong"),
        pytest.param({"localhost"}, None, StreamReason.UNKNOWN_NAME, id="none-where-one-must-be"),
        pytest.param({"localhost", None}, None, None, id="none-where-none-may-be"),
    ],
)
def test_the_server_name_is_the_selectors_to_judge(
    serve: Serve,
    pki: TlsPki,
    asking: ServerContext,
    tmp_path: Path,
    program: Program,
    version: ssl.TLSVersion,
    names: set[str | None],
    sni: str | None,
    reason: StreamReason | None,
) -> None:
    served = serve(lambda name: dict.fromkeys(names, asking)[name])
    done = program.run(Asked(served.port, version, sni=sni), pki, tmp_path)
    assert (b"served\n" in done.stdout) == (reason is None)
    if reason is None:
        assert served.next_peer().server_name == sni
    else:
        assert done.returncode != 0
        assert served.refusals.next() == reason
        assert served.peers.none_waits()
    assert served.refusals.none_waits()


@VERSIONS
def test_a_client_that_does_not_trust_us_says_so(
    serve: Serve, pki: TlsPki, tmp_path: Path, program: Program, version: ssl.TLSVersion
) -> None:
    served = serve()
    done = program.run(Asked(served.port, version, trusts_server=False), pki, tmp_path)
    assert done.returncode != 0
    assert served.refusals.next() == StreamReason.SERVER_NOT_TRUSTED
    assert served.peers.none_waits()


def test_a_client_of_tls11_is_refused_by_name(serve: Serve, pki: TlsPki, tmp_path: Path) -> None:
    needs("gnutls-cli")
    served = serve()
    done = PROGRAMS["gnutls"].run(Asked(served.port, ssl.TLSVersion.TLSv1_1), pki, tmp_path)
    assert done.returncode != 0
    assert served.refusals.next() == StreamReason.VERSION_UNSUPPORTED


GREEDY = {
    "200-certificates": StreamReason.CHAIN_TOO_LONG,
    "11-certificates": StreamReason.CHAIN_TOO_LONG,
    "a-key-of-16384-bits": StreamReason.KEY_TOO_LARGE,
}


def greedy_device(case: str) -> Identity:
    if case == "a-key-of-16384-bits":
        return issue("huge", tls_pki().sub_ca, key=huge_rsa_key(16384))
    return long_chains()[{"200-certificates": "two-hundred-of-one-name", "11-certificates": "eleven"}[case]]


@pytest.mark.parametrize(
    ("program", "version"),
    [pytest.param("openssl", TLS12, id="openssl-tls12"), pytest.param("curl", TLS13, id="curl-tls13")],
    indirect=["program"],
)
@pytest.mark.parametrize("case", GREEDY)
def test_a_greedy_certificate_is_refused_and_the_next_device_served(
    serve: Serve, pki: TlsPki, tmp_path: Path, program: Program, case: str, version: ssl.TLSVersion
) -> None:
    served = serve()
    done = program.run(Asked(served.port, version, greedy_device(case)), pki, tmp_path)
    assert b"served\n" not in done.stdout
    assert served.refusals.next() == GREEDY[case]
    assert served.peers.none_waits()
    assert b"served\n" in program.run(Asked(served.port, version, pki.device), pki, tmp_path).stdout
    assert served.next_peer().chain == pki.device.der_chain
    assert served.refusals.none_waits()


@VERSIONS
def test_http_is_served_over_it(
    serve_http: ServeHttp, pki: TlsPki, tmp_path: Path, program: Program, version: ssl.TLSVersion
) -> None:
    site = serve_http()
    done = program.run(Asked(site.port, version, pki.device), pki, tmp_path)
    assert b"served by HTTP" in done.stdout
    assert site.peers.next().chain == pki.device.der_chain
    assert site.refusals.none_waits()
