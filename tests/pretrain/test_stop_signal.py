"""Signals are noted, and do what they do again once they have been."""

import os
import signal

from pretrain.stop_signal import StopSignal


def test_a_signal_is_noted_once_and_the_handlers_come_back(capsys):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignal() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received is signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == before[1], "a second one stops at once"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert "SIGTERM: saving after this step" in capsys.readouterr().err
