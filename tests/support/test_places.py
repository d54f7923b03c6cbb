"""What verbs return is named as its folder is; what is no path is told as such; secrets of addresses stay secret."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_runs import image, make_dataset, own_data, run

import landmarks
from landmarks import LandmarksError
from landmarks.cli.main import VERBS
from landmarks.cli.main import run as program
from landmarks.dataset.manifest import Dataset
from landmarks.support.errors import UsageError
from landmarks.support.places import as_given, in_shell, parse_address, paths_of, without_query, without_secrets
from landmarks.training.run import Run

__all__ = ["own_data", "run"]


def test_a_dataset_is_named_wherever_its_folder_is(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", [[11], [22], [11]], splits=["train", "train", "test"])
    assert repr(dataset) == f"Dataset({tmp_path / 'data'}, 3 images of 2 landmarks, 2 train, 0 val, 1 test)"
    again = landmarks.open_dataset(dataset)
    assert again.digest == dataset.digest and dataset != again and dataset in {dataset, again}
    assert landmarks.unpack(dataset, tmp_path / "files").is_dir()
    assert len(landmarks.select(dataset, tmp_path / "all.parquet", landmarks=dataset).images) == 3
    chosen = landmarks.select(dataset, tmp_path / "chosen.parquet", landmarks=11)
    assert len(landmarks.fetch(chosen, tmp_path / "some").images) == 2
    assert len(landmarks.split(dataset, by="random", test=0.4, val=0.3).images) == 3
    with pytest.raises(UsageError, match="join takes two datasets or more, or one at an address; received 1"):
        landmarks.join(dataset, tmp_path / "both")


def test_a_run_is_named_wherever_its_folder_is(run: Run, own_data: Dataset, tmp_path: Path) -> None:
    assert repr(run) == f"Run({run.folder}, 3 landmarks)"
    assert landmarks.open_run(run) != run and run in [run]
    assert landmarks.evaluate(run, data=own_data).images == landmarks.evaluate(run.folder).images
    (tmp_path / "one.jpg").write_bytes(image(11, 1))
    assert landmarks.predict(run, tmp_path / "one.jpg").equals(landmarks.predict(run.folder, str(tmp_path / "one.jpg")))
    found = landmarks.index(own_data, tmp_path / "index", run=run, dimensions=16)
    assert len(landmarks.search(found, tmp_path / "one.jpg", top=2)) == 2
    assert [one["image_id"] for one in landmarks.explain(run, str(tmp_path / "one.jpg"))["made"]] == ["one"]
    assert landmarks.report(run, tmp_path / "report.html").is_file()
    with pytest.raises(LandmarksError, match="holds no recipe"):  # as a run that was made up
        landmarks.recipe(run)


@pytest.mark.slow  # features of four thousand numbers are whitened each time
def test_a_run_that_learns_is_named_by_itself_too(run: Run, own_data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "one.jpg").write_bytes(image(11, 1))
    assert landmarks.predict(run, tmp_path / "one.jpg", by="both").equals(
        landmarks.predict(run.folder, str(tmp_path / "one.jpg"), by="both")
    )
    assert landmarks.learn(run, tmp_path / "one.jpg", name="New").equals(landmarks.learn(run, tmp_path, name="New"))


@pytest.mark.parametrize("given", [b"bytes", 5, None, [Path("one"), 5], [[Path("one")]]])
def test_what_is_no_path_is_told_by_its_type(given: Any) -> None:
    with pytest.raises(UsageError, match=r"that is no path of a file or folder; received [a-zA-Z]+; so"):
        paths_of(given, way_out="so")


@pytest.mark.parametrize("address", ["s3://bucket/x", "https://example.org/x", "gs://b/x", "file:///tmp/x", "~/x"])
def test_nothing_is_written_into_a_folder_that_is_called_as_an_address_or_a_home_begins(
    address: str, own_data: Dataset, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    calls: list[Callable[[], object]] = [
        lambda: landmarks.unpack(own_data, address),
        lambda: landmarks.import_(own_data, address),
        lambda: landmarks.train(own_data, address, backbone="baseline"),
        lambda: landmarks.export(run, f"{address}.onnx"),
        lambda: landmarks.evaluate(run, wrong=f"{address}.csv"),
        lambda: landmarks.report(run, f"{address}.html"),
        lambda: landmarks.index(own_data, address, run=run),
        lambda: landmarks.join([own_data, own_data], address),
        lambda: landmarks.credits(own_data, f"{address}.csv"),
        lambda: landmarks.select(own_data, f"{address}.parquet"),
    ]
    (tmp_path / "album" / "tower").mkdir(parents=True)
    (tmp_path / "album" / "tower" / "1.jpg").write_bytes(image(11, 1))
    calls[1] = lambda: landmarks.import_("album", address)
    for call in calls:
        with pytest.raises(LandmarksError, match=r"nothing is written at an address: |in a folder called ~"):
            call()
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "album"])


@pytest.mark.parametrize("verb", ["split", "unpack", "evaluate", "predict", "import", "train"])
def test_what_is_not_fetched_is_told_with_its_address_and_a_way_out(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"unpack": ["-o", "x"], "predict": ["one.jpg"], "import": ["-o", "x"], "train": ["-o", "x"]}.get(verb, [])
    assert program([verb, "s3://key:secret@bucket/x", *words]) == 1
    message = capsys.readouterr().err
    assert "s3://bucket/x" in message and "here" in message and "secret" not in message


def test_one_path_and_several_come_as_several() -> None:
    assert paths_of("one") == ["one"] and paths_of(Path("one")) == [Path("one")]
    assert paths_of(name for name in ("one", "two")) == ["one", "two"] and paths_of([]) == []
    assert issubclass(UsageError, LandmarksError)


@pytest.mark.parametrize("flavour", [PurePosixPath, PureWindowsPath])
def test_an_address_that_became_a_path_is_known_on_every_system(flavour: type[PurePosixPath | PureWindowsPath]) -> None:
    for address in ("s3://bucket/a/b", "https://example.org/x.jpg", "file:///tmp/x"):
        assert as_given(flavour(address)) == address
    for place in ("C:/data/x", "data/x", "a:b/c"):
        assert as_given(flavour(place)) == str(flavour(place))


SECRETS = st.text("abcXYZ0189@/:?#%!$&'()*+,;=-._~", min_size=1, max_size=12).map(lambda text: f"s3cr{text}et")


@pytest.mark.parametrize(
    ("address", "user", "password", "bare"),
    [
        ("https://host/a/b", "", "", "https://host/a/b"),
        ("http://me:pw@host:8080/a?x=1", "me", "pw", "http://host:8080/a"),
        ("http://me:p%40w@host/a", "me", "p@w", "http://host/a"),
        ("http://me:p@w@host/a", "me", "p@w", "http://host/a"),
        ("http://me:p/w@host:80/a", "me", "p/w", "http://host:80/a"),
        ("http://me:p?w#x@host/a", "me", "p?w#x", "http://host/a"),
        ("http://token@host", "token", "", "http://host"),
        ("https://host/Category:A@b", "", "", "https://host/Category:A@b"),
        ("s3://bucket/prefix", "", "", "s3://bucket/prefix"),
    ],
)
def test_an_address_is_cut_into_its_parts(address: str, user: str, password: str, bare: str) -> None:
    parts = parse_address(address)
    assert (parts.user, parts.password, parts.bare) == (user, password, bare)


@pytest.mark.parametrize("address", ["http://me:p@w/d@host/a", "http://me:1/2@host/", "http://me:a/b@c@host/x"])
def test_an_address_that_may_mean_two_things_is_refused_and_not_shown(address: str) -> None:
    with pytest.raises(UsageError, match="cannot be understood") as refused:
        parse_address(address)
    assert "host" not in str(refused.value)


@given(SECRETS, st.sampled_from(["{}", "cannot read {} (refused)", "a: {}: b"]))
def test_no_text_shows_a_password_of_an_address_in_it(secret: str, around: str) -> None:
    text = without_secrets(around.format(f"http://me:{secret}@host.example/file.tar"))
    assert secret not in text
    assert "me:" not in text
    assert "host.example/file.tar" in text


def test_signatures_are_taken_out_and_other_queries_stay() -> None:
    signed = "http://h/x?X-Amz-Signature=abc123&X-Amz-Credential=me&part=7&sig=q"
    assert without_secrets(signed) == "http://h/x?X-Amz-Signature=…&X-Amz-Credential=…&part=7&sig=…"
    assert without_query(f"see {signed} there") == "see http://h/x there"
    assert without_secrets("https://commons.wikimedia.org/w/index.php?title=A@b") == (
        "https://commons.wikimedia.org/w/index.php?title=A@b"
    )


@given(st.text(st.characters(exclude_characters="\0"), min_size=1))
def test_a_place_in_a_command_that_is_shown_is_one_word(place: str) -> None:
    assert shlex.split(f"landmarks split {in_shell(place)}", comments=False)[2:] == [place]


def test_on_windows_only_spaces_are_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert in_shell("C:\\runs\\first") == "C:\\runs\\first"
    assert in_shell("C:\\my runs") == '"C:\\my runs"'


VERB_NAMES = [verb for _, verbs in VERBS.values() for verb in verbs]

NOT_QUOTED = {"split", "where"}
"""Names in commands that hold options, not paths."""


def unquoted(tree: ast.AST) -> Iterator[str]:
    """Yield the commands in f-strings into which a value goes that `in_shell` has not quoted."""
    quoted = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and "in_shell(" in ast.unparse(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for string in (node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)):
        before = ""
        for part in string.values:
            if isinstance(part, ast.Constant):
                before += str(part.value)
                continue
            assert isinstance(part, ast.FormattedValue)
            value = ast.unparse(part.value)
            command = re.search(rf"landmarks ({'|'.join(VERB_NAMES)})( [^;:,.()]*)? ?$", before)
            option = re.search(r"(^| )(-o|--(data|weights|logdir|drawings|mirror|run|labels|out)) $", before)
            name = re.sub(r"\W.*", "", value)
            other = before.endswith('"') or (re.search(r"--[a-z-]+ $", before) and not option)
            if (command or option) and not other and "in_shell(" not in value and name not in quoted | NOT_QUOTED:
                yield f"{before[-60:]}{{{value}}}"
            before += f"{{{value}}}".replace(".", "_")


def test_every_path_in_a_command_that_is_shown_is_quoted() -> None:
    found = {
        f"{path.name}: {command}"
        for path in Path(landmarks.__file__).parent.rglob("*.py")
        for command in unquoted(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == set()
