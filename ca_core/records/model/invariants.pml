/* What must always hold. spin tells an invariant that does not by its name; the README has the sentences. */

#define INVARIANT(name, what) name = (what); assert(name)

hidden byte nothing_leaves_before_its_record_is_durable;
hidden byte nothing_is_issued_after_a_suspend;
hidden byte nothing_is_issued_after_a_revoke;
hidden byte nothing_is_issued_after_a_revoke_of_a_newer_one;
hidden byte nothing_is_issued_for_a_blocked_key;
hidden byte nothing_is_issued_on_a_blocked_credential;
hidden byte nothing_is_issued_under_an_old_realm;
hidden byte nothing_is_issued_by_a_retired_issuer;
hidden byte a_key_is_of_one_device;
hidden byte one_asking_makes_one_certificate;
hidden byte a_secret_serves_once;
hidden byte a_dead_secret_serves_nothing_new;
hidden byte a_device_is_never_stranded;
hidden byte the_answer_is_for_who_asks;
hidden byte a_retransmission_is_not_a_second_request;
hidden byte a_transaction_renews_once;
hidden byte a_transaction_is_of_one_key;
hidden byte a_factory_identity_certifies_a_key_once;
hidden byte nothing_is_issued_to_a_replaced_board;

#define BY_THE_SAME(u, c) \
    (THERE(c) && cert[c].device == unit[u].device && cert[c].credential == unit[u].credential)

/* Of a unit, in the moment before it is committed: what operators have committed by then is confirmed. */
inline check_invariants(u) {
    INVARIANT(nothing_is_issued_after_a_suspend, !suspended[unit[u].device]);
    INVARIANT(nothing_is_issued_for_a_blocked_key, !blocked[unit[u].key]);
    INVARIANT(nothing_is_issued_under_an_old_realm, unit[u].version == version);
    INVARIANT(nothing_is_issued_by_a_retired_issuer, !retired);
    INVARIANT(a_key_is_of_one_device, !ANY(OTHERS_KEY, u));
    INVARIANT(a_transaction_is_of_one_key, !ANY(TRANSACTION_OF_OTHER_KEY, u));
#ifdef SECRETS
    INVARIANT(a_secret_serves_once, !(BY_SECRET(u) && ANY(BY_THE_SAME, u)));
    INVARIANT(a_dead_secret_serves_nothing_new, !(BY_SECRET(u) && (SECRET_OF(u).voided || unit[u].late)));
#endif
#ifdef FACTORY
    INVARIANT(a_factory_identity_certifies_a_key_once, !(BY_FACTORY(u) && ANY(OF_TRANSACTION_AND_KEY, u)));
    INVARIANT(nothing_is_issued_to_a_replaced_board, !REPLACED(u));
#endif
#ifdef OWN
    INVARIANT(nothing_is_issued_after_a_revoke, !(BY_OWN(u) && cert[unit[u].credential].revoked));
    INVARIANT(nothing_is_issued_after_a_revoke_of_a_newer_one, !(BY_OWN(u) && ANY(OWN_NEWER_REVOKED, u)));
    INVARIANT(a_transaction_renews_once, !(BY_OWN(u) && ANY(RENEWED_IN_TRANSACTION, u)));
#endif
    INVARIANT(nothing_is_issued_on_a_blocked_credential, BY_SECRET(u) || !blocked[CREDENTIAL_KEY(u)]);
    INVARIANT(a_retransmission_is_not_a_second_request, BY_SECRET(u) || !ANY(ASKED_BEFORE, u))
}

/* Of the node's answer: the id of a certificate. */
inline check_answer(found) {
    INVARIANT(nothing_leaves_before_its_record_is_durable, found != 0 && THERE(found));
    INVARIANT(the_answer_is_for_who_asks,
        cert[found].device == unit[N].device && cert[found].key == unit[N].key &&
        (!BY_SECRET(N) || cert[found].names == unit[N].names && cert[found].credential == unit[N].credential))
}

/* Of the node's refusal. Who comes with a secret that is spent asks again, and is refused only for a reason. */
inline check_refusal() {
#ifdef SECRETS
    INVARIANT(a_device_is_never_stranded,
        !unit[N].spent || SECRET_OF(N).voided || SECRET_OF(N).key != unit[N].key ||
        SECRET_OF(N).names != unit[N].names || suspended[unit[N].device] || blocked[unit[N].key] ||
        SECRET_OF(N).certificate &&
            (!IS_ANSWER(SECRET_OF(N).certificate) || cert[SECRET_OF(N).certificate].old))
#else
    skip
#endif
}

/* --- what must be possible: asserted never to be by -DREACH_x, spin shows how it comes about */

#define NEVER(what) it_is_reached = (what); assert(!it_is_reached)
hidden byte it_is_reached;
#ifdef REACH_answer_of_a_node_killed_in_commit
#define LEFT_BEHIND
#endif
#ifdef REACH_answer_of_a_node_killed_after_commit
#define LEFT_BEHIND
#endif
#ifdef LEFT_BEHIND
byte left_behind = 9;          /* the certificate that a killed node could tell nobody of */
#endif
#ifdef REACH_guard_finds_what_was_not_read
bit came_late;
#endif
#ifdef REACH_commit_after_looking_up
bit looked_up;
#endif
