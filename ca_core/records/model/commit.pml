/* The commit protocol of a certificate on a store that several nodes share. README.md tells what stands for what.
 *
 * One scenario is chosen by -DSCENARIO_SECRET, _FACTORY or _OWN; -DTRANSACTIONS has the requests of device 0 carry a
 * transactionID (SCEP). -DWITHOUT_x takes one condition, lock or rule away; -DREACH_x says that something never happens.
 */

#ifndef ACTS
#define ACTS 2     /* of operators and of time, in all */
#endif
#define CRASHES 2

#ifdef SCENARIO_SECRET   /* each device has a secret, device 0 may get another one */
#define SECRETS 3
#define CERTS 3          /* one for each secret */
#endif
#ifdef SCENARIO_FACTORY  /* each device has its factory identity, whose key has the number of the device */
#define FACTORY
#endif
#ifdef SCENARIO_OWN      /* device 0 has a certificate for key 0, device 1 a secret */
#define OWN
#define SECRETS 2
#endif
#ifdef SCENARIO_MIXED    /* each device has its factory identity, device 0 also a secret */
#define FACTORY
#define SECRETS 1
#endif
#ifndef CERTS
#define CERTS 3
#endif

/* What is shown as a credential: 0 is the factory identity, 1 to 3 a certificate by its id, from 4 on a secret. */
#define FIRST_SECRET 4
#define BY_SECRET(u) (unit[u].credential >= FIRST_SECRET)
#define BY_FACTORY(u) (unit[u].credential == 0)
#define BY_OWN(u) (unit[u].credential != 0 && unit[u].credential < FIRST_SECRET)

#define ANY(is, u) (is(u, 1) || is(u, 2) || is(u, 3))

/* --- the store, as it is committed ---------------------------------------------------------------------------------*/

typedef Certificate {
    unsigned device : 1;
    unsigned key : 1;
    unsigned names : 1;
    unsigned transaction : 1;  /* whether it was asked for in the transaction that there is */
    unsigned credential : 3;   /* the secret or certificate that was shown: what a renewal renews */
    unsigned version : 1;      /* of the realm */
    unsigned revoked : 1;
    unsigned replaced : 1;
    unsigned old : 1;          /* the retry window since it was issued is over */
    unsigned held : 1          /* a client has it */
};
Certificate cert[CERTS + 1];   /* by id, from 1 */
#ifdef OWN
byte certs = 1;                /* the newest id; device 0 got its first certificate long ago, for key 0 */
#else
byte certs;
#endif

#ifdef SECRETS
typedef Secret {
    unsigned made : 1;
    unsigned expired : 1;
    unsigned voided : 1;
    unsigned spent : 1;
    unsigned key : 1;
    unsigned names : 1;
    unsigned certificate : 3
};
Secret secret[SECRETS];
#endif

bit suspended[2], blocked[2];
bit version, retired;          /* of the realm; the issuer's state */
byte crashes, acts;

/* --- requests and their transactions -------------------------------------------------------------------------------*/

#define FREE 0
#define SENT 1  /* the locks are taken, the guard has found all conditions true, and COMMIT is on its way */

typedef Unit {
    unsigned state : 1;
    unsigned device : 1;
    unsigned key : 1;
    unsigned names : 1;
    unsigned transaction : 1;
    unsigned credential : 3;
    unsigned version : 1;  /* of the realm, as read */
    unsigned spent : 1;    /* whether the secret was, as read */
    unsigned late : 1;     /* whether the secret had expired when the request was decided */
    unsigned owner : 2     /* of a transaction without its connection: the node that waits for its outcome, from 1 */
};
Unit unit[2 + CRASHES];    /* the node's own; then those whose connection died */
byte made[2];              /* the certificate that the node's present request has led to */

#define N _pid             /* a node is its process */

/* --- what statements ask of the store ------------------------------------------------------------------------------*/

#define THERE(c) (c <= certs)
#define OWN_NEWER_REVOKED(u, c) (cert[c].revoked && c > unit[u].credential && cert[c].device == unit[u].device)
#define OTHERS_KEY(u, c) (THERE(c) && cert[c].key == unit[u].key && cert[c].device != unit[u].device)
#define OF_TRANSACTION(u, c) (THERE(c) && unit[u].transaction && cert[c].transaction && cert[c].device == unit[u].device)
#define TRANSACTION_OF_OTHER_KEY(u, c) (OF_TRANSACTION(u, c) && cert[c].key != unit[u].key && !cert[c].old)
#define OF_TRANSACTION_AND_KEY(u, c) (OF_TRANSACTION(u, c) && cert[c].key == unit[u].key)
#define RENEWED_IN_TRANSACTION(u, c) (OF_TRANSACTION_AND_KEY(u, c) && cert[c].credential == unit[u].credential)

#define REVOKED_AFTER(c, x) (x > c && cert[x].revoked && cert[x].device == cert[c].device)
#define NEWER_REVOKED(c) (REVOKED_AFTER(c, 2) || REVOKED_AFTER(c, 3))
#define IS_ANSWER(c) (THERE(c) && !cert[c].revoked && !cert[c].replaced && !NEWER_REVOKED(c))

#ifdef TRANSACTIONS
#define SAME_VERSION(u, c) true
#else
#define SAME_VERSION(u, c) (cert[c].version == unit[u].version)
#endif
/* The request_key: the realm's version counts only where no transaction is named. */
#define SAME_REQUEST(u, c) (THERE(c) && cert[c].device == unit[u].device && cert[c].credential == unit[u].credential \
    && cert[c].key == unit[u].key && cert[c].names == unit[u].names && cert[c].transaction == unit[u].transaction \
    && SAME_VERSION(u, c))
#define ASKED_BEFORE(u, c) (SAME_REQUEST(u, c) && (BY_OWN(u) || !cert[c].old) && IS_ANSWER(c))
#define USABLE_OF_TRANSACTION(u, c) (OF_TRANSACTION_AND_KEY(u, c) && IS_ANSWER(c))

#define SECRET_OF(u) secret[unit[u].credential - FIRST_SECRET]
#define CREDENTIAL_KEY(u) (BY_OWN(u) -> cert[unit[u].credential].key : unit[u].device)

/* --- locks: held by PostgreSQL for as long as a transaction lives, whoever began it ---------------------------------*/

#define LIVES(x) (unit[x].state != FREE)
#define SAME_DEVICE(u, x) (LIVES(x) && x != u && unit[x].device == unit[u].device)
#define SAME_KEY(u, x) (LIVES(x) && x != u && unit[x].key == unit[u].key)

#define NO_ISSUING (!LIVES(0) && !LIVES(1) && !LIVES(2) && !LIVES(3))
#define DEVICE_FREE(u) (!SAME_DEVICE(u, 0) && !SAME_DEVICE(u, 1) && !SAME_DEVICE(u, 2) && !SAME_DEVICE(u, 3))
#define KEY_FREE(u) (!SAME_KEY(u, 0) && !SAME_KEY(u, 1) && !SAME_KEY(u, 2) && !SAME_KEY(u, 3))

/* An operator's act takes the gate alone, and is done when it has it: so nobody ever sees the gate held exclusively. */
#ifdef WITHOUT_lock_gate
#define GATE true
#else
#define GATE NO_ISSUING
#endif
#ifdef WITHOUT_lock_device
#define DEVICE_LOCK(u) true
#else
#define DEVICE_LOCK(u) DEVICE_FREE(u)
#endif
#ifdef WITHOUT_lock_key
#define KEY_LOCK(u) true
#else
#define KEY_LOCK(u) KEY_FREE(u)
#endif

/* --- invariants: each is told by its name when it does not hold -----------------------------------------------------*/

hidden byte nothing_leaves_before_its_record_is_durable; /* 3.1 */
hidden byte nothing_is_issued_after_a_suspend; /* 3.1 */
hidden byte nothing_is_issued_after_a_revoke; /* 3.1 */
hidden byte nothing_is_issued_after_a_revoke_of_a_newer_one; /* 3.1 */
hidden byte nothing_is_issued_for_a_blocked_key; /* 3.1 */
hidden byte nothing_is_issued_to_a_blocked_key; /* 3.1 */
hidden byte nothing_is_issued_under_an_old_realm; /* 3.1 */
hidden byte nothing_is_issued_by_a_retired_issuer; /* 3.1 */
hidden byte a_key_is_of_one_device; /* 3.1 */
hidden byte one_asking_makes_one_certificate; /* 3.1: never signed again blindly */
hidden byte a_secret_serves_once; /* 3.5 */
hidden byte a_void_or_expired_secret_serves_nothing_new; /* 3.5 */
hidden byte a_device_is_never_stranded; /* 3.5 */
hidden byte the_answer_is_for_the_key_that_asks;           /* 3.5 */
hidden byte a_retransmission_is_not_a_second_request; /* 3.7 */
hidden byte a_transaction_renews_once; /* 3.7 */
hidden byte a_transaction_is_of_one_key; /* 3.7 */
hidden byte a_factory_identity_certifies_a_key_once; /* 3.7 */
hidden byte holds; 

/* --- the commit: all that a transaction wrote is seen at once, and its locks are free -------------------------------*/

#define OF_ONE_SECRET(u, c) (THERE(c) && cert[c].device == unit[u].device && cert[c].credential == unit[u].credential)

inline check_invariants(u) {
    nothing_is_issued_after_a_suspend = !suspended[unit[u].device];
    assert(nothing_is_issued_after_a_suspend);
    nothing_is_issued_to_a_blocked_key = !blocked[unit[u].key];
    assert(nothing_is_issued_to_a_blocked_key);
    nothing_is_issued_under_an_old_realm = unit[u].version == version;
    assert(nothing_is_issued_under_an_old_realm);
    nothing_is_issued_by_a_retired_issuer = !retired;
    assert(nothing_is_issued_by_a_retired_issuer);
    a_key_is_of_one_device = !ANY(OTHERS_KEY, u);
    assert(a_key_is_of_one_device);
    a_transaction_is_of_one_key = !ANY(TRANSACTION_OF_OTHER_KEY, u);
    assert(a_transaction_is_of_one_key);
#ifdef SECRETS
    a_secret_serves_once = !(BY_SECRET(u) && ANY(OF_ONE_SECRET, u));
    assert(a_secret_serves_once);
    a_void_or_expired_secret_serves_nothing_new =
        !(BY_SECRET(u) && (SECRET_OF(u).voided || unit[u].late));
    assert(a_void_or_expired_secret_serves_nothing_new);
#endif
    nothing_is_issued_for_a_blocked_key = BY_SECRET(u) || !blocked[CREDENTIAL_KEY(u)];
    assert(nothing_is_issued_for_a_blocked_key);
    nothing_is_issued_after_a_revoke = !(BY_OWN(u) && cert[unit[u].credential].revoked);
    assert(nothing_is_issued_after_a_revoke);
    nothing_is_issued_after_a_revoke_of_a_newer_one = !(BY_OWN(u) && ANY(OWN_NEWER_REVOKED, u));
    assert(nothing_is_issued_after_a_revoke_of_a_newer_one);
    a_transaction_renews_once = !(BY_OWN(u) && ANY(RENEWED_IN_TRANSACTION, u));
    assert(a_transaction_renews_once);
    a_factory_identity_certifies_a_key_once = !(BY_FACTORY(u) && ANY(OF_TRANSACTION_AND_KEY, u));
    assert(a_factory_identity_certifies_a_key_once);
    a_retransmission_is_not_a_second_request = BY_SECRET(u) || !ANY(ASKED_BEFORE, u);
    assert(a_retransmission_is_not_a_second_request)
}

inline spend(u) {
    SECRET_OF(u).spent = 1;
    SECRET_OF(u).key = unit[u].key;
    SECRET_OF(u).names = unit[u].names
}

hidden byte waiting; /* the node, from 1, that waits for the commit; 0 when nobody does any more */

inline commit(u) {
    check_invariants(u);
    certs++;
    cert[certs].device = unit[u].device;
    cert[certs].key = unit[u].key;
    cert[certs].names = unit[u].names;
    cert[certs].transaction = unit[u].transaction;
    cert[certs].credential = unit[u].credential;
#ifndef TRANSACTIONS
    cert[certs].version = unit[u].version;
#endif
#ifdef SECRETS
    if
    :: BY_SECRET(u) ->
        spend(u);
        SECRET_OF(u).certificate = certs
    :: else
    fi;
#endif
#ifdef OWN
    if
    :: BY_OWN(u) -> cert[unit[u].credential].replaced = 1
    :: else
    fi;
#endif
    if
    :: waiting ->
        one_asking_makes_one_certificate = made[waiting - 1] == 0;
        assert(one_asking_makes_one_certificate);
        made[waiting - 1] = certs
    :: else
    fi
}

inline forget(u) {
    unit[u].state = FREE;
    unit[u].device = 0;
    unit[u].key = 0;
    unit[u].names = 0;
    unit[u].transaction = 0;
    unit[u].credential = 0;
    unit[u].version = 0;
    unit[u].spent = 0;
    unit[u].late = 0;
    unit[u].owner = 0
}

/* The connection of a sent COMMIT is gone: the transaction lives on without it. */
inline orphan(u, for_whom) {
    unit[2 + crashes].state = SENT;
    unit[2 + crashes].device = unit[u].device;
    unit[2 + crashes].key = unit[u].key;
    unit[2 + crashes].names = unit[u].names;
    unit[2 + crashes].transaction = unit[u].transaction;
    unit[2 + crashes].credential = unit[u].credential;
    unit[2 + crashes].version = unit[u].version;
    unit[2 + crashes].late = unit[u].late;
    unit[2 + crashes].owner = for_whom
}

/* --- the conditions of the guard, by the names of ca_core/registration/conditions.py --------------------------------*/

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

#ifdef SECRETS
inline by_secret() {
    holds =
        holds &&
#ifndef WITHOUT_secret_unspent
        !SECRET_OF(N).spent && !SECRET_OF(N).voided && !unit[N].late &&
#endif
        true
}
#endif

inline by_factory_identity() {
    holds =
        holds &&
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
    holds =
        holds &&
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

/* --- a node: one request after the other, from any device -----------------------------------------------------------*/


inline answer(found) {
    nothing_leaves_before_its_record_is_durable = found != 0 && THERE(found);
    assert(nothing_leaves_before_its_record_is_durable);
    the_answer_is_for_the_key_that_asks = cert[found].device == unit[N].device && cert[found].key == unit[N].key &&
        (!BY_SECRET(N) || cert[found].names == unit[N].names);
    assert(the_answer_is_for_the_key_that_asks);
#ifdef OWN
    cert[found].held = 1;
#endif
}

/* The node knows nothing of the request any more. */
inline end_request() {
    forget(N);
    made[N] = 0;
    if
    :: unit[2].owner == N + 1 -> unit[2].owner = 0
    :: else
    fi;
    if
    :: unit[3].owner == N + 1 -> unit[3].owner = 0
    :: else
    fi
}

inline refuse() {
#ifdef SECRETS
    /* Whoever knows that the secret is spent asks again; and nothing has happened by which this would be void. */
    a_device_is_never_stranded = !(unit[N].spent && !SECRET_OF(N).voided && SECRET_OF(N).key == unit[N].key &&
        SECRET_OF(N).names == unit[N].names && !suspended[unit[N].device] && !blocked[unit[N].key] &&
        (!SECRET_OF(N).certificate ||
            IS_ANSWER(SECRET_OF(N).certificate) && !cert[SECRET_OF(N).certificate].old));
    assert(a_device_is_never_stranded);
#endif
    end_request()
}

inline ask() {
    if
    :: unit[N].device = 0
    :: unit[N].device = 1
    fi;
    if
    :: unit[N].key = 0
    :: unit[N].key = 1
    fi;
    if
#ifdef SCENARIO_SECRET
    :: unit[N].credential = FIRST_SECRET + unit[N].device
    :: unit[N].device == 0 && secret[2].made -> unit[N].credential = FIRST_SECRET + 2
#endif
#ifdef FACTORY
    :: unit[N].credential = 0
#endif
#ifdef SCENARIO_MIXED
    :: unit[N].device == 0 -> unit[N].credential = FIRST_SECRET
#endif
#ifdef OWN
    :: unit[N].device == 1 -> unit[N].credential = FIRST_SECRET + 1
    :: unit[N].device == 0 -> unit[N].credential = 1
    :: unit[N].device == 0 && cert[2].held && cert[2].device == 0 -> unit[N].credential = 2
#endif
    fi;
#ifdef TRANSACTIONS
    if
    :: unit[N].device == 0 -> unit[N].transaction = 1
#ifdef SCENARIO_MIXED
    :: BY_SECRET(N)
#endif
    :: unit[N].device == 1
    fi;
#endif
#ifdef NAMES
    if
    :: unit[N].device == 0
    :: unit[N].device == 0 -> unit[N].names = 1
    :: unit[N].device == 1
    fi
#endif
}

#define STRANGER (suspended[unit[N].device] \
    || BY_OWN(N) && (cert[unit[N].credential].revoked || ANY(OWN_NEWER_REVOKED, N)))
#ifdef SECRETS
#ifdef WITHOUT_rule_one_key
#define ANOTHER_KEY false
#else
#define ANOTHER_KEY (SECRET_OF(N).key != unit[N].key)
#endif
#define REFUSED_SECRET (BY_SECRET(N) && (SECRET_OF(N).voided \
    || SECRET_OF(N).spent && (ANOTHER_KEY || cert[SECRET_OF(N).certificate].old) \
    || !SECRET_OF(N).spent && SECRET_OF(N).expired))
#else
#define REFUSED_SECRET false
#endif
#ifdef WITHOUT_rule_any_transaction
#define IN_ANY_TRANSACTION false
#else
#define IN_ANY_TRANSACTION unit[N].spent
#endif
#define REFUSED_FACTS (blocked[unit[N].key] || !BY_SECRET(N) && blocked[CREDENTIAL_KEY(N)] || ANY(OTHERS_KEY, N) \
    || ANY(TRANSACTION_OF_OTHER_KEY, N) && !IN_ANY_TRANSACTION)
#define NEWEST(is) (is(N, 3) -> 3 : (is(N, 2) -> 2 : 1))

/* The model's own end: it knows so many certificates. */
#define FULL (certs + LIVES(0) + LIVES(1) + LIVES(2) + LIVES(3) >= CERTS)

/* A node may be killed at any step. Where nothing of the request is under way in the store, this is as if it had never
 * been asked, or as if the answer were lost; so it is not counted there. */
#define KILLED true -> end_request(); goto end_idle

active [2] proctype Node() {
end_idle:
    atomic {
        ask();
asked:  /* What is read from here on is read without locks, at a time of its own, and may be old when it is used. */
#ifdef SECRETS
        unit[N].spent = BY_SECRET(N) && SECRET_OF(N).spent;
#else
        skip;
#endif
        if
        :: STRANGER || REFUSED_SECRET ->
            refuse();
            goto end_idle
        :: else ->
            if
            :: unit[N].version = version
            :: version -> unit[N].version = 0 /* it was read before that */
            fi;
            goto authenticated
        fi
    }

authenticated:
    atomic {
        if
        :: KILLED
        :: REFUSED_FACTS ->
            refuse();
            goto end_idle
        :: !REFUSED_FACTS ->
#ifdef SECRETS
            unit[N].late = BY_SECRET(N) && !unit[N].spent && SECRET_OF(N).expired;
#endif
            goto not_refused
        fi
    }

not_refused: /* Was it asked before? */
    atomic {
        if
        :: KILLED
#ifdef SECRETS
        :: BY_SECRET(N) && unit[N].spent ->
            if
            :: SECRET_OF(N).names == unit[N].names && SECRET_OF(N).certificate &&
                IS_ANSWER(SECRET_OF(N).certificate) ->
                if
                :: answer(SECRET_OF(N).certificate)
                :: true /* lost on its way */
                fi;
                end_request()
            :: else -> refuse()
            fi;
            goto end_idle
        :: BY_SECRET(N) && !unit[N].spent -> goto decided
#endif
#ifdef FACTORY
#define BEGUN ANY(OF_TRANSACTION_AND_KEY, N)
#define OTHER_REQUEST false
#endif
#ifdef OWN
#define BEGUN ANY(RENEWED_IN_TRANSACTION, N)
#define OTHER_REQUEST (!ANY(SAME_REQUEST, N))
#endif
#ifndef SCENARIO_SECRET
        :: !BY_SECRET(N) && unit[N].transaction && BEGUN ->
            if
            :: !OTHER_REQUEST && ANY(USABLE_OF_TRANSACTION, N) ->
                if
                :: answer(NEWEST(USABLE_OF_TRANSACTION))
                :: true
                fi;
                end_request()
            :: else -> refuse()
            fi;
            goto end_idle
        :: !BY_SECRET(N) && !unit[N].transaction && ANY(ASKED_BEFORE, N) ->
            if
            :: answer(NEWEST(ASKED_BEFORE))
            :: true
            fi;
            end_request();
            goto end_idle
        :: !BY_SECRET(N) && !(unit[N].transaction -> BEGUN : ANY(ASKED_BEFORE, N)) -> goto decided
#endif
        fi
    }

decided: /* signed in memory; then BEGIN, the locks, and the guard, which sees what is committed now */
    atomic {
        if
        :: KILLED
        :: !FULL && DEVICE_LOCK(N) && KEY_LOCK(N) ->
            guard();
            if
            :: holds ->
                unit[N].state = SENT;
#ifdef WITHOUT_rule_one_transaction
                spend(N);
#endif
#ifdef WITHOUT_rule_answer_after_commit
                answer(made[N]);
#endif
                goto sent
            :: else -> goto asked
            fi
        fi
    }

sent: /* the steps are done, and COMMIT is on its way */
    atomic {
        if
        :: crashes < CRASHES -> /* killed */
            orphan(N, 0);
            crashes++;
            end_request();
            goto end_idle
        :: crashes < CRASHES -> /* the connection dies */
            orphan(N, N + 1);
            crashes++;
            unit[N].state = FREE;
            goto unknown
        :: true ->
            waiting = N + 1;
            commit(N);
            unit[N].state = FREE;
            goto durable
        fi
    }

durable:
    atomic {
        if
        :: KILLED /* or lost on its way */
        :: true ->
            answer(made[N]);
            end_request();
            goto end_idle
        fi
    }

unknown: /* whether it was committed; the same locks are free when its transaction has ended */
    atomic {
        if
        :: KILLED /* or the store can't be reached */
#ifdef WITHOUT_rule_look_up
        :: true -> goto asked
#else
#ifdef WITHOUT_rule_look_up_under_locks
        :: true ->
#else
        :: DEVICE_LOCK(N) && KEY_LOCK(N) ->
#endif
            if
            :: made[N] ->
                answer(made[N]);
                end_request();
                goto end_idle
            :: else -> goto decided
            fi
#endif
        fi
    }
}

/* --- all else: what becomes of transactions without a connection, operators, and time -------------------------------*/

inline ends(u) {
    if
    :: waiting = unit[u].owner;
        commit(u)
    :: true
    fi;
    forget(u)
}

#define ACT(may) atomic { acts < ACTS && (may) -> acts++;

#define VALID(c) (THERE(c) && !cert[c].revoked)

inline revoke(c) {
    cert[c].revoked = 1;
    if
    :: true
    :: blocked[cert[c].key] = 1 /* keyCompromise */
    fi
}

active proctype World() {
end_world:
    do
    :: atomic { unit[2].state == SENT -> ends(2) }
    :: atomic { unit[3].state == SENT -> ends(3) }
    :: ACT(GATE && !suspended[0]) suspended[0] = 1 }
    :: ACT(GATE && suspended[0]) suspended[0] = 0 }
    :: ACT(GATE && !version) version = 1 }
    :: ACT(GATE && !retired) retired = 1 }
    :: ACT(GATE && VALID(1)) revoke(1) }
    :: ACT(GATE && VALID(2)) revoke(2) }
    :: ACT(GATE && VALID(3)) revoke(3) }
    :: ACT(THERE(1) && !cert[1].old) cert[1].old = 1 }
    :: ACT(THERE(2) && !cert[2].old) cert[2].old = 1 }
    :: ACT(THERE(3) && !cert[3].old) cert[3].old = 1 }
#ifdef SCENARIO_SECRET
    :: ACT(GATE && !secret[2].made) secret[2].made = 1; secret[0].voided = 1 }
#endif
#if defined(SCENARIO_SECRET) || defined(SCENARIO_MIXED)
    :: ACT(!secret[0].expired) secret[0].expired = 1 }
#endif
    od
}
