"""Users and passwords of addresses are used, and stand in no file and in no line that is printed."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import unquote

import pytest
from faulty_server import Fault, serving

from landmarks.cli.main import run
from landmarks.miniature.make import make_miniature


@pytest.fixture(scope="module")
def small_mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "mirror"
    return make_miniature(folder, landmarks=2, images=4, unknown=2, size=64)


@pytest.mark.parametrize("password", ["s3cr3t", "s3c@r3t", "s3c/r3t", "s3c?r3t#s3cx", "s3c%40r3t%2F"])
def test_no_user_and_no_password_is_printed_or_written(
    password: str,
    small_mirror: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wanted = "Basic " + base64.b64encode(f"4nn:{unquote(password)}".encode()).decode()
    monkeypatch.chdir(tmp_path)
    with serving(
        small_mirror, lambda request: None if wanted in request.headers.values() else Fault(status=401)
    ) as server:
        address = f"http://4nn:{password}@127.0.0.1:{server.server_port}"
        assert run(["select", address, "-o", "chosen.parquet"]) == 0
        assert run(["locate", address, "-o", "index.parquet"]) == 0
        assert run(["fetch", "chosen.parquet", "-o", "data", "--mirror", address, "--index", "index.parquet"]) == 0
        assert run(["select", f"{address}/nothing", "-o", "x.parquet"]) == 1
        assert run(["fetch", "chosen.parquet", "-o", "more"]) == 1  # without the password
    printed = capfd.readouterr()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for text in (printed.out + printed.err, written.decode("latin1")):
        assert not any(secret in text for secret in ("s3c", "r3t", "4nn", wanted))


def test_an_address_that_is_not_understood_shows_nothing_of_itself(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["select", "http://4nn:s3c@r/3t@127.0.0.1:1/x", "-o", "x.parquet"]) == 2
    printed = capfd.readouterr()
    assert not any(secret in printed.out + printed.err for secret in ("s3c", "3t", "4nn"))
    assert "%40" in printed.err
