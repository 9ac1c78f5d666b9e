"""What a request asks for, held against its profile field by field.

Issued names are proven names: each value of the subject and each alternative name has the source that the profile
names for it, and what the request asks beyond that is dropped or refused, and told to the audit trail.
"""

from collections.abc import Iterator, Mapping

from cryptography import x509

from ca_core.csr import SID_EXTENSION, ParsedCsr
from ca_core.csr_names import canonical_san, canonical_subject
from ca_core.errors import BadKey, MalformedRequest, NotAuthorized, OperatorError, Refusal
from ca_core.model import Means, Operation
from ca_core.names import is_account
from ca_core.public_key import key_kind
from ca_core.registration.admission.secret import holds_secret
from ca_core.registration.examined import Applicant, Examined, Field, Named
from ca_core.registration.profile_document import ProfileDocument
from ca_core.registration.realm import Realm
from ca_core.registration.subject import Attribute
from ca_core.registration.template import NameTemplate, Template, canonical_name

__all__ = ["examine"]


def examine(
    profile: ProfileDocument, realm: Realm, applicant: Applicant, csr: ParsedCsr, operation: Operation
) -> Examined:
    """Hold a request against its profile."""
    return _Examination(profile, realm, applicant, csr, operation).run()


class _Examination:
    def __init__(
        self, profile: ProfileDocument, realm: Realm, applicant: Applicant, csr: ParsedCsr, operation: Operation
    ) -> None:
        self._profile = profile
        self._realm = realm
        self._applicant = applicant
        self._csr = csr
        self._operation = operation
        own = applicant.certificate
        self._renewed = x509.load_der_x509_certificate(own.der) if own is not None else None
        self._renewed_names = _san_of(self._renewed) if self._renewed is not None else ()
        self._facts = _facts_of(realm, applicant)
        self._fields: list[Field] = []
        self._refusals: list[Refusal] = []
        self._common: set[x509.NameAttribute[str] | str] = set()

    def run(self) -> Examined:
        profile, csr = self._profile, self._csr
        self._refusals += self._plain_refusals()
        subject = [given for rule in profile.rules.subject for given in self._attributes(*rule)]
        names: dict[str, None] = {}
        for template in profile.rules.names:
            names.update(dict.fromkeys(self._names(template)))
        asked = csr.common_name
        given = {attribute.value for attribute in subject if attribute.oid == x509.NameOID.COMMON_NAME}
        if asked is not None and asked != self._applicant.device.name and asked not in given:  # enforces case 9, 29
            told = f"asked CN '{self._applicant.shown(asked)[:100]}', device {self._applicant.device.name}"
            refusal = NotAuthorized(
                "subject_mismatch", "The request's subject is not the name of this device.", detail=told
            )
            self._refuse("subject CN", asked, "csr", refusal)
        self._others(subject, names)
        if not subject and not names and not self._refusals:
            message = "Nothing is left that the certificate could name."
            self._refusals.append(NotAuthorized("profile_value_missing", message))
        repeated = self._repeated(subject, names)
        fields, refusals, common = tuple(self._fields), tuple(self._refusals), frozenset(self._common)
        return Examined(x509.Name(subject), tuple(names), fields, refusals, common, repeated)

    def _repeated(self, subject: list[x509.NameAttribute[str]], names: Mapping[str, None]) -> Named:
        if self._renewed is None:
            return frozenset()
        return frozenset({*self._renewed.subject} & {*subject} | {*self._renewed_names} & names.keys())

    # --- what has nothing to do with names ---------------------------------------------------------------------------

    def _plain_refusals(self) -> Iterator[Refusal]:
        """In the order in which they are told."""
        profile, csr, own = self._profile, self._csr, self._applicant.certificate
        if not profile.allows_key(key_kind(csr.public_key)):
            allowed = f"{key_kind(csr.public_key)}; the profile allows {', '.join(profile.keys)}"
            yield BadKey("key_not_allowed", "A key of this kind is not allowed here.", detail=allowed)
        if csr.ca_requested:  # enforces case 22
            yield NotAuthorized("ca_requested", "The request asks for a CA certificate.")
        given = {oid.dotted_string for oid in profile.rules.extended_key_usages}
        foreign = set(csr.extended_key_usages) - given
        if foreign:  # enforces case 23
            yield NotAuthorized(
                "extension_not_allowed",
                "The request asks for an extended key usage that the profile does not give.",
                detail=ascii(", ".join(sorted(foreign)))[:300],
            )
        if self._operation is Operation.REENROLL:
            yield from self._renewal_refusals()
        # A factory identity is a certificate, whose holder begins anew.
        shows_none = own is None and self._applicant.means is not Means.IDEVID
        if self._operation is Operation.RENEW and shows_none:
            yield NotAuthorized("renewal_needs_certificate", "A renewal must be signed with a valid certificate.")
        if own is not None and profile.rekey == "required" and own.spki_sha256 == csr.spki_sha256:  # enforces case 21
            yield BadKey("rekey_required", "A renewal needs a new key.")

    def _renewal_refusals(self) -> Iterator[Refusal]:
        if self._renewed is None:
            yield NotAuthorized(
                "reenroll_needs_own_certificate", "Renewal needs the certificate that is to be renewed as credential."
            )
            return
        # "The request Subject field and SubjectAltName extension MUST be identical to the corresponding fields in the
        # certificate being renewed/rekeyed." -- RFC 7030 4.2.2
        if canonical_subject(self._csr.subject) != canonical_subject(self._renewed.subject):
            yield MalformedRequest("renewal_subject_mismatch", "The request's subject is not that of the certificate.")
        # Old clients copy the subject only, so a renewal without any SAN is served.
        if self._csr.san and self._csr.san != self._renewed_names:
            yield MalformedRequest("renewal_san_mismatch", "The request's alternative names are not the certificate's.")

    # --- the subject -------------------------------------------------------------------------------------------------

    def _attributes(self, attribute: Attribute, template: Template) -> Iterator[x509.NameAttribute[str]]:
        where = f"subject {attribute.name}"
        if template.asked is not None:
            yield from self._asked_attributes(where, attribute, template)
            return
        value = template.fill(self._facts)
        if value is None:
            self._miss(where, template)
            return
        if (fault := attribute.fault(value)) is not None:
            self._refuse(where, value, template.source, _unfit(where, value, fault))
            return
        given = attribute.of(value)
        is_repeated = self._renewed is not None and given in list(self._renewed.subject)
        if self._is_unproven(template) and not is_repeated:  # enforces case 26
            self._miss(where, template)
            return
        self._fields.append(Field(where, value, template.source, "given"))
        if template.is_common:
            self._common.add(given)
        yield given

    def _asked_attributes(
        self, where: str, attribute: Attribute, template: Template
    ) -> Iterator[x509.NameAttribute[str]]:
        glob = template.asked
        asked = [part.value for part in self._csr.subject.get_attributes_for_oid(attribute.oid)]
        fitting = [
            value
            for value in asked
            if isinstance(value, str)
            and glob is not None
            and (glob.matches_common_name(value) if attribute.oid == x509.NameOID.COMMON_NAME else glob.matches(value))
            and not holds_secret(value, self._applicant.secret)
            and attribute.fault(value) is None
        ]
        for value in fitting:
            self._fields.append(Field(where, value, "csr", "given"))
            yield attribute.of(value)
        if fitting:
            return
        if asked and not template.is_optional:
            self._refuse(where, str(asked[0]), "csr", _not_allowed(where, template))
        elif not asked:
            self._miss(where, template)

    # --- alternative names -------------------------------------------------------------------------------------------

    def _names(self, template: NameTemplate) -> Iterator[str]:
        if template.is_record:
            for name in self._applicant.device.names:
                if name.startswith("URI:") and is_account(name.removeprefix("URI:")):  # enforces case 10
                    fault = "a Windows domain would take the device for that account"  # of a record made before
                    self._refuse("SAN", name, "device.names", _unfit("SAN", name, fault))
                    continue
                self._fields.append(Field("SAN", name, "device.names", "given"))
                yield name
            return
        if template.is_asked:
            yield from self._asked_names(template)
            return
        value = template.value.fill(self._facts)
        if value is None:
            self._miss("SAN", template.value)
            return
        try:
            name = canonical_name(f"{template.kind}:{value}")
        except OperatorError as exc:
            self._refuse("SAN", f"{template.kind}:{value}", template.value.source, _unfit("SAN", value, exc.message))
            return
        is_repeated = name in self._renewed_names
        if self._is_unproven(template.value) and not is_repeated:  # enforces case 26
            self._miss("SAN", template.value)
            return
        self._fields.append(Field("SAN", name, template.value.source, "given"))
        if template.value.is_common:
            self._common.add(name)
        yield name

    def _asked_names(self, template: NameTemplate) -> Iterator[str]:
        asked = self._csr.san or self._renewed_names  # what a renewal leaves out is what the certificate has
        fitting = [name for name in asked if template.allows(name) and not holds_secret(name, self._applicant.secret)]
        for name in fitting:
            kind, _, value = name.partition(":")
            # A device with the server's own name could be taken for the server.
            if kind == "DNS" and value in self._realm.document.hosts:
                refusal = NotAuthorized("name_of_server", "The request asks for a name of this server.", detail=name)
                self._refuse("SAN", name, "csr", refusal)
                continue
            self._fields.append(Field("SAN", name, "csr", "given"))
            yield name
        if fitting or template.value.is_optional:
            return
        foreign = [name for name in asked if name.partition(":")[0] == template.kind]
        if foreign:
            self._refuse("SAN", foreign[0], "csr", _not_allowed("SAN", template.value))
        else:
            self._miss("SAN", template.value)

    # --- the rest ----------------------------------------------------------------------------------------------------

    def _others(self, subject: list[x509.NameAttribute[str]], names: Mapping[str, None]) -> None:
        """What is asked beyond what is given."""
        given = {(attribute.oid, attribute.value) for attribute in subject}
        left = [
            (f"subject {ascii(part.rfc4514_attribute_name)[1:-1][:40]}", str(part.value))
            for part in self._csr.subject
            if (part.oid, part.value) not in given
        ]
        left = sorted(dict.fromkeys(left))
        left += [("SAN", name) for name in self._csr.san if name not in names]
        if self._csr.sid_requested:
            left.append((f"extension {SID_EXTENSION} (SID)", ""))
        told = {(each.field, each.value) for each in self._fields if each.outcome == "refused"}
        for where, value in left:
            shown = self._applicant.shown(value)[:100]
            if (where, shown) in told:
                continue
            # A renewal must repeat what its certificate has, also what the record has lost since (RFC 7030 4.2.2).
            is_repeated = where == "SAN" and value in self._renewed_names
            if self._profile.others == "refuse" and not is_repeated:  # enforces case 25, 79
                message = "The request asks for names that the profile does not give."
                self._refuse(
                    where, value, "csr", NotAuthorized("names_not_allowed", message, detail=f"{where} {shown}")
                )
            else:
                self._fields.append(Field(where, shown, "csr", "dropped"))

    def _is_unproven(self, template: Template) -> bool:
        """Whether it uses a factory identity that was not shown now: the value must stand in what is renewed."""
        return not self._applicant.shows_idevid and any(fact.startswith("idevid.") for fact in template.facts)

    def _miss(self, where: str, template: Template) -> None:
        source = template.source
        if template.is_optional:
            self._fields.append(Field(where, "", source, "left_out"))
            return
        if template.asked is not None:
            message = "The request lacks a name that its profile takes from it."
            refusal = NotAuthorized("csr_value_missing", message, detail=f"{where}, {template.text}")
        else:
            wanted = template.missing(self._facts) or f"{source}, which the device has not proven"
            message = "The profile wants a value that is not known of this device."
            refusal = NotAuthorized("profile_value_missing", message, detail=f"{where} wants {wanted}")
        self._refuse(where, "", source, refusal)

    def _refuse(self, where: str, value: str, source: str, refusal: Refusal) -> None:
        self._refusals.append(refusal)
        self._fields.append(Field(where, self._applicant.shown(value)[:100], source, "refused", refusal))


def _facts_of(realm: Realm, applicant: Applicant) -> dict[str, str | None]:
    device = applicant.device
    return {
        "device.name": device.name,
        "device.owner": device.owner,
        "device.serial_number": device.serial_number,
        "device.manufacturer": device.manufacturer,
        # What an IDevID proves is what the record says, by which the device was found; whether it did is asked apart.
        "idevid.serial_number": device.serial_number,
        "idevid.manufacturer": device.manufacturer,
        "realm": realm.name,
    }


def _san_of(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return canonical_san(names)


def _unfit(where: str, value: str, fault: str) -> Refusal:
    told = f"{where} '{ascii(value[:80])[1:-1]}': {fault}"
    return NotAuthorized("profile_value_invalid", "A value of the profile can't stand in a certificate.", detail=told)


def _not_allowed(where: str, template: Template) -> Refusal:
    told = f"{where}, which must match {template.text}"
    return NotAuthorized(
        "csr_value_not_allowed", "The request asks for a name that its profile does not allow.", detail=told
    )
