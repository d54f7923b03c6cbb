"""The first Ctrl-C waits until the work looks for it; the second does not wait, and strangers' handlers stay."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from landmarks.support.systems import delayed_interruption, interrupt_when_asked_to_end


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored by what it runs in background
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_waits_and_the_second_interrupts(number: signal.Signals) -> None:
    interrupt_when_asked_to_end()
    with pytest.raises(KeyboardInterrupt), delayed_interruption() as is_interrupted:
        assert not is_interrupted()
        signal.raise_signal(number)
        assert is_interrupted()
        signal.raise_signal(number)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_what_somebody_else_does_at_a_signal_is_left_to_him() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    with delayed_interruption() as is_interrupted:
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
        assert not is_interrupted()


def test_a_thread_which_no_signal_reaches_works_as_ever() -> None:
    seen: list[bool] = []

    def work() -> None:
        with delayed_interruption() as is_interrupted:
            seen.append(is_interrupted())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
