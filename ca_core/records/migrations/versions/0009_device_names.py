"""Whose name is whose, who proved nothing among those that were admitted, and requests by their end"""

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
_EACH = {"sqlite": "json_each({}.names)", "postgresql": "json_array_elements_text({}.names::json)"}

# Triggers, so that nothing that writes a device can forget its names.
_SQLITE = (
    """
CREATE TRIGGER device_name_insert AFTER INSERT ON device BEGIN
    INSERT INTO device_name (realm_id, name, device_id) VALUES (NEW.realm_id, 'DNS:' || lower(NEW.name), NEW.id);
    INSERT INTO device_name (realm_id, name, device_id)
        SELECT DISTINCT NEW.realm_id, value, NEW.id FROM {each_new} WHERE true {of_record};
END
""",
    """
CREATE TRIGGER device_name_update AFTER UPDATE OF names ON device WHEN NEW.names <> OLD.names BEGIN
    DELETE FROM device_name WHERE realm_id = NEW.realm_id AND device_id = NEW.id AND certificate_id IS NULL
        AND name IN (SELECT value FROM {each_old}) AND name <> 'DNS:' || lower(NEW.name);
    INSERT INTO device_name (realm_id, name, device_id)
        SELECT DISTINCT NEW.realm_id, value, NEW.id FROM {each_new} WHERE true {of_record};
END
""",
)
# All devices that a statement adds are added at once: an import takes 100,000.
_POSTGRESQL = (
    """
CREATE FUNCTION device_name_insert_all() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO device_name (realm_id, name, device_id) SELECT realm_id, 'DNS:' || lower(name), id FROM added;
    INSERT INTO device_name (realm_id, name, device_id)
        SELECT DISTINCT added.realm_id, each.value, added.id FROM added, {each_added} AS each(value)
        WHERE added.names <> '[]' {of_record};
    RETURN NULL;
END $$;
CREATE TRIGGER device_name_insert AFTER INSERT ON device REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION device_name_insert_all()
""",
    """
CREATE FUNCTION device_name_update() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    DELETE FROM device_name WHERE realm_id = NEW.realm_id AND device_id = NEW.id AND certificate_id IS NULL
        AND name IN (SELECT value FROM {each_old} AS each(value)) AND name <> 'DNS:' || lower(NEW.name);
    INSERT INTO device_name (realm_id, name, device_id)
        SELECT DISTINCT NEW.realm_id, each.value, NEW.id FROM {each_new} AS each(value) {of_record};
    RETURN NULL;
END $$;
CREATE TRIGGER device_name_update AFTER UPDATE OF names ON device
    FOR EACH ROW WHEN (NEW.names <> OLD.names) EXECUTE FUNCTION device_name_update()
""",
)
# Once, of what is there. Of certificates those count that nobody revoked or superseded, and that were not renewed; of
# their subjects those that are a common name and nothing else, as nearly all are.
_FILL = (
    "INSERT INTO device_name (realm_id, name, device_id) SELECT realm_id, 'DNS:' || lower(name), id FROM device",
    """
INSERT INTO device_name (realm_id, name, device_id)
    SELECT DISTINCT d.realm_id, each.value, d.id FROM device AS d, {each_d} AS each{value}
    WHERE d.names <> '[]' {of_record}
""",
    """
INSERT INTO device_name (realm_id, name, device_id, certificate_id)
    SELECT c.realm_id, each.value, c.device_id, max(c.id) FROM certificate AS c, {each_c} AS each{value}
    WHERE {held} AND c.names <> '[]' GROUP BY c.realm_id, each.value, c.device_id ON CONFLICT DO NOTHING
""",
    """
INSERT INTO device_name (realm_id, name, device_id, certificate_id)
    SELECT c.realm_id, 'DNS:' || lower(substr(c.subject, 4)), c.device_id, max(c.id) FROM certificate AS c
    WHERE {held} AND substr(c.subject, 1, 3) = 'CN=' AND c.subject NOT LIKE '%,%' AND c.subject NOT LIKE '%+%'
    GROUP BY c.realm_id, 'DNS:' || lower(substr(c.subject, 4)), c.device_id ON CONFLICT DO NOTHING
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
    each = {f"each_{table}": _EACH[dialect].format(table) for table in ("d", "c", "new", "old", "added")}
    places = _PLACES | each | {"value": "" if dialect == "sqlite" else "(value)"}
    # The triggers first: they lock the table, so that no device is added by another node and missed by both.
    for statement in (*(_SQLITE if dialect == "sqlite" else _POSTGRESQL), *_FILL):
        op.execute(statement.format(**places))
    op.add_column("admitted", sa.Column("unproven", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    op.create_index("ix_request_expires", "request", ["expires_at"])
