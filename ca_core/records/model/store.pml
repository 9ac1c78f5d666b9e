/* The store: what is committed in it, what statements ask of it, and which locks are held. */

typedef Certificate {
    unsigned device : 1;
    unsigned key : 1;
    unsigned names : 1;
    unsigned transaction : 1;  /* whether it was asked for in the device's one transaction (SCEP) */
    unsigned credential : 3;   /* what was shown; of a renewal that is the certificate it renews */
    unsigned version : 1;      /* of the realm */
    unsigned revoked : 1;
    unsigned replaced : 1;
    unsigned old : 1;          /* the retry window since it was issued is over */
    unsigned held : 1          /* its device has it */
};
Certificate cert[CERTS + 1];   /* by id, from 1 on */
#ifdef OWN
byte certs = 1;                /* the newest id. Device 0 got its first certificate long ago, for key 0 */
#else
byte certs;
#endif

#ifdef SECRETS
typedef Secret {
    unsigned made : 1;         /* asked only of the one that is made later */
    unsigned expired : 1;
    unsigned voided : 1;
    unsigned spent : 1;
    unsigned key : 1;
    unsigned names : 1;
    unsigned certificate : 2
};
Secret secret[SECRETS];
#endif

bit suspended[2];              /* devices */
bit blocked[2];                /* keys */
bit replaced;                  /* device 0 has another board than the factory identity that it showed */
bit version;                   /* of the realm */
bit retired;                   /* the issuer */

/* A request on its node, and its unit in the store when it has come so far. */
typedef Unit {
    unsigned sent : 1;         /* the locks are taken, all conditions were found true, and COMMIT is on its way */
    unsigned device : 1;
    unsigned key : 1;
    unsigned names : 1;
    unsigned transaction : 1;
    unsigned credential : 3;
    unsigned version : 1;      /* of the realm, as it was read */
    unsigned spent : 1;        /* whether the secret was, as it was read */
    unsigned late : 1;         /* whether the secret had expired when the request was decided */
    unsigned owner : 2         /* of a unit whose connection died: the node, from 1 on, that waits for its outcome */
};
Unit unit[2 + CRASHES];        /* the nodes' own; then those whose connection died */
byte made[2];                  /* by node: the certificate that its present request has led to */
byte crashes;

/* --- what is shown as a credential: the factory identity, a certificate by its id, or a secret */

#define FACTORY_IDENTITY 0
#define FIRST_SECRET 4
#define BY_SECRET(u) (unit[u].credential >= FIRST_SECRET)
#define BY_FACTORY(u) (unit[u].credential == FACTORY_IDENTITY)
#ifdef FACTORY
#define REPLACED(u) (BY_FACTORY(u) && unit[u].device == 0 && replaced)
#else
#define REPLACED(u) false
#endif
#define BY_OWN(u) (unit[u].credential != FACTORY_IDENTITY && unit[u].credential < FIRST_SECRET)
#define SECRET_OF(u) secret[unit[u].credential - FIRST_SECRET]
/* A factory identity's key has the number of its device. */
#define CREDENTIAL_KEY(u) (BY_OWN(u) -> cert[unit[u].credential].key : unit[u].device)

/* --- what statements ask: of the unit u, whether the certificate c is such a one */

#define ANY(is, u) (is(u, 1) || is(u, 2) || is(u, 3))
#define NEWEST(is, u) (is(u, 3) -> 3 : (is(u, 2) -> 2 : 1))
#define THERE(c) (c <= certs)

#define OTHERS_KEY(u, c) (THERE(c) && cert[c].key == unit[u].key && cert[c].device != unit[u].device)
#define OF_TRANSACTION(u, c) \
    (THERE(c) && unit[u].transaction && cert[c].transaction && cert[c].device == unit[u].device)
#define TRANSACTION_OF_OTHER_KEY(u, c) (OF_TRANSACTION(u, c) && cert[c].key != unit[u].key && !cert[c].old)
#define OF_TRANSACTION_AND_KEY(u, c) (OF_TRANSACTION(u, c) && cert[c].key == unit[u].key)
#define RENEWED_IN_TRANSACTION(u, c) (OF_TRANSACTION_AND_KEY(u, c) && cert[c].credential == unit[u].credential)
#define OWN_NEWER_REVOKED(u, c) (cert[c].revoked && c > unit[u].credential && cert[c].device == unit[u].device)

#define REVOKED_AFTER(c, x) (x > c && cert[x].revoked && cert[x].device == cert[c].device)
#define IS_ANSWER(c) \
    (THERE(c) && !cert[c].revoked && !cert[c].replaced && !REVOKED_AFTER(c, 2) && !REVOKED_AFTER(c, 3))

/* The request_key, in which a transaction stands in the place of the realm's version. */
#ifdef TRANSACTIONS
#define SAME_VERSION(u, c) true
#else
#define SAME_VERSION(u, c) (cert[c].version == unit[u].version)
#endif
#define SAME_REQUEST(u, c) \
    (THERE(c) && cert[c].device == unit[u].device && cert[c].credential == unit[u].credential && \
     cert[c].key == unit[u].key && cert[c].names == unit[u].names && \
     cert[c].transaction == unit[u].transaction && SAME_VERSION(u, c))
/* "a renewal is keyed by the certificate being renewed": however late it comes, it is the same one */
#define ASKED_BEFORE(u, c) (SAME_REQUEST(u, c) && (BY_OWN(u) || !cert[c].old) && IS_ANSWER(c))
#define USABLE_OF_TRANSACTION(u, c) (OF_TRANSACTION_AND_KEY(u, c) && IS_ANSWER(c))

/* --- locks: held for as long as a transaction lives, also when its node does not any more */

#define SENT(x) unit[x].sent
#define DEVICE_HELD(u, x) (SENT(x) && x != u && unit[x].device == unit[u].device)
#define KEY_HELD(u, x) (SENT(x) && x != u && unit[x].key == unit[u].key)

/* The gate, exclusively. Who takes it so (operators) is done in the very step, so that nobody ever waits for them. */
#ifdef WITHOUT_lock_gate
#define GATE true
#else
#define GATE (!SENT(0) && !SENT(1) && !SENT(2) && !SENT(3))
#endif
#ifdef WITHOUT_lock_device
#define DEVICE_LOCK(u) true
#else
#define DEVICE_LOCK(u) (!DEVICE_HELD(u, 0) && !DEVICE_HELD(u, 1) && !DEVICE_HELD(u, 2) && !DEVICE_HELD(u, 3))
#endif
#ifdef WITHOUT_lock_key
#define KEY_LOCK(u) true
#else
#define KEY_LOCK(u) (!KEY_HELD(u, 0) && !KEY_HELD(u, 1) && !KEY_HELD(u, 2) && !KEY_HELD(u, 3))
#endif
