"""Tenants and programs as small integers: few of them, however many names there are."""

import math

from hypothesis import given
from hypothesis import strategies as st

from burrstone.serving.engine.scheduling.program_book import ProgramBook, TenantBook


def test_a_tenant_keeps_its_row() -> None:
    book = TenantBook()
    assert [book.enter(name) for name in ("a", "b", "a")] == [(0, False), (1, False), (0, False)]


def test_the_row_of_the_tenant_that_was_idle_longest_is_given_on_and_cleared() -> None:
    book = TenantBook(max_tenants=3)
    for name in ("a", "b", "c", "a"):
        row, _ = book.enter(name)
        book.leave(row)
    assert book.enter("new") == (1, True)
    assert book.enter("b") == (2, True), "c was idle longer than a"


def test_tenants_share_a_row_when_all_are_busy() -> None:
    book = TenantBook(max_tenants=2)
    book.enter("a")
    book.enter("b")
    assert book.enter("c") == (0, False)
    assert book.enter("b") == (1, False)


@given(st.lists(st.tuples(st.sampled_from("abcdefg"), st.booleans()), max_size=60))
def test_two_busy_tenants_never_share_a_row_while_rows_are_left(life: list[tuple[str, bool]]) -> None:
    book = TenantBook(max_tenants=7)
    busy: list[tuple[str, int]] = []
    for name, comes in life:
        if comes or not busy:
            busy.append((name, book.enter(name)[0]))
        else:
            book.leave(busy.pop(0)[1])
        assert len({row for _, row in busy}) == len({known for known, _ in busy})


def test_programs_of_two_tenants_are_two_though_their_ids_are_equal() -> None:
    book = ProgramBook()
    mine, theirs = book.enter("me", "p", 1.0), book.enter("you", "p", 2.0)
    assert (mine.number, theirs.number) == (0, 1)
    assert book.enter("me", "p", 9.0) is mine and mine.arrival_s == 1.0


def test_programs_that_were_not_seen_for_long_are_forgotten() -> None:
    book = ProgramBook(max_programs=2)
    old = book.enter("t", "old", 0.0)
    book.enter("t", "second", 1.0)
    book.enter("t", "old", 2.0)
    book.enter("t", "third", 3.0)
    assert book.enter("t", "old", 4.0) is old
    assert book.enter("t", "second", 5.0).arrival_s == 5.0


def test_programs_with_calls_in_the_engine_are_not_forgotten() -> None:
    book = ProgramBook(max_programs=2)
    busy = book.enter("t", "busy", 0.0)
    busy.waiting = 1
    for number in range(5):
        book.enter("t", f"other{number}", 1.0 + number)
    assert book.enter("t", "busy", 9.0) is busy
    assert book.enter("t", "other3", 9.0).arrival_s == 9.0, "the room was for one more"


def test_an_id_that_was_idle_for_long_is_a_new_programs() -> None:
    book = ProgramBook(forget_s=600.0)
    first = book.enter("t", "constant", 0.0)
    first.running, first.last_end_s = 1, math.nan
    assert book.enter("t", "constant", 5000.0) is first, "its call still runs"
    first.running, first.last_end_s = 0, 5300.0
    assert book.enter("t", "constant", 5900.0) is first
    again = book.enter("t", "constant", 6501.0)
    assert (again.arrival_s, again.number) == (6501.0, 1)
