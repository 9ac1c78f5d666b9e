"""The shared board: counts over processes, and nothing that stays behind when one ends."""

import os
import subprocess
import sys

from enrolld.board import Board

CHILD = """
import sys
from enrolld.board import Board
board = Board(int(sys.argv[1]), int(sys.argv[2]))
seat = board.seat(1)
for _ in range(40):
    seat.enter("192.0.2.1")
print(*seat.enter("192.0.2.2"), flush=True)
sys.stdin.read()
"""


def test_each_process_counts_its_own_and_sees_the_sum() -> None:
    board = Board.make(3)
    seat = board.seat(0)
    assert seat.enter("192.0.2.1") == (1, 1)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(board.descriptor), "3"],
        pass_fds=[board.descriptor],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"42 1\n"
        assert seat.enter("192.0.2.1") == (43, 42)
        seat.leave("192.0.2.1")
        assert (board.total(), board.of_slot(board.slot_of("192.0.2.1"))) == (42, 41)
    finally:
        child.kill()
        child.communicate()
    assert board.total() == 42, "a killed process can't take its counts back"
    board.clear(1)
    assert seat.enter("192.0.2.1") == (2, 2)
    board.close()


def test_sources_are_told_apart_by_a_key_that_nobody_knows() -> None:
    boards = [Board.make(1) for _ in range(2)]
    slots = [[board.slot_of(f"198.51.100.{host}") for host in range(200)] for board in boards]
    assert slots[0] != slots[1]
    assert min(len(set(each)) for each in slots) >= 198
    for board in boards:
        board.close()


def test_a_board_for_many_processes_costs_memory_only_where_it_is_written() -> None:
    board = Board.make(256)
    board.seat(255).enter("192.0.2.1")
    found = os.fstat(board.descriptor)
    # A page, which some kernels make 2 MiB large.
    assert found.st_blocks * 512 <= 4 << 20 < found.st_size
    board.close()
