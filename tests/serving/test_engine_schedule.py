"""Whose turn it is: the rules of `engine/schedule.py` on tasks alone, with a step that takes as long as its rows."""

import dataclasses

import pytest

from diffsplat.serving.engine.policy import EnginePolicy, first_come_first_served
from diffsplat.serving.engine.schedule import Plan, Schedule, Task

POLICY = EnginePolicy(max_batch=2, early_starts=1, overtaking=1, overtake_share=0.25, max_stretch=10.0, patience=1.0)


def task(arrival: int, steps: int = 10, **more: float) -> Task:
    values = {"priority": 0, "rows": 1, "step": 0, **more}
    return Task(arrival, steps=steps, started=values["step"] > 0, **values)


def running(arrival: int, steps: int = 10, step: int = 1, **more: float) -> Task:
    return dataclasses.replace(task(arrival, steps, step=step, **more), has_place=True)


def plan(*tasks: Task, **policy: float | str) -> Plan:
    return Schedule(dataclasses.replace(POLICY, **policy), float).plan(tasks)


def batch(*tasks: Task, **policy: float | str) -> list[int]:
    """Arrivals of those that make the next step."""
    return [each.arrival for each in plan(*tasks, **policy).batch]


def test_free_places_go_to_the_least_work_left_then_to_the_first() -> None:
    assert batch(task(0, 9), task(1, 5), task(2, 7)) == [1, 2]
    assert batch(task(0, 5), task(1, 5), task(2, 5)) == [0, 1]
    assert batch(task(0, 5, rows=2), task(1, 7), task(2, 8)) == [1, 2], "two rows are twice the work"
    assert batch(task(0, 9), task(1, 5), task(2, 7), order="arrival") == [0, 1]


def test_a_higher_priority_goes_first_whatever_its_work() -> None:
    assert batch(task(0, 5), task(1, 5), task(2, 200, priority=1)) == [2, 0]
    assert batch(running(0), running(1), task(2, 200, priority=1)) == [2, 0]
    assert batch(running(0), running(1), task(2, 200, priority=1), order="arrival") == [2, 0]
    assert batch(running(0), running(1), task(2, 1, priority=-1), early_starts=0) == [0, 1]


def test_only_one_with_much_less_work_takes_the_place_of_a_running_one() -> None:
    assert batch(running(0, 101), running(1, 101), task(2, 25), early_starts=0) == [2, 0]
    assert batch(running(0, 101), running(1, 101), task(2, 26), early_starts=0) == [0, 1]
    assert batch(running(0, 101), running(1, 101), task(2, 25), early_starts=0, order="arrival") == [0, 1]
    paused = task(2, 100, step=80)  # its whole work counts, so that nobody is pushed to and fro near the end
    assert batch(running(0, 101), running(1, 101), paused) == [0, 1]


def test_a_newcomer_makes_its_first_step_as_a_guest_and_gives_the_place_back() -> None:
    tasks = [running(0, 20, 10), running(1, 20, 5), task(2, 20), task(3, 20)]
    first = plan(*tasks)
    assert [each.arrival for each in first.batch] == [0, 2] and [each.arrival for each in first.placed] == [0, 1]
    first.begin(tasks)
    tasks[0].step, tasks[2].step = 11, 1
    assert batch(*tasks) == [0, 1], "states are counted: only one may be started beyond the places"
    assert batch(running(0, 20, 10), running(1, 20, 5), task(2, 20), early_starts=0) == [0, 1]
    assert batch(running(0, priority=1), running(1, priority=1), task(2)) == [0, 1], "a lower priority is no guest"
    assert batch(running(0, step=0), running(1, step=0), task(2)) == [0, 1], "nor does a newcomer send one away"


def test_states_are_bounded_and_some_are_kept_for_those_that_overtake() -> None:
    tasks = [running(0, 100), running(1, 100), task(2, 100, step=1)]  # two places, one early start: all taken
    assert batch(*tasks, task(3, 100)) == [0, 1], "no room for a first step"
    assert batch(*tasks, task(3, 4)) == [3, 0], "the state in reserve"
    assert batch(*tasks, task(3, 50, step=1), task(4, 4)) == [0, 1], "none is left"


def test_long_requests_pause_while_they_would_slow_a_short_one_down() -> None:
    assert batch(running(0, 100), running(1, 4), max_stretch=1.5) == [1]
    assert batch(running(0, 100), running(1, 4), max_stretch=2.0) == [1, 0]
    assert batch(running(0, 10), running(1, 4), max_stretch=1.5) == [1, 0], "it is not short beside this one"
    assert batch(running(0, 100, 97), running(1, 100, 1), max_stretch=1.5) == [0, 1], "nearly done is not short"
    assert batch(running(0, 100), running(1, 4), max_stretch=1.5, order="arrival") == [0, 1]


def test_who_does_not_run_yields_to_those_that_came_later() -> None:
    tasks = [task(0), task(1), task(2), task(3)]
    Plan([tasks[1], tasks[2]], []).note_yielding(tasks, 3.0)
    assert [each.yielded_s for each in tasks] == [3.0, 0.0, 0.0, 0.0]


def test_a_request_that_has_yielded_its_own_work_rises_by_one() -> None:
    schedule = Schedule(POLICY, float)
    assert [schedule.view(task(0, 10, yielded_s=seconds)).level for seconds in (0, 9.9, 10, 25)] == [0, 0, 1, 2]
    assert schedule.until_next_level_s(task(0, 10, yielded_s=25)) == pytest.approx(5)
    assert Schedule(dataclasses.replace(POLICY, patience=2), float).view(task(0, 10, yielded_s=25)).level == 1
    assert batch(running(0, 100, yielded_s=100), running(1, 100), task(2, 4), early_starts=0) == [0, 2]
    assert batch(running(0, 100, yielded_s=100), running(1, 100, yielded_s=100), task(2, 4)) == [0, 1]
    risen = task(0, 100, step=1, yielded_s=200)
    assert batch(risen, running(1, 50), task(2, 40, step=1)) == [0, 1], "it gets the next free place"
    assert batch(risen, running(1, 50), running(2, 50)) == [1, 2], "and not one that is taken"


@pytest.mark.parametrize("priority", [0, 1])
def test_nobody_starves(priority: int) -> None:
    """Requests of 5 steps keep coming, faster than they are served, of the same or a higher priority."""
    schedule, long = Schedule(dataclasses.replace(POLICY, max_stretch=1.5), float), task(0, 20)
    tasks, made = [long], 1
    while long.steps_left:
        tasks += [task(made + i, 5, priority=priority) for i in range(2)]
        made += 2
        assert made < 1000, "it starves"
        step = schedule.plan(tasks)
        step.begin(tasks)
        seconds = schedule.batch_s(step.batch)
        step.note_yielding(tasks, seconds)
        for each in step.batch:
            each.step += 1
        tasks = [each for each in tasks if each.steps_left]
    next_place_s = 5 * schedule.batch_s([long, long])
    assert long.yielded_s <= (priority + 1) * 20 + next_place_s, "more than its own work for each level"


def test_first_come_first_served_lets_nobody_overtake() -> None:
    policy = first_come_first_served(POLICY)
    schedule = Schedule(policy, float)
    tasks = [running(0, 100), running(1, 100), task(2, 1), task(3, 50)]
    assert [each.arrival for each in schedule.plan(tasks).batch] == [0, 1]
    assert policy.max_states == policy.max_batch == POLICY.max_batch
