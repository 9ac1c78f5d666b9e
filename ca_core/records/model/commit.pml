/* The commit of a certificate on a store that several nodes share. README.md tells what stands for what.
 *
 * One scenario is chosen by -DSCENARIO_x. With -DTRANSACTIONS the requests of device 0 carry a transactionID, with
 * -DNAMES they may ask for other names. -DACTS=n bounds the acts of operators and of time. -DWITHOUT_x takes a condition,
 * a lock or a rule away; -DREACH_x asserts that something possible never happens.
 */

#define CRASHES 2
#define CERTS 3
#ifndef ACTS
#define ACTS 2
#endif

#ifdef SCENARIO_SECRET   /* each device has a secret, and device 0 may get another one */
#define SECRETS 3
#endif
#ifdef SCENARIO_FACTORY  /* each device has its factory identity */
#define FACTORY
#endif
#ifdef SCENARIO_OWN      /* device 0 has a certificate, device 1 a secret */
#define OWN
#define SECRETS 2
#endif
#ifdef SCENARIO_MIXED    /* each device has its factory identity, and device 0 a secret too */
#define FACTORY
#define SECRETS 1
#endif

#define N _pid           /* a node is its process */

#include "store.pml"
#include "invariants.pml"
#include "conditions.pml"
#include "transactions.pml"

byte acts;

/* --- a request, on the node that it was sent to */

/* A device asks anything that it can, at any time, at any node: so it also asks again, here or there. */
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
    :: unit[N].credential = FACTORY_IDENTITY
#endif
#ifdef SCENARIO_MIXED
    :: unit[N].device == 0 -> unit[N].credential = FIRST_SECRET
#endif
#ifdef SCENARIO_OWN
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
    :: unit[N].device == 0 -> unit[N].names = 1
    :: true
    fi;
#endif
    skip
}

/* What is judged on facts as they are read. */
#ifdef SECRETS
#ifdef WITHOUT_rule_one_key
#define OTHER_KEY false
#else
#define OTHER_KEY (SECRET_OF(N).key != unit[N].key)
#endif
#define SECRET_REFUSED (BY_SECRET(N) && (SECRET_OF(N).voided || \
    (SECRET_OF(N).spent -> OTHER_KEY || cert[SECRET_OF(N).certificate].old : SECRET_OF(N).expired)))
#define SECRET_SPENT (BY_SECRET(N) && SECRET_OF(N).spent)
#define SECRET_LATE (BY_SECRET(N) && !unit[N].spent && SECRET_OF(N).expired)
#else
#define SECRET_REFUSED false
#define SECRET_SPENT false
#define SECRET_LATE false
#endif
#define NOT_AUTHENTICATED (SECRET_REFUSED || suspended[unit[N].device] || REPLACED(N) || \
    BY_OWN(N) && (cert[unit[N].credential].revoked || ANY(OWN_NEWER_REVOKED, N)))

#ifdef WITHOUT_rule_any_transaction
#define AGAIN_BY_SECRET false
#else
#define AGAIN_BY_SECRET unit[N].spent
#endif
#define NOT_AUTHORIZED (blocked[unit[N].key] || !BY_SECRET(N) && blocked[CREDENTIAL_KEY(N)] || \
    ANY(OTHERS_KEY, N) || ANY(TRANSACTION_OF_OTHER_KEY, N) && !AGAIN_BY_SECRET)

#ifdef FACTORY
#define BEGUN ANY(OF_TRANSACTION_AND_KEY, N)
#define FOR_OTHER_REQUEST false
#else
#define BEGUN ANY(RENEWED_IN_TRANSACTION, N)
#define FOR_OTHER_REQUEST (!ANY(SAME_REQUEST, N))
#endif

/* The node has nothing of the request any more. */
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
    check_refusal();
    end_request()
}

inline answer(found) {
    check_answer(found);
#ifdef OWN
    cert[found].held = 1;
#endif
    skip
}

/* With the certificate of an earlier request; or the answer is lost. */
inline answer_again(found) {
#ifdef LEFT_BEHIND
    NEVER(found == left_behind);
#endif
    if
    :: answer(found)
    :: true
    fi;
    end_request()
}

/* A node may be killed at any step. Where nothing of its request is on its way to the store, that is as if the request
 * had never come, or as if the answer were lost; so such crashes are free, and only the others are counted.
 */
#define KILLED true -> end_request(); goto end_idle

/* The model's own end: it knows so many certificates. */
#define ROOM (certs + SENT(0) + SENT(1) + SENT(2) + SENT(3) < CERTS)

/* --- a node: one request after the other */

active [2] proctype Node() {
end_idle:
    atomic {
        ask();
asked:  /* From here on, what is read is read without locks, and may be old when it is used. */
        unit[N].spent = SECRET_SPENT;
        if
        :: NOT_AUTHENTICATED ->
            refuse();
            goto end_idle
        :: else ->
            if
            :: unit[N].version = version
            :: version -> unit[N].version = 0 /* it was read before it changed */
            fi;
            goto authenticated
        fi
    }

asked_again: /* Decided again, on facts as they will be. */
    atomic {
        goto asked
    }

authenticated:
    atomic {
        if
        :: KILLED
        :: NOT_AUTHORIZED ->
            refuse();
            goto end_idle
        :: !NOT_AUTHORIZED ->
            unit[N].late = SECRET_LATE;
            goto authorized
        fi
    }

authorized: /* Was it asked before? */
    atomic {
        if
        :: KILLED
#ifdef SECRETS
        :: BY_SECRET(N) && unit[N].spent ->
            if
            :: SECRET_OF(N).names == unit[N].names && SECRET_OF(N).certificate &&
               IS_ANSWER(SECRET_OF(N).certificate) ->
                answer_again(SECRET_OF(N).certificate)
            :: else -> refuse()
            fi;
            goto end_idle
        :: BY_SECRET(N) && !unit[N].spent -> goto decided
#endif
#if defined(TRANSACTIONS) && !defined(SCENARIO_SECRET)
        :: !BY_SECRET(N) && unit[N].transaction && BEGUN ->
            if
            :: !FOR_OTHER_REQUEST && ANY(USABLE_OF_TRANSACTION, N) ->
                answer_again(NEWEST(USABLE_OF_TRANSACTION, N))
            :: else -> refuse()
            fi;
            goto end_idle
        :: !BY_SECRET(N) && unit[N].transaction && !BEGUN -> goto decided
#endif
#if defined(FACTORY) || defined(OWN) && !defined(TRANSACTIONS)
        :: !BY_SECRET(N) && !unit[N].transaction && ANY(ASKED_BEFORE, N) ->
            answer_again(NEWEST(ASKED_BEFORE, N));
            goto end_idle
        :: !BY_SECRET(N) && !unit[N].transaction && !ANY(ASKED_BEFORE, N) -> goto decided
#endif
        fi
    }

decided: /* Signed in memory; the locks are waited for, and then the guard is asked. */
    atomic {
        if
        :: KILLED
        :: ROOM && DEVICE_LOCK(N) && KEY_LOCK(N) ->
            guard();
            if
            :: holds ->
                unit[N].sent = 1;
#ifdef WITHOUT_rule_one_transaction
                spend(N);
#endif
#ifdef WITHOUT_rule_answer_after_commit
                answer(made[N]);
#endif
                goto sent
            :: else ->
#ifdef REACH_guard_finds_what_was_not_read
                NEVER(came_late && certs == 1 && acts == 0);
#endif
                goto asked_again
            fi
        fi
    }

sent:
    atomic {
        if
        :: crashes < CRASHES -> /* the node is killed */
            lose_connection(N, 0);
            end_request();
            goto end_idle
        :: crashes < CRASHES -> /* only the connection dies */
            lose_connection(N, N + 1);
            goto unknown
        :: true ->
            waiting = N + 1;
            commit(N);
            goto durable
        fi
    }

durable:
    atomic {
#ifdef REACH_commit_after_looking_up
        NEVER(looked_up);
#endif
#ifdef REACH_all_served_in_spite_of_all_crashes
        NEVER(crashes == CRASHES && certs == CERTS);
#endif
#ifdef REACH_renewal_by_a_renewed_certificate
        NEVER(cert[certs].credential == 2);
#endif
        if
#ifdef REACH_answer_of_a_node_killed_after_commit
        :: left_behind = made[N];
            end_request();
            goto end_idle
#endif
        :: KILLED
        :: true ->
            answer(made[N]);
            end_request();
            goto end_idle
        fi
    }

unknown: /* Was it committed? Who gets the same locks knows that its transaction has ended. */
    atomic {
        if
        :: KILLED /* or the store can't be reached */
#ifdef WITHOUT_rule_look_up
        :: true -> goto asked_again
#else
#ifdef WITHOUT_rule_look_up_under_locks
        :: true ->
#else
        :: DEVICE_LOCK(N) && KEY_LOCK(N) ->
#endif
            if
            :: made[N] ->
#ifdef REACH_answer_after_looking_up
                NEVER(true);
#endif
                answer(made[N]);
                end_request();
                goto end_idle
            :: else ->
#ifdef REACH_commit_after_looking_up
                looked_up = 1;
#endif
                goto decided
            fi
#endif
        fi
    }
}

/* --- all else: transactions without a connection, operators, and time */

#define ACT(may) atomic { acts < ACTS && (may) -> acts++;
#define VALID(c) (THERE(c) && !cert[c].revoked)
#define AGES(c) (THERE(c) && !cert[c].old)

inline revoke(c) {
    cert[c].revoked = 1;
    if
    :: true
    :: blocked[cert[c].key] = 1 /* keyCompromise */
    fi
}

inline end_of(u) {
    if
    :: true ->
        waiting = unit[u].owner;
#ifdef REACH_answer_of_a_node_killed_in_commit
        left_behind = (waiting -> left_behind : certs + 1);
#endif
        commit(u)
#ifdef REACH_guard_finds_what_was_not_read
        ; came_late = 1
#endif
    :: true /* rolled back */
    fi;
    forget(u)
}

active proctype World() {
end_world:
    do
    :: atomic { SENT(2) -> end_of(2) }
    :: atomic { SENT(3) -> end_of(3) }
    :: ACT(GATE && !suspended[0]) suspended[0] = 1 }
    :: ACT(GATE && suspended[0]) suspended[0] = 0 }
#ifdef FACTORY
    :: ACT(GATE && !replaced) replaced = 1 }
#endif
    :: ACT(GATE && !version) version = 1 }
    :: ACT(GATE && !retired) retired = 1 }
    :: ACT(GATE && VALID(1)) revoke(1) }
    :: ACT(GATE && VALID(2)) revoke(2) }
    :: ACT(GATE && VALID(3)) revoke(3) }
#ifdef SCENARIO_SECRET
    :: ACT(GATE && !secret[2].made) secret[2].made = 1; secret[0].voided = 1 }
#endif
    :: ACT(AGES(1)) cert[1].old = 1 }
    :: ACT(AGES(2)) cert[2].old = 1 }
    :: ACT(AGES(3)) cert[3].old = 1 }
#if defined(SCENARIO_SECRET) || defined(SCENARIO_MIXED)
    :: ACT(!secret[0].expired) secret[0].expired = 1 }
#endif
    od
}
