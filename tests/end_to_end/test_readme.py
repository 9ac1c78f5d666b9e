"""The README's commands are the tested ones, and a person who pastes all of them in order gets what it promises."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end import clients
from tests.end_to_end.wire import request_id_in
from tests.helpers.daemon import Daemon, run_enrolld
from tests.helpers.postgres import Postgres
from tests.helpers.softhsm import SoftHsm

TOP = Path(__file__).parents[2]
README = (TOP / "README.md").read_text()
BLOCK = re.compile(r"^<!-- (?P<mark>[^\n]+) -->\n```sh\n(?P<commands>.*?)^```$", re.MULTILINE | re.DOTALL)
SCRIPTS = sorted(str(path.relative_to(TOP)) for path in (TOP / "interop").glob("*/*.sh"))


def blocks() -> dict[str, str]:
    """The marked blocks of shell commands, in the order of the page."""
    return {block["mark"]: block["commands"] for block in BLOCK.finditer(README)}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_readme_shows_every_recipe_line_by_line(script: str) -> None:
    _, recipe = (TOP / script).read_text().split("# --- recipe\n")
    assert blocks()[script] == recipe


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_recipe_is_an_executable_posix_script_that_says_what_it_needs(script: str) -> None:
    text = (TOP / script).read_text()
    assert text.startswith("#!/bin/sh\n# ")
    assert os.access(TOP / script, os.X_OK)
    head, recipe = text.split("# --- recipe\n")
    for variable in set(re.findall(r"\$\{?([A-Z]+)", recipe)):
        assert variable in head, f"{script} does not say that it needs {variable}"


def test_every_block_of_commands_in_the_readme_is_one_that_a_test_runs() -> None:
    unmarked = BLOCK.sub("", README)
    assert re.findall(r"^```sh\n(.*?)^```$", unmarked, re.MULTILINE | re.DOTALL) == ["make serve\n"]


def test_no_recipe_goes_without_verifying_the_server() -> None:
    pages = [README, *((TOP / script).read_text() for script in SCRIPTS)]
    for page in pages:
        assert not re.search(r"curl[^|\n]* (-k|--insecure)\b", page)
        calls = re.findall(r"^(?:curl|pki --est(?:ca)?) (?:[^\n]*\\\n)*[^\n]*", page, re.MULTILINE)
        assert len(calls) == len(re.findall(r"\b(?:curl --|pki --est)", page))  # all begin a line, so none is missed
        for call in calls:
            assert "--cacert" in call, call


def test_no_recipe_believes_what_scep_gives_without_the_root() -> None:
    """Over plain HTTP the root must vouch for the RA, and for what was issued; over TLS, for the server."""
    for script in SCRIPTS:
        recipe = (TOP / script).read_text().partition("# --- recipe\n")[2].replace("\\\n", "")
        for line in recipe.splitlines():
            if "--scepca" in line or "scep-submit" in line:
                assert "-CAfile root.pem -untrusted" in recipe
                assert "-purpose smimeencrypt" in recipe
                assert recipe.index("openssl verify") < recipe.index("mv fetched-ra.pem ra.pem")
            if "pki --scep " in line:
                assert "--cacert root.pem" in line
            if "scepclient " in line:
                assert line.startswith("SSL_CERT_FILE=root.pem SSL_CERT_DIR=/none ")
            if "add-scep-ca" in line:
                assert '-r "$PWD/ra.pem" -N "$PWD/root.pem"' in line  # else it takes what it finds


def test_no_recipe_puts_the_secret_where_ps_shows_it() -> None:
    for script in SCRIPTS:
        for line in (TOP / script).read_text().partition("# --- recipe\n")[2].splitlines():
            assert "SECRET" not in line or line.lstrip().startswith("printf "), line  # which the shell does itself


@pytest.mark.foreign
def test_whoever_pastes_the_readme_gets_what_it_promises(own_daemon: Daemon, tmp_path: Path) -> None:
    clients.needs("curl", "openssl", "pki", "pki over HTTP", "scepclient", "certmonger")
    port = str(own_daemon.https_port)
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "enrolld-data").symlink_to(own_daemon.directory)
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    (folder / "certs").symlink_to(TOP / "certs")
    (folder / ".curlrc").write_text(f"resolve = cameras.example.com:{port}:127.0.0.1\n")
    lines = ["set -eu"]
    for mark, commands in blocks().items():
        if mark in ("why", "hsm"):  # of a request id that is an example; of a machine with a token
            continue
        if mark == "interop/strongswan/estca.sh":  # another device, in another folder
            lines.append("cp root.pem ca.pem strongswan/ && cd strongswan")
        if mark == "realms":
            lines.append("cd ..")
        lines.append(commands.replace(":8443", f":{port}").replace(":8080", f":{own_daemon.http_port}"))
        if mark.startswith("settings:"):
            lines.append('SECRET=$(enrolld device secret "$NAME" --json | sed \'s/.*"secret": *"\\([^"]*\\)".*/\\1/\')')
    (folder / "strongswan").mkdir()
    with clients.running_certmonger() as certmonger:
        done = subprocess.run(
            ["sh", "-x"],
            cwd=folder,
            input="\n".join(lines).encode(),
            capture_output=True,
            timeout=120,
            check=False,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "CURL_HOME": str(folder), **certmonger},
        )
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")
    assert {row["device"] for row in own_daemon.command("cert", "list")} == {"sensor-17", "sensor-18"}
    assert {row["realm"] for row in own_daemon.command("device", "list")} == {"default", "cameras"}


@pytest.mark.foreign
def test_what_serve_prints_to_paste_works_as_pasted(own_daemon: Daemon, tmp_path: Path) -> None:
    clients.needs("curl", "openssl")
    printed = own_daemon.output.read_text()
    paste = printed.split("A first certificate, in another terminal:\n")[1].split("Then look:")[0]
    done = subprocess.run(
        ["sh", "-eu"],
        cwd=tmp_path,
        input=paste.encode(),
        capture_output=True,
        timeout=60,
        check=False,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")
    assert b": OK" in done.stdout
    (row,) = own_daemon.command("cert", "list")
    assert row["status"] == "valid"


@pytest.mark.foreign
def test_a_realm_in_a_token_is_made_as_the_readme_says(tmp_path: Path) -> None:
    clients.needs("softhsm2", "p11-kit", "opensc", "gcc", "openssl")
    softhsm = SoftHsm.make(tmp_path / "softhsm")
    directory = tmp_path / "enrolld-data"
    assert run_enrolld(directory, "init").returncode == 0
    done = subprocess.run(
        ["sh"],
        cwd=tmp_path,
        input=("set -u\n" + blocks()["hsm"]).encode(),
        capture_output=True,
        timeout=60,
        check=False,
        env={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
            **softhsm.environment,
        },
    )
    told = (done.stdout + done.stderr).decode(errors="replace")
    assert "error: pumps-root-1 has no CRL" in told  # the daemon makes it: the one thing that check misses, and a host
    assert "HSM" not in told
    store = b"".join(path.read_bytes() for path in directory.glob("enrolld.db*"))
    assert b"pkcs11:token=vault;object=pumps-root-1-" in store


@pytest.mark.foreign
def test_a_refusal_leads_the_operator_to_its_reason(own_daemon: Daemon, tmp_path: Path) -> None:
    clients.needs("curl", "openssl")
    secret = own_daemon.ask("device", "add", "sensor-17")["secret"]
    shutil.copy(own_daemon.root, tmp_path / "root.pem")
    shutil.copy(own_daemon.ca, tmp_path / "ca.pem")
    settings = {
        "EST": f"https://localhost:{own_daemon.https_port}/.well-known/est",
        "NAME": "sensor-17",
        "SECRET": secret,
    }
    clients.interop("curl-openssl/enroll.sh", cwd=tmp_path, settings=settings)
    # Once more, with the new key that the recipe makes: the secret is spent.
    clients.interop("curl-openssl/enroll.sh", cwd=tmp_path, settings=settings, check=False)
    request_id = request_id_in((tmp_path / "answer").read_text())
    assert own_daemon.explain(request_id)["code"] == "secret_spent"
    explain, why = blocks()["why"].replace("k7f3-9xq2", request_id).splitlines()
    told = {command: run_enrolld(own_daemon.directory, *command.split()[1:]) for command in (explain, why)}
    assert b"secret_spent" in told[explain].stdout
    assert b"enrolld device secret" in told[explain].stderr  # the remedy
    assert b"secret_spent" in told[why].stdout
    assert request_id.encode() in told[why].stdout


@pytest.mark.parametrize("page", ["README.md", "interop/haproxy/README.md"])
def test_a_database_made_as_a_page_says_is_one_that_a_node_takes(postgres: Postgres, tmp_path: Path, page: str) -> None:
    text = (TOP / page).read_text().replace("enrolld", "fleet")
    text = text.replace("'PASSWORD'", "'hush-word'").replace(":PASSWORD@", ":hush-word@")
    (statements,) = re.findall(r"^```sql\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (url,) = re.findall(r'^url = "(postgresql:[^"?]*)', text, re.MULTILINE)
    try:
        for statement in statements.split(";\n")[:2]:
            postgres.psql(statement)
        (tmp_path / "d").mkdir(mode=0o700)
        place = url.replace("192.0.2.20", f"127.0.0.1:{postgres.port}")
        (tmp_path / "d" / "enrolld.toml").write_text(f'names = ["localhost"]\n[store]\nurl = "{place}"\n')
        done = run_enrolld(tmp_path / "d", "init")
        assert done.returncode == 0, done.stderr
        assert b"hush-word" not in done.stdout + done.stderr
    finally:
        postgres.drop("fleet")
        postgres.psql("DROP ROLE IF EXISTS fleet")
