/* How a transaction ends, and what remains of a request. */

inline spend(u) {
    SECRET_OF(u).spent = 1;
    SECRET_OF(u).key = unit[u].key;
    SECRET_OF(u).names = unit[u].names
}

hidden byte waiting;           /* the node, from 1 on, that waits for the commit; 0 when nobody does any more */

/* All that the unit wrote is seen at once, and its locks are free. */
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
        INVARIANT(one_asking_makes_one_certificate, made[waiting - 1] == 0);
        made[waiting - 1] = certs
    :: else
    fi;
    unit[u].sent = 0
}

inline forget(u) {
    unit[u].sent = 0;
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

/* The connection dies while COMMIT is on its way: the transaction lives on, and may end either way at any time. */
inline lose_connection(u, for_whom) {
    unit[2 + crashes].sent = 1;
    unit[2 + crashes].device = unit[u].device;
    unit[2 + crashes].key = unit[u].key;
    unit[2 + crashes].names = unit[u].names;
    unit[2 + crashes].transaction = unit[u].transaction;
    unit[2 + crashes].credential = unit[u].credential;
    unit[2 + crashes].version = unit[u].version;
    unit[2 + crashes].late = unit[u].late;
    unit[2 + crashes].owner = for_whom;
    unit[u].sent = 0;
    crashes++
}
