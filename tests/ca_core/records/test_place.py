"""Where a SQLite store may lie, and when there is no more room for it."""

import fcntl
import os
import sqlite3
from pathlib import Path

import pytest

from ca_core.core import Core
from ca_core.errors import OperatorError, Unavailable
from ca_core.records import opening, place, sqlite_writer
from ca_core.records.place import Headroom, file_system_of
from ca_core.records.sqlite import SqliteStore
from tests.helpers.core import Installation, enrolled

MOUNTS = """\
22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
25 22 0:21 / /srv rw,nosuid shared:2 - nfs4 10.0.0.1:/export rw,vers=4.2
26 25 0:22 / /srv/local rw - xfs /dev/vdb rw
27 22 0:23 / /mnt/with\\040space rw - cifs //server/share rw
28 22 0:24 / /home/me/remote rw - fuse.sshfs me@host:/ rw
29 22 0:25 / /over rw - ext4 /dev/vdc rw
30 29 0:26 / /over rw - nfs 10.0.0.1:/x rw
31 22 0:27 / /data rw - btrfs /dev/vdd rw
not a line of it
"""
PLACES = {
    "root": ("/var/lib/enrolld/enrolld.db", "ext4"),
    "NFS": ("/srv/enrolld.db", "nfs4"),
    "a local disk mounted below NFS": ("/srv/local/enrolld.db", "xfs"),
    "a name that only begins like a mount": ("/srvx/enrolld.db", "ext4"),
    "a mount with a space": ("/mnt/with space/enrolld.db", "cifs"),
    "FUSE over the network": ("/home/me/remote/enrolld.db", "fuse.sshfs"),
    "the later of two mounts at one point": ("/over/enrolld.db", "nfs"),
    "a local disk": ("/data/enrolld.db", "btrfs"),
}


@pytest.fixture
def installation(template: Installation, tmp_path: Path) -> Installation:
    """On SQLite alone."""
    return template.copy_to(tmp_path / "data")


@pytest.mark.parametrize("case", PLACES)
def test_the_file_system_of_a_path_is_that_of_the_nearest_mount(case: str) -> None:
    path, kind = PLACES[case]
    assert file_system_of(Path(path), MOUNTS) == kind


def test_a_link_leads_to_where_the_store_really_lies(tmp_path: Path) -> None:
    (tmp_path / "away").symlink_to("/srv")
    assert file_system_of(tmp_path / "away" / "enrolld.db", MOUNTS) == "nfs4"


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_no_store_is_made_or_opened_on_a_network_file_system(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Nothing can be mounted over a network here: the kernel's table is as it would be."""
    told = f"1 0 0:1 / / rw - ext4 /dev/vda rw\n2 1 0:2 / {tmp_path} rw - {kind} server:/x rw\n"
    real = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path, *a, **k: told if str(path) == "/proc/self/mountinfo" else real(path, *a, **k)
    )
    for attempt in (
        lambda: opening.create_store(f"sqlite:///{tmp_path / 'new.db'}"),
        lambda: opening.open_store(f"sqlite:///{installation.directory / 'enrolld.db'}", process="test", version="0"),
    ):
        with pytest.raises(OperatorError) as caught:
            attempt()
        assert caught.value.code == "store_on_network"
        assert f"({kind})" in caught.value.message
    assert not (tmp_path / "new.db").exists()


def test_this_machine_s_own_disk_is_no_network_file_system(tmp_path: Path) -> None:
    place.refuse_network(tmp_path / "enrolld.db")


async def test_the_log_is_begun_anew_when_it_is_long_although_readers_come_and_go(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "_WAL_AIM", 256 * 1024)
    monkeypatch.setattr(sqlite_writer, "_WAL_TRY_EVERY", 0.0)
    core = installation.open()
    store = core.store
    assert isinstance(store, SqliteStore)
    sizes = []
    for round_ in range(12):
        for number in range(10):
            await enrolled(core, f"w-{round_}-{number}")
        sizes.append(store.headroom.wal_bytes())
    core.close()
    print(f"the log after each ten certificates: {sizes}")
    assert max(sizes) < 1024 * 1024


async def test_case_58_a_reader_that_does_not_end_stops_issuing_before_the_log_fills_the_disk(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "_WAL_AIM", 64 * 1024)
    monkeypatch.setattr(sqlite_writer, "_WAL_TRY_EVERY", 0.0)
    monkeypatch.setattr(sqlite_writer, "_WAL_PATIENCE", 1)
    monkeypatch.setattr(place, "WAL_BOUND", 1024 * 1024)
    monkeypatch.setattr(place, "_LOOK_EVERY", 0.0)
    core = installation.open()
    store = core.store
    assert isinstance(store, SqliteStore)
    await enrolled(core, "before")
    reader = sqlite3.connect(installation.directory / "enrolld.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM certificate").fetchall()

    async def enroll_many() -> None:
        for number in range(400):
            await enrolled(core, f"during-{number}")

    with pytest.raises(Unavailable, match="another program keeps reading the store"):
        await enroll_many()
    stopped_at = store.headroom.wal_bytes()
    assert 1024 * 1024 < stopped_at < 2 * 1024 * 1024
    assert await core.crls.publish("default-ec-1"), "what makes things safe is still written"
    reader.execute("ROLLBACK")
    reader.close()
    await core.crls.publish("default-ec-1")  # whoever writes next takes the log in
    await enrolled(core, "after")
    core.close()


def test_room_is_looked_at_a_few_times_a_second_however_often_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    path.touch()
    now, looks = [0.0], list[object]()
    real = os.statvfs

    def look(where: Path) -> os.statvfs_result:
        looks.append(where)
        return real(where)

    monkeypatch.setattr(os, "statvfs", look)
    headroom = Headroom(path, clock=lambda: now[0])
    for _ in range(100):
        headroom.shortage()
    assert len(looks) == 1
    now[0] += 0.3
    headroom.shortage()
    assert len(looks) == 2


async def test_an_attempt_that_finds_no_room_is_only_counted(
    core: Core, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await core.attempts.count()
    monkeypatch.setattr(core.store, "shortage", lambda: "the disk is nearly full")
    with pytest.raises(Unavailable, match="nearly full"):
        await enrolled(core, "nobody")
    with (installation.directory / "enrolld.db.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # nothing is being written
    assert await core.attempts.count() == before
    assert core.attempts.dropped == 1
