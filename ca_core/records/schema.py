"""The tables, defined once for every engine.

Times are integer milliseconds since 1970 in columns that end in `_at` or `not_before`/`not_after`; hashes are raw
bytes; serials are lower-case hex without leading zeros; documents are JSON text. Only these plain types are used, so
that a statement can run as text on the driver connection without result processing.

Every row that belongs to a realm carries `realm_id`, and references across tables are composite, so that a row of one
realm can't point at a row of another.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Id = BigInteger().with_variant(Integer, "sqlite")

# Conditions of indexes over a part of a table. A statement that repeats one word by word is served by its index.
MAY_BE_OVERDUE = "state = 'active' AND last_seen_at < overdue_at"
IS_OPERATORS_ACT = "device IS NOT NULL AND (substr(action, 1, 7) = 'device.' OR action = 'secret.made')"


realm = Table(
    "realm",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", String(31), nullable=False),
    Column("state", String(16), nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("name"),
)

realm_version = Table(
    "realm_version",
    metadata,
    Column("realm_id", Id, nullable=False),
    Column("version", Integer, nullable=False),
    Column("document", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    PrimaryKeyConstraint("realm_id", "version"),
    ForeignKeyConstraint(["realm_id"], ["realm.id"]),
)

sealed_key = Table(
    "sealed_key",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", Text, nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("pkcs8", LargeBinary, nullable=False),
    Column("spki_sha256", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("name"),
)

issuer = Table(
    "issuer",
    metadata,
    Column("id", Id, primary_key=True),
    Column("realm_id", Id, nullable=False),
    Column("name", Text, nullable=False),
    Column("family", String(16), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("parent_id", Id),
    # The root of another realm that signed it, where a realm stands under a shared root: the one reference out of a
    # realm. Its own rows stay its own; the certificate row is the root's realm's, whose CA issued it.
    Column("shared_root_id", Id),
    Column("key_name", Text, nullable=False),
    Column("der", LargeBinary, nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Column("revocations", BigInteger, nullable=False, server_default=text("0")),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("name"),
    UniqueConstraint("realm_id", "family", "generation"),
    UniqueConstraint("realm_id", "id"),
    ForeignKeyConstraint(["realm_id"], ["realm.id"]),
    ForeignKeyConstraint(["realm_id", "parent_id"], ["issuer.realm_id", "issuer.id"]),
    ForeignKeyConstraint(["shared_root_id"], ["issuer.id"]),
    ForeignKeyConstraint(["key_name"], ["sealed_key.name"]),
)

crl = Table(
    "crl",
    metadata,
    Column("issuer_id", Id, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("this_update_at", BigInteger, nullable=False),
    Column("next_update_at", BigInteger, nullable=False),
    Column("revocations", BigInteger, nullable=False),
    Column("entries", BigInteger, nullable=False),
    Column("der", LargeBinary, nullable=False),
    PrimaryKeyConstraint("issuer_id", "number"),
    ForeignKeyConstraint(["issuer_id"], ["issuer.id"]),
)

device = Table(
    "device",
    metadata,
    Column("id", Id, primary_key=True),
    Column("realm_id", Id, nullable=False),
    Column("name", String(64), nullable=False),
    Column("profile", String(31)),
    Column("state", String(16), nullable=False),
    Column("serial_number", Text),
    Column("manufacturer", Text),
    Column("names", Text, nullable=False),
    Column("owner", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("last_seen_at", BigInteger),
    # Of its newest certificate: when that ends, when it should be renewed, and from when on the device is overdue
    # unless it was seen since. NULL while no renewal is expected.
    Column("not_after", BigInteger),
    Column("expected_renewal_at", BigInteger),
    Column("overdue_at", BigInteger),
    # When in its certificates' lives it renewed the last times, in thousandths, as JSON; see registration.renewal.
    Column("renewal_shares", String(40)),
    Column("import_id", Id),
    Column("replaced_by_id", Id),
    UniqueConstraint("realm_id", "name"),
    UniqueConstraint("realm_id", "manufacturer", "serial_number"),
    UniqueConstraint("realm_id", "id"),
    ForeignKeyConstraint(["realm_id"], ["realm.id"]),
    Index("ix_device_state", "realm_id", "state", "id"),
    Index(
        "ix_device_overdue",
        "realm_id",
        "overdue_at",
        "id",
        sqlite_where=text(MAY_BE_OVERDUE),
        postgresql_where=text(MAY_BE_OVERDUE),
    ),
    Index(
        "ix_device_not_after",
        "realm_id",
        "not_after",
        "id",
        sqlite_where=text("not_after IS NOT NULL"),
        postgresql_where=text("not_after IS NOT NULL"),
    ),
    # Subjects tell no cases of a serial number apart (X.520, caseIgnoreMatch).
    Index(
        "ix_device_serial_number",
        "realm_id",
        text("lower(serial_number)"),
        sqlite_where=text("serial_number IS NOT NULL"),
        postgresql_where=text("serial_number IS NOT NULL"),
    ),
)

# Whose name is whose, so that no device gets another's on its own word: keys of names (`registration/name_keys`), and
# of what every device is called, as a DNS name. Those of the record are kept by triggers
# (revision 0009); `certificate_id` is NULL then, else the newest certificate that has the name beside the record.
device_name = Table(
    "device_name",
    metadata,
    Column("realm_id", Id, nullable=False),
    Column("name", Text, nullable=False),
    Column("device_id", Id, nullable=False),
    Column("certificate_id", Id),
    PrimaryKeyConstraint("realm_id", "name", "device_id"),
    ForeignKeyConstraint(["realm_id", "device_id"], ["device.realm_id", "device.id"]),
    ForeignKeyConstraint(["realm_id", "certificate_id"], ["certificate.realm_id", "certificate.id"]),
    sqlite_with_rowid=False,
)

# A list of devices that was imported whole, and its rows until they are devices: `batch` is one run of the command.
device_import = Table(
    "device_import",
    metadata,
    Column("id", Id, primary_key=True),
    Column("realm_id", Id, nullable=False),
    Column("batch", String(16), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("file_sha256", LargeBinary, nullable=False),
    Column("devices", BigInteger, nullable=False),
    UniqueConstraint("batch"),
    ForeignKeyConstraint(["realm_id"], ["realm.id"]),
)

device_import_row = Table(
    "device_import_row",
    metadata,
    Column("batch", String(16), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("staged_at", BigInteger, nullable=False),
    Column("name", String(64), nullable=False),
    Column("profile", String(31)),
    Column("serial_number", Text),
    Column("manufacturer", Text),
    Column("names", Text, nullable=False),
    Column("owner", Text),
    Column("selector", String(16)),
    Column("hash", LargeBinary),
    Column("expires_at", BigInteger),
    PrimaryKeyConstraint("batch", "number"),
)

device_secret = Table(
    "device_secret",
    metadata,
    Column("id", Id, primary_key=True),
    Column("realm_id", Id, nullable=False),
    Column("device_id", Id, nullable=False),
    Column("selector", String(16), nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("spent_at", BigInteger),
    Column("spent_key", LargeBinary),
    Column("spent_names", LargeBinary),
    Column("certificate_id", Id),
    Column("voided_at", BigInteger),
    UniqueConstraint("selector"),
    ForeignKeyConstraint(["realm_id", "device_id"], ["device.realm_id", "device.id"]),
    ForeignKeyConstraint(["realm_id", "certificate_id"], ["certificate.realm_id", "certificate.id"]),
    Index(None, "realm_id", "device_id"),
)

certificate = Table(
    "certificate",
    metadata,
    Column("id", Id, primary_key=True),
    Column("realm_id", Id, nullable=False),
    Column("issuer_id", Id),
    Column("serial", String(40), nullable=False),
    Column("kind", String(8), nullable=False),
    Column("profile", String(31)),
    Column("device_id", Id),
    Column("subject", Text, nullable=False),
    Column("names", Text, nullable=False),
    Column("not_before", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Column("status", String(8), nullable=False),
    Column("revoked_at", BigInteger),
    Column("reason", String(24)),
    Column("crl_entry", LargeBinary),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("spki_sha256", LargeBinary, nullable=False),
    Column("key", String(32), nullable=False),
    Column("protocol", String(8), nullable=False),
    Column("der", LargeBinary, nullable=False),
    Column("request_key", LargeBinary),
    Column("renews_id", Id),
    Column("replaced_by_id", Id),
    Column("request_id", String(16)),
    Column("transaction_id", Text),
    Column("issued_at", BigInteger, nullable=False),
    # Since when it proves its device no more, because another board or device has taken the place; not revoked by that.
    Column("superseded_at", BigInteger),
    # Keys of its names that stand neither in `names` nor in `subject` as they are, as JSON; NULL for none.
    Column("name_keys", Text),
    UniqueConstraint("issuer_id", "serial"),
    UniqueConstraint("realm_id", "fingerprint"),
    UniqueConstraint("realm_id", "id"),
    ForeignKeyConstraint(["realm_id"], ["realm.id"]),
    ForeignKeyConstraint(["realm_id", "issuer_id"], ["issuer.realm_id", "issuer.id"]),
    ForeignKeyConstraint(["realm_id", "device_id"], ["device.realm_id", "device.id"]),
    ForeignKeyConstraint(["realm_id", "renews_id"], ["certificate.realm_id", "certificate.id"]),
    ForeignKeyConstraint(["realm_id", "replaced_by_id"], ["certificate.realm_id", "certificate.id"]),
    Index(None, "realm_id", "spki_sha256"),
    Index(None, "serial"),
    Index(
        "ix_certificate_request_key",
        "realm_id",
        "request_key",
        sqlite_where=text("request_key IS NOT NULL"),
        postgresql_where=text("request_key IS NOT NULL"),
    ),
    Index(
        "ix_certificate_transaction",
        "realm_id",
        "transaction_id",
        sqlite_where=text("transaction_id IS NOT NULL"),
        postgresql_where=text("transaction_id IS NOT NULL"),
    ),
    Index(None, "realm_id", "device_id"),
    Index(
        "ix_certificate_crl",
        "issuer_id",
        "id",
        sqlite_where=text("crl_entry IS NOT NULL"),
        postgresql_where=text("crl_entry IS NOT NULL"),
    ),
)

key_block = Table(
    "key_block",
    metadata,
    Column("spki_sha256", LargeBinary, primary_key=True),
    Column("reason", String(24), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

server_certificate = Table(
    "server_certificate",
    metadata,
    Column("realm_id", Id, nullable=False),
    Column("host", Text, nullable=False),
    Column("certificate_id", Id, nullable=False),
    Column("key_name", Text, nullable=False),
    Column("names", Text, nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    PrimaryKeyConstraint("realm_id", "host"),
    ForeignKeyConstraint(["realm_id", "certificate_id"], ["certificate.realm_id", "certificate.id"]),
    ForeignKeyConstraint(["key_name"], ["sealed_key.name"]),
)

attempt = Table(
    "attempt",
    metadata,
    Column("id", Id, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("request_id", String(16), nullable=False),
    Column("realm_id", Id),
    Column("device_id", Id),
    Column("source", Text, nullable=False),
    Column("protocol", String(8), nullable=False),
    Column("operation", String(24), nullable=False),
    Column("outcome", String(8), nullable=False),
    Column("code", String(40)),
    Column("message", Text),
    Column("detail", Text),
    Column("serial", String(40)),
    Column("key", String(32)),
    Column("signature_hash", String(16)),
    Column("tls", String(16)),
    Column("transaction_id", Text),
    # Who an unknown caller said it was: nothing of it is proven.
    Column("claimed", String(64)),
    Column("claimed_serial", String(64)),
    Column("key_sha256", LargeBinary),
    ForeignKeyConstraint(["realm_id"], ["realm.id"]),
    ForeignKeyConstraint(["realm_id", "device_id"], ["device.realm_id", "device.id"]),
    Index(None, "request_id"),
    Index(None, "realm_id", "device_id", "id"),
    Index(
        "ix_attempt_unknown",
        "source",
        "id",
        sqlite_where=text("device_id IS NULL"),
        postgresql_where=text("device_id IS NULL"),
    ),
)

# A request that waits for an operator. Its state is pending, approved, rejected or issued; whether it has expired, the
# time says. `request_key` is what makes it the same request when it is sent again: who asks, the key and the names, not
# the CSR, which is another one for each TLS session that it is bound to. `signer_key` is the key that may ask for it by
# its transaction. `evidence` is JSON: what proved who asked, without any secret.
request = Table(
    "request",
    metadata,
    Column("id", Id, primary_key=True),
    Column("realm_id", Id, nullable=False),
    Column("device", String(64), nullable=False),
    Column("profile", String(31), nullable=False),
    Column("protocol", String(8), nullable=False),
    Column("operation", String(24), nullable=False),
    Column("means", String(16), nullable=False),
    Column("subject", Text, nullable=False),
    Column("names", Text, nullable=False),
    Column("key", String(32), nullable=False),
    Column("request_key", LargeBinary, nullable=False),
    Column("spki_sha256", LargeBinary, nullable=False),
    Column("signer_key", LargeBinary, nullable=False),
    Column("csr", LargeBinary, nullable=False),
    Column("evidence", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("source_of", Text, nullable=False),
    Column("request_id", String(16), nullable=False),
    Column("transaction_id", Text),
    Column("state", String(16), nullable=False),
    Column("requested_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("decided_at", BigInteger),
    Column("decided_by", Text),
    Column("reason", Text),
    Column("certificate_id", Id),
    ForeignKeyConstraint(["realm_id"], ["realm.id"]),
    ForeignKeyConstraint(["realm_id", "certificate_id"], ["certificate.realm_id", "certificate.id"]),
    Index(None, "realm_id", "request_key"),
    Index(None, "realm_id", "spki_sha256"),
    Index(
        "ix_request_transaction",
        "realm_id",
        "transaction_id",
        sqlite_where=text("transaction_id IS NOT NULL"),
        postgresql_where=text("transaction_id IS NOT NULL"),
    ),
    Index(
        "ix_request_open",
        "realm_id",
        "source_of",
        sqlite_where=text("state = 'pending'"),
        postgresql_where=text("state = 'pending'"),
    ),
    Index("ix_request_expires", "expires_at"),
)

# How many devices a realm has admitted on a day (UTC, days since 1970), where it has a ceiling; and how many of them
# proved nothing.
admitted = Table(
    "admitted",
    metadata,
    Column("realm_id", Id, nullable=False),
    Column("day", BigInteger, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("unproven", BigInteger, nullable=False, server_default=text("0")),
    PrimaryKeyConstraint("realm_id", "day"),
    ForeignKeyConstraint(["realm_id"], ["realm.id"]),
)

tolerance_use = Table(
    "tolerance_use",
    metadata,
    Column("realm_id", Id, nullable=False),
    Column("name", String(32), nullable=False),
    Column("uses", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
    PrimaryKeyConstraint("realm_id", "name"),
    ForeignKeyConstraint(["realm_id"], ["realm.id"]),
)

writer = Table(
    "writer",
    metadata,
    Column("name", String(16), primary_key=True),
    Column("process", String(16), nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("version", Text, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    # The last event's number and hash, and how many events the common heads cover.
    Column("sequence", BigInteger, nullable=False, server_default=text("0")),
    Column("hash", LargeBinary),
    Column("headed", BigInteger, nullable=False, server_default=text("0")),
    Index(
        "ix_writer_news",
        "name",
        sqlite_where=text("sequence <> headed"),
        postgresql_where=text("sequence <> headed"),
    ),
)

audit = Table(
    "audit",
    metadata,
    Column("writer", String(16), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("format", Integer, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("action", String(40), nullable=False),
    Column("actor", Text, nullable=False),
    Column("realm", String(31)),
    Column("device", String(64)),
    Column("serial", String(40)),
    Column("request_id", String(16)),
    Column("details", Text, nullable=False),
    # Every event has one; an earlier version, which may still run while the schema is already this, leaves it out.
    Column("hash", LargeBinary),
    PrimaryKeyConstraint("writer", "sequence"),
    ForeignKeyConstraint(["writer"], ["writer.name"]),
    Index(None, "at"),
    # What operators did with a device, and none of the events that devices cause.
    Index(
        "ix_audit_device",
        "realm",
        "device",
        "at",
        sqlite_where=text(IS_OPERATORS_ACT),
        postgresql_where=text(IS_OPERATORS_ACT),
    ),
)

# Common heads: each covers the last event of every writer with news, and the head before it.
audit_head = Table(
    "audit_head",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
    Column("previous", LargeBinary, nullable=False),
    Column("digest", LargeBinary, nullable=False),
)

# Steps back of time that an operator has accepted, because the clock had stood in the future. Events from `first_at` to
# `newest_at` were written by that clock, and so were the common heads up to the number `head`.
clock_step = Table(
    "clock_step",
    metadata,
    Column("id", Id, primary_key=True),
    Column("accepted_at", BigInteger, nullable=False),
    Column("first_at", BigInteger, nullable=False),
    Column("newest_at", BigInteger, nullable=False),
    Column("head", BigInteger, nullable=False),
)

lease = Table(
    "lease",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("holder", String(16), nullable=False),
    Column("until_at", BigInteger, nullable=False),
)

# How many rows are in which state, kept by triggers (revision 0005) in the transaction that changes them, because
# counting ten million rows takes seconds. `kind` is device, certificate (devices' alone), secret or audit; `state` is
# the row's state, or the event's action. 0 stands for no realm and no issuer, hence no references. The count is the sum
# over the shards, one for each connection that writes.
tally = Table(
    "tally",
    metadata,
    Column("kind", String(16), nullable=False),
    Column("realm_id", Id, nullable=False),
    Column("issuer_id", Id, nullable=False),
    Column("state", String(40), nullable=False),
    Column("shard", Integer, nullable=False),
    Column("total", BigInteger, nullable=False),
    PrimaryKeyConstraint("kind", "realm_id", "issuer_id", "state", "shard"),
)
