"""What is signed is what was planned, under a serial that nobody can guess and no two certificates share."""

import dataclasses
import datetime as dt
import ipaddress
import random
import secrets
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from ca_core.authority.extensions import extensions_of
from ca_core.authority.issuance import SignedCertificate, check_matches, new_serial
from ca_core.authority.issuer import Issuer, Issuers
from ca_core.authority.plan import (
    CLIENT_AUTH,
    SERVER_AUTH,
    CertificatePlan,
    OwnExtension,
    Policy,
    general_name,
    validity,
)
from ca_core.core import Core
from ca_core.errors import InternalError, Unavailable
from ca_core.model import Evidence, Operation
from tests.helpers.bad_csr import ec_key, rsa_key
from tests.helpers.core import (
    ME,
    OTHER_URL,
    PUBLIC_URL,
    START,
    Installation,
    SetClock,
    ask,
    csr_of,
    edit_realm,
    enrolled,
    new_key,
)

DAY = dt.timedelta(days=1)


def _subject(*names: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])


PLAN = CertificatePlan(
    subject=_subject("sensor"),
    public_key=rsa_key().public_key(),
    not_before=START,
    not_after=START + 90 * DAY,
    names=("DNS:sensor.example", "IP:192.0.2.1", "IP:2001:db8::1", "URI:urn:x:1"),
    extended_key_usage=(CLIENT_AUTH,),
    key_encipherment=True,
)


async def issuer_of(core: Core, name: str = "default-ec-1") -> Issuer:
    found = await Issuers(core.store).by_name(name)
    assert found is not None
    return found


@pytest.fixture
async def signed(core: Core) -> SignedCertificate:
    return await core.issuance.issue(PLAN, await issuer_of(core), PUBLIC_URL)


async def test_a_certificate_says_what_its_plan_says_field_by_field(core: Core, signed: SignedCertificate) -> None:
    issuer = await issuer_of(core)
    certificate = x509.load_der_x509_certificate(signed.der)
    extensions = certificate.extensions
    certificate.verify_directly_issued_by(issuer.certificate)
    assert certificate.version is x509.Version.v3
    assert certificate.serial_number == signed.serial
    assert certificate.subject == PLAN.subject
    assert certificate.public_key() == PLAN.public_key
    assert (certificate.not_valid_before_utc, certificate.not_valid_after_utc) == (PLAN.not_before, PLAN.not_after)
    shown = {extension.oid: (extension.critical, extension.value) for extension in extensions}
    assert len(shown) == len(list(extensions)) == 8
    assert shown[x509.BasicConstraints.oid] == (True, x509.BasicConstraints(ca=False, path_length=None))
    usage = x509.KeyUsage(True, False, True, False, False, False, False, False, False)
    assert shown[x509.KeyUsage.oid] == (True, usage)
    assert shown[x509.ExtendedKeyUsage.oid] == (False, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]))
    names: list[x509.GeneralName] = [
        x509.DNSName("sensor.example"),
        x509.IPAddress(ipaddress.ip_address("192.0.2.1")),
        x509.IPAddress(ipaddress.ip_address("2001:db8::1")),
        x509.UniformResourceIdentifier("urn:x:1"),
    ]
    assert shown[x509.SubjectAlternativeName.oid] == (False, x509.SubjectAlternativeName(names))
    identifier = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    assert shown[x509.AuthorityKeyIdentifier.oid] == (False, authority)
    subject_key = x509.SubjectKeyIdentifier.from_public_key(PLAN.public_key)
    assert shown[x509.SubjectKeyIdentifier.oid] == (False, subject_key)


def _without(oid: x509.ObjectIdentifier) -> Callable[[list[x509.Extension[x509.ExtensionType]]], None]:
    def change(extensions: list[x509.Extension[x509.ExtensionType]]) -> None:
        extensions[:] = [extension for extension in extensions if extension.oid != oid]

    return change


def _otherwise(
    value: x509.ExtensionType, *, critical: bool
) -> Callable[[list[x509.Extension[x509.ExtensionType]]], None]:
    def change(extensions: list[x509.Extension[x509.ExtensionType]]) -> None:
        _without(value.oid)(extensions)
        extensions.append(x509.Extension(value.oid, critical, value))

    return change


_NAMES = x509.SubjectAlternativeName([general_name(name) for name in PLAN.names])
_ELSEWHERE = x509.DistributionPoint([x509.UniformResourceIdentifier("http://evil.example/crl")], None, None, None)
FIELDS: dict[str, dict[str, object]] = {
    "subject": {"subject": _subject("pacemaker")},
    "subject-with-more": {"subject": _subject("sensor", "pacemaker")},
    "subject-empty": {"subject": x509.Name([])},
    "public-key": {"public_key": ec_key().public_key()},
    "one-second-earlier": {"not_before": START - dt.timedelta(seconds=1)},
    "one-second-longer": {"not_after": START + 90 * DAY + dt.timedelta(seconds=1)},
    "no-names": {"names": ()},
    "one-name-less": {"names": PLAN.names[1:]},
    "one-name-more": {"names": (*PLAN.names, "DNS:evil.example")},
    "another-name": {"names": (*PLAN.names[:-1], "URI:urn:x:2")},
    "no-usage": {"extended_key_usage": ()},
    "another-usage": {"extended_key_usage": (SERVER_AUTH,)},
    "one-usage-more": {"extended_key_usage": (CLIENT_AUTH, SERVER_AUTH)},
    "no-encipherment": {"key_encipherment": False},
    "a-ca": {"ca": True, "path_length": 0},
    "another-key-usage": {"key_usage": ("digitalSignature", "dataEncipherment")},
    "a-policy": {"policies": (Policy(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1")),)},
    "a-policy-with-cps": {"policies": (Policy(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), "https://x.example"),)},
    "an-own-extension": {"own": (OwnExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.2"), False, b"\x05\x00"),)},
    "a-critical-own-extension": {
        "own": (OwnExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.2"), True, b"\x05\x00"),)
    },
    "a-mailbox": {"names": (*PLAN.names, "email:x@example.com")},
}
EXTENSIONS = {
    "without-basic-constraints": _without(x509.BasicConstraints.oid),
    "without-key-usage": _without(x509.KeyUsage.oid),
    "without-san": _without(x509.SubjectAlternativeName.oid),
    "without-aki": _without(x509.AuthorityKeyIdentifier.oid),
    "without-cdp": _without(x509.CRLDistributionPoints.oid),
    "without-aia": _without(x509.AuthorityInformationAccess.oid),
    "san-critical": _otherwise(_NAMES, critical=True),
    "basic-constraints-not-critical": _otherwise(x509.BasicConstraints(ca=False, path_length=None), critical=False),
    "cdp-elsewhere": _otherwise(x509.CRLDistributionPoints([_ELSEWHERE]), critical=False),
    "skid-of-another-key": _otherwise(x509.SubjectKeyIdentifier.from_public_key(ec_key().public_key()), critical=False),
    "a-foreign-extension": _otherwise(
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.311.25.2"), b"\x05\x00"), critical=False
    ),
}


def _build(
    plan: CertificatePlan, serial: int, issuer: x509.Name, extensions: list[x509.Extension[x509.ExtensionType]]
) -> x509.Certificate:
    builder = x509.CertificateBuilder(
        issuer,
        plan.subject,
        plan.public_key,
        serial,
        plan.not_before.replace(tzinfo=None),
        plan.not_after.replace(tzinfo=None),
        extensions,
    )
    return builder.sign(rsa_key(), hashes.SHA256())


async def test_a_certificate_that_differs_from_its_plan_in_one_field_is_not_let_out(
    core: Core, subtests: pytest.Subtests
) -> None:
    issuer = await issuer_of(core)
    name = issuer.certificate.subject
    fixed = core.issuance._extensions_of(issuer, PUBLIC_URL)

    def check(plan: CertificatePlan, certificate: x509.Certificate) -> None:
        check_matches(certificate, plan, 77, name, fixed)

    planned = [*extensions_of(PLAN), *fixed]
    check(PLAN, _build(PLAN, 77, name, planned))
    for case, fields in FIELDS.items():
        with subtests.test(case):
            other = dataclasses.replace(PLAN, **fields)  # type: ignore[arg-type]  # a table of any field
            check(other, _build(other, 77, name, [*extensions_of(other), *fixed]))
            with pytest.raises(InternalError, match="not the planned one"):
                check(PLAN, _build(other, 77, name, [*extensions_of(other), *fixed]))
            with pytest.raises(InternalError, match="not the planned one"):
                check(other, _build(PLAN, 77, name, planned))
    for case, change in EXTENSIONS.items():
        with subtests.test(case):
            extensions = list(planned)
            change(extensions)
            with pytest.raises(InternalError, match="not the planned one"):
                check(PLAN, _build(PLAN, 77, name, extensions))
    with pytest.raises(InternalError, match="not the planned one"):
        check(PLAN, _build(PLAN, 78, name, planned))
    with pytest.raises(InternalError, match="not the planned one"):
        check(PLAN, _build(PLAN, 77, _subject("another issuer"), planned))


def test_every_field_of_a_plan_is_among_those_that_are_compared() -> None:
    compared = {field for fields in FIELDS.values() for field in fields}
    assert compared == {field.name for field in dataclasses.fields(CertificatePlan)}


@pytest.mark.parametrize("names", [("DNS:sensor.example",), ("URI:urn:x:1",)])
async def test_the_san_is_critical_only_when_the_subject_is_empty(core: Core, names: tuple[str, ...]) -> None:
    issuer = await issuer_of(core)
    for subject in (x509.Name([]), PLAN.subject):
        plan = dataclasses.replace(PLAN, subject=subject, names=names)
        made = await core.issuance.issue(plan, issuer, PUBLIC_URL)
        extension = made.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert extension.critical is (len(list(subject)) == 0)


@pytest.mark.parametrize(
    ("issuer_name", "kind"),
    [
        ("default-ec-1", ec.EllipticCurvePublicKey),
        ("default-rsa-1", rsa.RSAPublicKey),
        ("default-root-1", rsa.RSAPublicKey),
    ],
)
async def test_every_family_of_issuer_signs(core: Core, issuer_name: str, kind: type) -> None:
    issuer = await issuer_of(core, issuer_name)
    assert isinstance(issuer.certificate.public_key(), kind)
    made = await core.issuance.issue(PLAN, issuer, PUBLIC_URL)
    made.certificate.verify_directly_issued_by(issuer.certificate)


# --- the CA certificates themselves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("realm", ["default", "other"])
async def test_a_realm_has_a_root_and_issuing_cas_of_its_own(core: Core, realm: str) -> None:
    root, *issuing = [x509.load_der_x509_certificate(der) for der in await core.issuers.export(realm)]
    root.verify_directly_issued_by(root)
    assert [found.subject for found in (root, *issuing)] == [
        _ca_name(realm, title) for title in ("Root CA 1", "Issuing CA EC 1", "Issuing CA RSA 1")
    ]
    for found in (root, *issuing):
        found.verify_directly_issued_by(root)
        constraints = found.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert constraints.value == x509.BasicConstraints(ca=True, path_length=None if found is root else 0)
        usage = found.extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical
        assert (usage.value.key_cert_sign, usage.value.crl_sign, usage.value.digital_signature) == (True, True, False)
        assert found.not_valid_after_utc <= root.not_valid_after_utc
        with pytest.raises(x509.ExtensionNotFound):
            found.extensions.get_extension_for_class(x509.ExtendedKeyUsage)


def _ca_name(realm: str, title: str) -> x509.Name:
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "enrolld")
    return x509.Name([organization, x509.NameAttribute(NameOID.COMMON_NAME, f"{realm} {title}")])


@pytest.mark.parametrize(
    ("realm", "url"), [pytest.param("default", PUBLIC_URL, id="the-node's"), pytest.param("other", OTHER_URL, id="own")]
)
async def test_cdp_and_aia_lie_under_the_public_url_of_the_realm(core: Core, realm: str, url: str) -> None:
    device = await enrolled(core, realm=realm)
    issuing = (await core.issuers.export(realm))[1]
    for certificate, issuer in [
        (device.x509, f"{realm}-ec-1"),
        (x509.load_der_x509_certificate(issuing), f"{realm}-root-1"),
    ]:
        points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
        (point,) = points
        assert point.full_name == [x509.UniformResourceIdentifier(f"{url}/pki/{issuer}/0.crl")]
        (access,) = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
        assert access.access_method == AuthorityInformationAccessOID.CA_ISSUERS
        assert access.access_location == x509.UniformResourceIdentifier(f"{url}/pki/{issuer}.cer")


async def test_a_new_public_url_is_in_the_next_certificate(core: Core) -> None:
    first = await enrolled(core, "first", realm="other")
    await edit_realm(core, "other", OTHER_URL, "http://new.example.com")
    second = await enrolled(core, "second", realm="other")
    urls = [
        str(device.x509.extensions.get_extension_for_class(x509.CRLDistributionPoints).value[0].full_name)
        for device in (first, second)
    ]
    assert OTHER_URL in urls[0]
    assert "http://new.example.com/pki/other-ec-1/0.crl" in urls[1]


# --- serials ---------------------------------------------------------------------------------------------------------


def test_serials_have_159_bits_of_entropy_and_no_constant_bit() -> None:
    serials = [new_serial() for _ in range(4000)]
    assert len(set(serials)) == len(serials)
    assert all(0 < serial < 1 << 159 for serial in serials)
    for bit in range(159):
        ones = sum(serial >> bit & 1 for serial in serials)
        assert 1700 < ones < 2300, f"bit {bit} is set in {ones} of 4000"  # 9 standard deviations


async def test_the_longest_and_the_shortest_serial_fit_a_certificate(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer = await issuer_of(core)
    for drawn, octets in [(2**159 - 2, 20), (0, 1)]:
        monkeypatch.setattr(secrets, "randbelow", lambda _, drawn=drawn: drawn)
        made = await core.issuance.issue(PLAN, issuer, PUBLIC_URL)
        serial = x509.load_der_x509_certificate(made.der).serial_number
        assert serial == drawn + 1 > 0
        assert (serial.bit_length() + 8) // 8 == octets  # with the sign bit, which must be 0


async def test_a_broken_random_generator_never_gives_two_certificates_one_serial(
    core: Core, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "randbelow", lambda _: 4711)
    first = await enrolled(core, "first")
    assert first.serial == format(4712, "x")
    handed = await core.devices.add("default", "second", actor=ME)
    with pytest.raises(Unavailable, match="keeps refusing"):
        await ask(core, Evidence(secret=handed.secret), csr_of(new_key(), "second"))
    assert installation.sql("SELECT count(*) FROM certificate WHERE kind = 'device'") == [(1,)]
    assert installation.sql("SELECT count(*) FROM device_secret WHERE spent_at IS NOT NULL") == [(1,)]
    monkeypatch.undo()
    issued = await ask(core, Evidence(secret=handed.secret), csr_of(new_key(), "second"))
    assert issued.serial != 4712


async def test_a_serial_that_repeats_once_is_drawn_again(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = iter([1, 1, 2])
    monkeypatch.setattr(secrets, "randbelow", lambda _: next(draws))
    assert [(await enrolled(core, name)).serial for name in ("first", "second")] == ["2", "3"]


async def test_two_issuers_may_draw_the_same_serial(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "randbelow", lambda _: 4711)
    here, there = await enrolled(core), await enrolled(core, realm="other")
    assert here.serial == there.serial


async def test_a_failing_random_generator_issues_nothing(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> int:
        raise OSError("no entropy")

    handed = await core.devices.add("default", "sensor", actor=ME)
    monkeypatch.setattr(secrets, "randbelow", fail)
    with pytest.raises(OSError, match="no entropy"):
        await ask(core, Evidence(secret=handed.secret), csr_of(new_key()))
    monkeypatch.undo()
    assert (await ask(core, Evidence(secret=handed.secret), csr_of(new_key()))).certificate


# --- validity --------------------------------------------------------------------------------------------------------


def test_validity_counts_its_last_second_and_reaches_back_five_minutes() -> None:
    now = START + dt.timedelta(microseconds=999_999)
    not_before, not_after = validity(now, 90 * DAY, START + 1000 * DAY)
    assert not_before == START - dt.timedelta(minutes=5)
    assert not_after - START == 90 * DAY - dt.timedelta(seconds=1)
    assert not_after.microsecond == not_before.microsecond == 0


def test_validity_never_goes_beyond_the_issuer_for_any_length() -> None:
    chance = random.Random(7)  # any numbers will do
    for _ in range(500):
        length = dt.timedelta(seconds=chance.randrange(1, 40 * 365 * 86400))
        latest = START + dt.timedelta(seconds=chance.randrange(1, 30 * 365 * 86400))
        not_before, not_after = validity(START, length, latest)
        assert not_before < START
        assert START <= not_after <= latest
        assert not_after - START < length


async def test_a_certificate_ends_with_its_issuer(core: Core, clock: SetClock) -> None:
    issuer = await issuer_of(core)
    clock.now = issuer.not_after - 30 * DAY
    device = await enrolled(core)
    assert device.x509.not_valid_after_utc == issuer.not_after


async def test_an_expired_issuer_issues_nothing(core: Core, clock: SetClock) -> None:
    issuer = await issuer_of(core)
    handed = await core.devices.add("default", "sensor", expires="36500d", actor=ME)
    clock.now = issuer.not_after
    with pytest.raises(Unavailable, match="the issuer expired"):
        await ask(core, Evidence(secret=handed.secret), csr_of(new_key()))
    clock.now -= dt.timedelta(seconds=1)
    assert (await ask(core, Evidence(secret=handed.secret), csr_of(new_key()))).certificate


@pytest.mark.parametrize(("demo", "days"), [(True, 7), (False, 90)])
async def test_a_demo_limits_validity_to_seven_days(installation: Installation, demo: bool, days: int) -> None:
    core = installation.open(demo=demo)
    device = await enrolled(core)
    assert device.x509.not_valid_after_utc == START + days * DAY - dt.timedelta(seconds=1)
    core.close()


# --- what a CSR can't bring in ---------------------------------------------------------------------------------------


async def test_subject_and_names_come_from_the_record_whatever_the_request_says(core: Core) -> None:
    handed = await core.devices.add("default", "sensor", sans=["DNS:sensor.example"], actor=ME)
    csr = csr_of(new_key(), "sensor", sans=["evil.example", "sensor.example"])
    issued = await ask(core, Evidence(secret=handed.secret), csr)
    certificate = x509.load_der_x509_certificate(issued.certificate)
    assert certificate.subject == _subject("sensor")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names == x509.SubjectAlternativeName([x509.DNSName("sensor.example")])


async def test_a_wrong_key_under_an_issuers_name_never_signs_for_it(core: Core, second: Core) -> None:
    """Of two nodes that make one realm at the same time one loses; its keys must not sign for the winner's issuers."""
    before = await second.realms.current()  # as the loser knew it
    await core.realms.add("third", actor=ME)
    second.realms._stamp = (-1, -1)
    made = await _lose_the_race(second, len(before))
    assert made == 0
    issuer = await issuer_of(second, "third-root-1")
    await second.crls.publish("third-root-1")
    der = await second.crls.latest("third-root-1")
    assert der is not None
    key = issuer.certificate.public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    assert x509.load_der_x509_crl(der).is_signature_valid(key)


async def _lose_the_race(core: Core, known: int) -> int:
    from ca_core.authority.ceremony import make_realm_ca

    await make_realm_ca(core.issuance, "third", PUBLIC_URL, START)  # signed, and dropped as its commit was refused
    return len(await core.realms.current()) - known - 1


@pytest.mark.parametrize("operation", list(Operation))
async def test_what_is_answered_is_what_the_store_keeps(
    core: Core, installation: Installation, operation: Operation
) -> None:
    device = await enrolled(core)
    issued = await ask(core, device.evidence, csr_of(new_key()), operation=operation)
    ((der, serial, not_after),) = installation.sql(
        "SELECT der, serial, not_after FROM certificate ORDER BY id DESC LIMIT 1"
    )
    assert der == issued.certificate
    assert int(serial, 16) == issued.serial
    until = x509.load_der_x509_certificate(der).not_valid_after_utc
    assert dt.datetime.fromtimestamp(not_after / 1000, dt.UTC) == until
