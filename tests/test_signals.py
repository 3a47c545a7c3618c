"""Signals: the first waits for the loop, the second does not."""

import os
import signal
import subprocess
import sys
import time

import pytest

from diffsim._errors import Interrupted
from diffsim._signals import Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_wait_for_the_loop_and_handlers_come_back(number):
    before = signal.default_int_handler
    outside = signal.signal(number, before)  # which under `nohup` ignores SIGHUP
    try:
        with Signals() as signals:
            signals.check()
            os.kill(os.getpid(), number)
            deadline = time.monotonic() + 10
            while signals.asked is None and time.monotonic() < deadline:
                time.sleep(0.01)
            with pytest.raises(Interrupted) as caught:
                signals.check()
        assert caught.value.signum == number
        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, outside)


def test_what_nohup_keeps_away_stays_away():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            signals.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_signal_quits_at_once():
    code = (
        "import os, signal, time\nfrom diffsim._signals import Signals\n"
        "with Signals() as s:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    while s.asked is None: time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, timeout=30)
    assert ended.returncode == 130
