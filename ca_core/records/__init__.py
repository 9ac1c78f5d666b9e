"""What must last: the schema, the store that commits it, migrations, and the audit trail."""
