"""`enrolld explain`: from a request id to what happened."""

import click

from enrolld.cli import output
from enrolld.cli.frame import CommandWithGlobals, Session, pass_session

FIELDS = ["at", "request_id", "realm", "device", "source", "protocol", "operation", "outcome", "code", "message"]
FIELDS += ["detail", "serial", "key", "tls"]


@click.command(cls=CommandWithGlobals)
@click.argument("request_id", metavar="REQUEST-ID")
@pass_session
def explain(session: Session, request_id: str) -> None:
    """Say why the request with this id (it stands in the log and in the answer) was answered as it was."""
    values = output.plain(session.run(lambda core: core.attempts.explain(request_id)))
    if session.json:
        output.emit_json(values)
        return
    output.details((name.replace("_", " "), values.get(name)) for name in FIELDS if values.get(name) is not None)
    if values.get("remedy"):
        output.words(output.printable(values["remedy"]))
