import os
import signal
import threading

import pytest

from pipeline.interrupt import noted_interrupt


def test_the_first_ctrl_c_is_noted_the_second_kills() -> None:
    before = signal.getsignal(signal.SIGINT)
    with noted_interrupt() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_nothing_is_noted() -> None:
    seen: list[bool] = []

    def work() -> None:
        with noted_interrupt() as stop:
            seen.append(stop.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
