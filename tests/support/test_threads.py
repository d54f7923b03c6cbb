"""How threads wait is decided before torch is loaded, and never over the user's own setting."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from landmarks.support.systems import POLICIES, waiting_policy


def printed_by(code: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in POLICIES} | variables
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


SHOWN = "import os; print(os.environ.get('OMP_WAIT_POLICY'))"
FIRST_USE = f"import landmarks; landmarks.open_dataset; {SHOWN}"


def test_the_first_use_of_the_package_has_threads_sleep() -> None:
    assert printed_by(FIRST_USE) == "PASSIVE"


def test_the_command_line_has_threads_sleep_before_anything_heavy_is_loaded() -> None:
    code = "import sys, pytest; sys.argv = ['landmarks', '-h']; from landmarks.cli.main import main\n"
    code += "with pytest.raises(SystemExit): main()"
    assert printed_by(f"{code}\n{SHOWN}").splitlines()[-1] == "PASSIVE"


def test_importing_the_package_alone_changes_nothing() -> None:
    assert printed_by(f"import landmarks; {SHOWN}") == "None"


@pytest.mark.parametrize("name", POLICIES)
def test_the_user_s_own_setting_stays(name: str) -> None:
    expected = "ACTIVE" if name == "OMP_WAIT_POLICY" else "None"
    assert printed_by(FIRST_USE, **{name: "ACTIVE"}) == expected


def test_a_torch_that_is_there_already_is_left_alone() -> None:
    assert printed_by(f"import sys; sys.modules['torch'] = sys; {FIRST_USE}") == "None"


def test_what_was_decided_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in POLICIES:
        monkeypatch.delenv(name, raising=False)
    assert "spin" in waiting_policy()
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert "sleep" in waiting_policy()
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert waiting_policy() == "as OMP_WAIT_POLICY=ACTIVE has it"
