"""Whose name is whose, who proved nothing among those that were admitted, and requests by their end"""

from collections.abc import Iterator

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_PLACES = {
    # A name of the record stands whether or not a certificate has it too.
    "of_record": "ON CONFLICT (realm_id, name, device_id) DO UPDATE SET certificate_id = NULL",
    "held": "c.kind = 'device' AND c.device_id IS NOT NULL AND c.status <> 'revoked' AND c.superseded_at IS NULL"
    " AND c.replaced_by_id IS NULL",
}
_UNRESERVED = "abcdefghijklmnopqrstuvwxyz0123456789-._~ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # RFC 3986 2.3
# Names by their keys, as ca_core.registration.name_keys makes them: of URIs without cases and needless escapes.
_HAS_ESCAPE = "{name} LIKE 'URI:%|%%' ESCAPE '|'"
_KEY = "CASE WHEN {name} LIKE 'URI:%' THEN 'URI:' || lower(substr({name}, 5)) ELSE {name} END"
_KEY_OF_CERTIFICATE = "CASE WHEN {name} LIKE 'email:%' THEN lower({name}) ELSE " + _KEY + " END"
_CALLED = "'DNS:' || rtrim(lower({name}), '.')"


def _unescaped(names: str) -> str:
    """The INSERT for URIs with escapes, of rows (realm_id, value, device_id, certificate_id)."""
    rows = f"SELECT realm_id, lower(substr(value, 5)) AS value, device_id, certificate_id FROM ({names}) AS u"  # noqa: S608  # all of it stands here
    for first in range(0, len(_UNRESERVED), 11):  # SQLite's parser keeps no more than a hundred open ends
        value = "value"
        for character in _UNRESERVED[first : first + 11]:
            value = f"replace({value}, '%{ord(character):02x}', '{character.lower()}')"
        rows = f"SELECT realm_id, {value} AS value, device_id, certificate_id FROM ({rows}) AS u{first}"  # noqa: S608  # likewise
    return (
        "INSERT INTO device_name (realm_id, name, device_id, certificate_id)"  # noqa: S608  # likewise
        f" SELECT realm_id, 'URI:' || value, device_id, max(certificate_id) FROM ({rows}) AS u WHERE true"
        " GROUP BY realm_id, value, device_id"
    )


def _keys_of_certificates() -> Iterator[str]:
    """Fill `certificate.name_keys` where URIs have escapes, as `ca_core.registration.names_carried` does."""
    yield (
        "UPDATE certificate SET name_keys = lower(names)"
        " WHERE kind = 'device' AND device_id IS NOT NULL AND names LIKE '%\"URI:%|%%' ESCAPE '|'"
    )
    escaped = [(f"%{ord(each):02x}", each.lower()) for each in _UNRESERVED]
    kinds = [(f'"{kind.lower()}:', f'"{kind}:') for kind in ("DNS", "IP", "URI")]
    for replaced in (*(escaped[first : first + 11] for first in range(0, len(escaped), 11)), kinds):
        value = "name_keys"
        for old, new in replaced:
            value = f"replace({value}, '{old}', '{new}')"
        yield f"UPDATE certificate SET name_keys = {value} WHERE name_keys IS NOT NULL"  # noqa: S608  # likewise


_NONE = "CAST(NULL AS BIGINT)"
_EACH = {"sqlite": "json_each({}.names)", "postgresql": "json_array_elements_text({}.names::json)"}

# Triggers, so that nothing that writes a device can forget its names.
_SQLITE = (
    """
CREATE TRIGGER device_name_insert AFTER INSERT ON device BEGIN
    INSERT INTO device_name (realm_id, name, device_id) VALUES (NEW.realm_id, {called_new}, NEW.id);
    INSERT INTO device_name (realm_id, name, device_id)
        SELECT DISTINCT NEW.realm_id, {key_value}, NEW.id FROM {each_new} WHERE NOT {escape_value} {of_record};
    {unescaped_new} {of_record};
END
""",
    """
CREATE TRIGGER device_name_update AFTER UPDATE OF names ON device WHEN NEW.names <> OLD.names BEGIN
    DELETE FROM device_name WHERE realm_id = NEW.realm_id AND device_id = NEW.id AND certificate_id IS NULL
        AND name <> {called_new};
    INSERT INTO device_name (realm_id, name, device_id)
        SELECT DISTINCT NEW.realm_id, {key_value}, NEW.id FROM {each_new} WHERE NOT {escape_value} {of_record};
    {unescaped_new} {of_record};
END
""",
)
# All devices that a statement adds are added at once: an import takes 100,000.
_POSTGRESQL = (
    """
CREATE FUNCTION device_name_insert_all() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO device_name (realm_id, name, device_id) SELECT realm_id, {called}, id FROM added;
    INSERT INTO device_name (realm_id, name, device_id)
        SELECT DISTINCT added.realm_id, {key_each}, added.id FROM added, {each_added} AS each(value)
        WHERE added.names <> '[]' AND NOT {escape_each} {of_record};
    {unescaped_added} {of_record};
    RETURN NULL;
END $$;
CREATE TRIGGER device_name_insert AFTER INSERT ON device REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION device_name_insert_all()
""",
    """
CREATE FUNCTION device_name_update() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    DELETE FROM device_name WHERE realm_id = NEW.realm_id AND device_id = NEW.id AND certificate_id IS NULL
        AND name <> {called_new};
    INSERT INTO device_name (realm_id, name, device_id)
        SELECT DISTINCT NEW.realm_id, {key_each}, NEW.id FROM {each_new} AS each(value)
        WHERE NOT {escape_each} {of_record};
    {unescaped_new} {of_record};
    RETURN NULL;
END $$;
CREATE TRIGGER device_name_update AFTER UPDATE OF names ON device
    FOR EACH ROW WHEN (NEW.names <> OLD.names) EXECUTE FUNCTION device_name_update()
""",
)
# Once, of what is there. Of certificates those count that nobody revoked or superseded, and that were not renewed; of
# their subjects those that are a common name and nothing else, as nearly all are.
_FILL = (
    "INSERT INTO device_name (realm_id, name, device_id) SELECT realm_id, {called}, id FROM device",
    """
INSERT INTO device_name (realm_id, name, device_id)
    SELECT DISTINCT d.realm_id, {key_each}, d.id FROM device AS d, {each_d} AS each{value}
    WHERE d.names <> '[]' AND NOT {escape_each} {of_record}
""",
    "{unescaped_d} {of_record}",
    """
INSERT INTO device_name (realm_id, name, device_id, certificate_id)
    SELECT c.realm_id, {key_certificate}, c.device_id, max(c.id) FROM certificate AS c, {each_c} AS each{value}
    WHERE {held} AND c.names <> '[]' AND NOT {escape_each} GROUP BY c.realm_id, {key_certificate}, c.device_id
    ON CONFLICT DO NOTHING
""",
    "{unescaped_c} ON CONFLICT DO NOTHING",
    """
INSERT INTO device_name (realm_id, name, device_id, certificate_id)
    SELECT c.realm_id, {called_subject}, c.device_id, max(c.id) FROM certificate AS c
    WHERE {held} AND substr(c.subject, 1, 3) = 'CN=' AND c.subject NOT LIKE '%,%' AND c.subject NOT LIKE '%+%'
    GROUP BY c.realm_id, {called_subject}, c.device_id ON CONFLICT DO NOTHING
""",
)


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    op.create_table(
        "device_name",
        sa.Column("realm_id", _ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("device_id", _ID, nullable=False),
        sa.Column("certificate_id", _ID),
        sa.ForeignKeyConstraint(
            ["realm_id", "device_id"], ["device.realm_id", "device.id"], name=op.f("fk_device_name_realm_id_device_id")
        ),
        sa.ForeignKeyConstraint(
            ["realm_id", "certificate_id"],
            ["certificate.realm_id", "certificate.id"],
            name=op.f("fk_device_name_realm_id_certificate_id"),
        ),
        sa.PrimaryKeyConstraint("realm_id", "name", "device_id", name=op.f("pk_device_name")),
        sqlite_with_rowid=False,
    )
    each = {f"each_{table}": _EACH[dialect].format(table) for table in ("d", "c", "new", "added")}
    column = "" if dialect == "sqlite" else "(value)"
    places = _PLACES | each | {"value": column}
    for place, name in (("value", "value"), ("each", "each.value")):
        places |= {f"key_{place}": _KEY.format(name=name), f"escape_{place}": _HAS_ESCAPE.format(name=name)}
    places["key_certificate"] = _KEY_OF_CERTIFICATE.format(name="each.value")
    for place, name in (("called", "name"), ("called_new", "NEW.name"), ("called_subject", "substr(c.subject, 4)")):
        places[place] = _CALLED.format(name=name)
    for table, of, row in (
        ("new", "", f"NEW.realm_id, each.value, NEW.id AS device_id, {_NONE} AS certificate_id"),
        ("added", "added, ", f"added.realm_id, each.value, added.id AS device_id, {_NONE} AS certificate_id"),
        ("d", "device AS d, ", f"d.realm_id, each.value, d.id AS device_id, {_NONE} AS certificate_id"),
        ("c", "certificate AS c, ", "c.realm_id, each.value, c.device_id, c.id AS certificate_id"),
    ):
        has_escape = places["escape_each"] + (f" AND {_PLACES['held']}" if table == "c" else "")
        names = f"SELECT {row} FROM {of}{each[f'each_{table}']} AS each{column} WHERE {has_escape}"  # noqa: S608  # likewise
        places[f"unescaped_{table}"] = _unescaped(names.replace("NEW.realm_id,", "NEW.realm_id AS realm_id,"))
    # The triggers first: they lock the table, so that no device is added by another node and missed by both.
    for statement in (*(_SQLITE if dialect == "sqlite" else _POSTGRESQL), *_FILL):
        op.execute(statement.format(**places))
    op.create_index(
        "ix_device_serial_number",
        "device",
        ["realm_id", sa.text("lower(serial_number)")],
        sqlite_where=sa.text("serial_number IS NOT NULL"),
        postgresql_where=sa.text("serial_number IS NOT NULL"),
    )
    op.add_column("certificate", sa.Column("name_keys", sa.Text()))
    for statement in _keys_of_certificates():
        op.execute(statement)
    op.add_column("admitted", sa.Column("unproven", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    op.create_index("ix_request_expires", "request", ["expires_at"])
