"""Work on threads: order, how much of it is begun ahead, and errors."""

import threading
import time

import pytest

from imm_jax.merging.ahead import map_ahead, one_ahead


def test_results_come_in_order_and_no_more_is_drawn_than_allowed():
    drawn = []

    def items():
        for number in range(9):
            drawn.append(number)
            yield number

    def work(number):
        time.sleep(0.01 * (9 - number))  # later ones end sooner
        return -number

    costs = [1, 1, 1, 9, 1, 1, 1, 1, 1]
    results = map_ahead(work, items(), costs.__getitem__, limit=3)
    assert next(results) == (0, 0)
    assert drawn == [0, 1, 2, 3]
    assert list(results) == [(n, -n) for n in range(1, 9)]


def test_what_costs_more_than_the_limit_runs_alone():
    running, most = [], []

    def work(number):
        running.append(number)
        time.sleep(0.005)
        most.append(len(running))
        running.remove(number)
        return number

    assert [r for _, r in map_ahead(work, range(5), lambda n: 10, limit=3)] == [*range(5)]
    assert max(most) == 1


def test_an_error_comes_where_the_result_would():
    def work(number):
        if number == 2:
            raise ValueError("two")
        return number

    results = map_ahead(work, range(5), lambda n: 1, limit=3)
    assert [next(results), next(results)] == [(0, 0), (1, 1)]
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_the_next_item_is_drawn_on_a_thread_while_one_is_used():
    drawn, second = [], threading.Event()

    def items():
        for number in range(4):
            drawn.append((number, threading.current_thread() is threading.main_thread()))
            if number == 1:
                second.set()
            yield number

    results = one_ahead(items())
    assert next(results) == 0 and second.wait(60)
    time.sleep(0.05)
    assert drawn == [(0, False), (1, False)]  # and no more than one
    assert list(results) == [1, 2, 3]
    assert list(one_ahead([])) == []


def test_an_error_of_drawing_comes_behind_what_was_drawn_before():
    def items():
        yield 0
        raise ValueError("one")

    results = one_ahead(items())
    assert next(results) == 0
    with pytest.raises(ValueError, match="one"):
        next(results)
