/* What the commit repeats: CONDITIONS of ca_core/registration/conditions.py, by the same names.
 *
 * -DWITHOUT_x takes one away, here alone: what was read before the commit is still judged.
 */

hidden byte holds;

inline always() {
    holds =
#ifndef WITHOUT_realm_version
        unit[N].version == version &&
#endif
#ifndef WITHOUT_device_state
        !suspended[unit[N].device] &&
#endif
#ifndef WITHOUT_issuer_active
        !retired &&
#endif
#ifndef WITHOUT_key_not_blocked
        !blocked[unit[N].key] &&
#endif
#ifndef WITHOUT_transaction_not_of_other_key
        !ANY(TRANSACTION_OF_OTHER_KEY, N) &&
#endif
#ifndef WITHOUT_key_not_of_other_device
        !ANY(OTHERS_KEY, N) &&
#endif
        true
}

inline by_secret() {
    holds = holds &&
#ifndef WITHOUT_secret_unspent
        !SECRET_OF(N).spent && !SECRET_OF(N).voided && !unit[N].late &&
#endif
        true
}

inline by_factory_identity() {
    holds = holds &&
#ifndef WITHOUT_device_identity
        !REPLACED(N) &&
#endif
#ifndef WITHOUT_credential_key_not_blocked
        !blocked[CREDENTIAL_KEY(N)] &&
#endif
#ifndef WITHOUT_transaction_not_begun
        !ANY(OF_TRANSACTION_AND_KEY, N) &&
#endif
#ifndef WITHOUT_not_asked_before
        !ANY(ASKED_BEFORE, N) &&
#endif
        true
}

inline by_own_certificate() {
    holds = holds &&
#ifndef WITHOUT_credential_key_not_blocked
        !blocked[CREDENTIAL_KEY(N)] &&
#endif
#ifndef WITHOUT_certificate_valid
        !cert[unit[N].credential].revoked &&
#endif
#ifndef WITHOUT_transaction_not_served
        !ANY(RENEWED_IN_TRANSACTION, N) &&
#endif
#ifndef WITHOUT_newer_certificate_valid
        !ANY(OWN_NEWER_REVOKED, N) &&
#endif
#ifndef WITHOUT_not_asked_before
        !ANY(ASKED_BEFORE, N) &&
#endif
        true
}

/* One statement: it sees what is committed when it begins. */
inline guard() {
    always();
    if
#ifdef SECRETS
    :: BY_SECRET(N) -> by_secret()
#endif
#ifdef FACTORY
    :: BY_FACTORY(N) -> by_factory_identity()
#endif
#ifdef OWN
    :: BY_OWN(N) -> by_own_certificate()
#endif
    fi
}
