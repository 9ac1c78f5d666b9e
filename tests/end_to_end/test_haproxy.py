"""`interop/haproxy/haproxy.cfg` is sound, and what its README says of it stands in it."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end import clients
from tests.helpers.balancer import CONFIGURATION, HAPROXY, rendered

pytestmark = pytest.mark.foreign

PORTS = [{"proxy-https": 21001, "proxy-http": 21002, "admin": 21003}, {"proxy-https": 1, "proxy-http": 2, "admin": 3}]


@pytest.fixture(autouse=True)
def _haproxy() -> None:
    clients.needs("haproxy")


def checked(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What HAProxy says of it, to which every warning is an error."""
    file = folder / "haproxy.cfg"
    file.write_text(text)
    return subprocess.run([HAPROXY, "-dW", "-c", "-f", str(file)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("nodes", [1, 2])
def test_haproxy_accepts_it_without_a_warning(tmp_path: Path, nodes: int) -> None:
    text = rendered(PORTS[:nodes], https=8443, http=(80, 8080), control=tmp_path / "control")
    done = checked(text, tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert re.findall(r"127\.0\.0\.1:\d+|port \d+", text).count("port 21003") == 3


def test_a_warning_would_be_found_out(tmp_path: Path) -> None:
    text = rendered(PORTS, https=8443, http=(80, 8080), control=tmp_path / "control")
    assert checked(text.replace("    timeout client 75s\n", ""), tmp_path).returncode != 0


def test_the_file_itself_is_what_is_checked(tmp_path: Path) -> None:
    text = CONFIGURATION.read_text().replace("/run/haproxy/admin.sock", str(tmp_path / "control"))
    done = checked(text, tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_every_setting_that_the_readme_explains_is_in_the_file() -> None:
    readme = (CONFIGURATION.parent / "README.md").read_text()
    table = readme.partition("| What | Why |")[2].partition("## What happens")[0]
    rows = [row for row in table.splitlines()[2:] if row]
    words = [word for row in rows for word in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(words) > 8
    text = CONFIGURATION.read_text()
    for word in words:
        assert (word in text) is (word != "on-marked-down shutdown-sessions"), word
