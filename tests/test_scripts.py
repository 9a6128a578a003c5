"""The MusicNet downloader against a server of our own that breaks off, forgets ranges and lies; the shell recipes."""

import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(scope="module")
def musicnet() -> ModuleType:
    spec = importlib.util.spec_from_file_location("download_musicnet", SCRIPTS / "download_musicnet.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["download_musicnet"] = module
    spec.loader.exec_module(module)
    return module


class Source(ThreadingHTTPServer):
    """Serves files from memory.

    Attributes:
        files: name -> content.
        ranges: whether ranges are honoured.
        cut: bytes after which an answer breaks off, while cuts remain.
        cuts: how many answers break off.
        status: answered instead of a file.
        asked: (path, Range header) of every request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges, self.cut, self.cuts, self.status = True, 0, 0, 200
        self.asked: list[tuple[str, str | None]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that refuses an answer closes the connection; that is its right."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/files"


class Handler(BaseHTTPRequestHandler):
    server: Source

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range")))
        data = self.server.files.get(self.path.rpartition("/")[2])
        if self.server.status != 200 or data is None:
            self.send_error(self.server.status if self.server.status != 200 else 404)
            return
        start = 0
        if self.server.ranges and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        body = data[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cuts:
            self.server.cuts -= 1
            body = body[: self.server.cut]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def source() -> Iterator[Source]:
    server = Source()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


DATA = bytes(range(256)) * 5000


@pytest.fixture
def remote(musicnet: ModuleType, source: Source) -> object:
    source.files["x.bin"] = DATA
    return musicnet.Remote("x.bin", len(DATA), hashlib.md5(DATA).hexdigest())


def test_a_file_arrives_whole_and_is_not_fetched_twice(musicnet, source, remote, tmp_path) -> None:
    for _ in range(2):
        assert musicnet.download(remote, tmp_path, base_url=source.url, report=str).read_bytes() == DATA
    assert len(source.asked) == 1 and [path.name for path in tmp_path.iterdir()] == ["x.bin"]


def test_a_broken_connection_goes_on_where_it_stopped(musicnet, source, remote, tmp_path) -> None:
    source.cut, source.cuts = 400_000, 3
    lines: list[str] = []
    path = musicnet.download(remote, tmp_path, base_url=source.url, wait=0, report=lines.append)
    assert path.read_bytes() == DATA
    assert [asked for _, asked in source.asked] == [None, "bytes=400000-", "bytes=800000-", "bytes=1200000-"]
    assert any("going on at byte 400,000" in line for line in lines)


def test_a_later_start_goes_on_with_what_an_earlier_one_left(musicnet, source, remote, tmp_path) -> None:
    source.cut, source.cuts = 0, 99
    (tmp_path / "x.bin.part").write_bytes(DATA[:1000])
    with pytest.raises(musicnet.DownloadError, match=r"1,000 of 1,280,000 bytes are kept .* start again"):
        musicnet.download(remote, tmp_path, base_url=source.url, attempts=2, wait=0, report=str)
    source.cuts = 0
    assert musicnet.download(remote, tmp_path, base_url=source.url, report=str).read_bytes() == DATA
    assert source.asked[-1][1] == "bytes=1000-"


def test_a_source_without_ranges_begins_anew(musicnet, source, remote, tmp_path) -> None:
    source.ranges = False
    (tmp_path / "x.bin.part").write_bytes(b"other bytes")
    assert musicnet.download(remote, tmp_path, base_url=source.url, report=str).read_bytes() == DATA


def test_a_wrong_checksum_is_refused_and_deleted(musicnet, source, remote, tmp_path) -> None:
    source.files["x.bin"] = DATA[:-1] + b"!"
    with pytest.raises(musicnet.DownloadError, match="damaged: .* MD5 .* It is deleted; start again"):
        musicnet.download(remote, tmp_path, base_url=source.url, report=str)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_source_is_refused_before_the_download(musicnet, source, remote, tmp_path) -> None:
    source.files["x.bin"] = DATA + b"more"
    with pytest.raises(musicnet.DownloadError, match="has 1,280,004 bytes, 1,280,000 were published"):
        musicnet.download(remote, tmp_path, base_url=source.url, report=str)


def test_errors_of_the_source(musicnet, source, remote, tmp_path) -> None:
    source.status = 404
    with pytest.raises(musicnet.DownloadError, match="answers 404"):
        musicnet.download(remote, tmp_path, base_url=source.url, wait=0, report=str)
    assert len(source.asked) == 1, "what is not there is asked for once"
    source.status = 503
    with pytest.raises(musicnet.DownloadError, match="503"):
        musicnet.download(remote, tmp_path, base_url=source.url, attempts=3, wait=0, report=str)
    assert len(source.asked) == 4, "a source that is busy is asked again"
    with pytest.raises(musicnet.DownloadError, match="refused"):
        musicnet.download(remote, tmp_path, base_url="http://127.0.0.1:9/x", attempts=1, wait=0, report=str)


def test_a_disk_without_room_is_said_before(musicnet, source, remote, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(musicnet.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(musicnet.DownloadError, match="GB are free"):
        musicnet.download(remote, tmp_path, base_url=source.url, report=str)
    assert source.asked == []


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"RIFF"))
    return buffer.getvalue()


def test_the_whole_command(musicnet, source, tmp_path, capsys) -> None:
    table = b"id,composer\n1727,Schubert\n"
    packed = archive("musicnet/train_data/1727.wav", "musicnet/test_data/1759.wav")
    files = tuple(musicnet.Remote(name, len(data), hashlib.md5(data).hexdigest())
                  for name, data in (("musicnet_metadata.csv", table), ("musicnet.tar.gz", packed)))
    source.files = {"musicnet_metadata.csv": table, "musicnet.tar.gz": packed}
    words = ["--output", str(tmp_path / "out"), "--base_url", source.url]
    assert musicnet.main(words, files=files) == 0
    assert (tmp_path / "out/musicnet/train_data/1727.wav").read_bytes() == b"RIFF"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["musicnet", "musicnet_metadata.csv"]
    asked = len(source.asked)
    assert musicnet.main(words, files=files) == 0 and len(source.asked) == asked, "what is whole is not fetched again"
    source.status = 403
    assert musicnet.main(["--output", str(tmp_path / "new"), "--base_url", source.url], files=files) == 1
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [archive("../outside.wav"), archive("musicnet/a.wav")[:40], b"no archive"],
    ids=["outside", "truncated", "no archive"],
)
def test_a_bad_archive_leaves_nothing(musicnet, tmp_path, content) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.tar.gz").write_bytes(content)
    with pytest.raises(musicnet.DownloadError, match="cannot be unpacked"):
        musicnet.unpack(folder / "a.tar.gz", folder, report=str)
    assert [path.name for path in folder.iterdir()] == ["a.tar.gz"] and not (tmp_path / "outside.wav").exists()


def test_the_published_files_are_those_of_the_record(musicnet) -> None:
    assert musicnet.BASE_URL == "https://zenodo.org/records/5120004/files"
    assert all(len(item.md5) == 32 and item.size > 0 for item in (musicnet.METADATA, musicnet.ARCHIVE))


def test_the_short_name_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, str(SCRIPTS / "downloader.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "MusicNet" in done.stdout and "--keep_archive" in done.stdout


@pytest.fixture
def fake_command(tmp_path: Path) -> dict[str, str]:
    """An environment whose rave_tools writes its words down."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "rave_tools"
    command.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$WORDS"\n')
    command.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "WORDS": str(tmp_path / "words")}


def test_the_preprocess_recipe_types_a_command_that_exists(fake_command, tmp_path) -> None:
    data, out = tmp_path / "my wavs", tmp_path / "db"
    data.mkdir()
    out.mkdir()
    (out / "metadata.yaml").write_text("channels: 1\n")
    env = {**fake_command, "INPUT": f"{data}:{data}", "OUTPUT": str(out)}
    done = subprocess.run(["bash", str(SCRIPTS / "rave_preprocess.sh"), "--lazy"], env=env, capture_output=True,
                          text=True)
    assert done.returncode == 0 and done.stdout == "channels: 1\n"
    words = (tmp_path / "words").read_text().splitlines()
    assert words[:3] == ["preprocess", "--input_path", str(data)] and words[-1] == "--lazy"
    accepts("preprocess", words[1:])
    missing = subprocess.run(["bash", str(SCRIPTS / "rave_preprocess.sh")], env={**env, "INPUT": "/nowhere"},
                             capture_output=True, text=True)
    assert missing.returncode == 1 and missing.stderr.startswith("error: no folder /nowhere")


def test_the_training_recipe_types_a_command_that_exists(fake_command, tmp_path) -> None:
    env = {**fake_command, "DB": str(tmp_path)}
    done = subprocess.run(["bash", str(SCRIPTS / "rave_train_single_gpu.sh")], env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "rave_preprocess.sh" in done.stderr
    (tmp_path / "metadata.yaml").write_text("channels: 1\n")
    subprocess.run(["bash", str(SCRIPTS / "rave_train_single_gpu.sh"), "--max_steps", "5"], env=env, check=True)
    words = (tmp_path / "words").read_text().splitlines()
    assert words[0] == "train" and words[-2:] == ["--max_steps", "5"]
    assert "rave_v2_musicnet_no_adversary" in words
    accepts("train", words[1:])


def accepts(command: str, words: list[str]) -> None:
    """The command's own flags take these words."""
    from rave_tools.cli import main as cli
    from rave_tools.cli import usage

    flags = usage.new_flags(cli.load_command(command))
    assert flags([command, *words]) == [command]


@pytest.fixture(scope="module")
def baseline() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_baseline", SCRIPTS / "train_baseline.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("argv", [[], ["--1ch", "--32ch"], ["--32ch", "--channels", "4"], ["--channels", "0"]])
def test_the_baseline_wants_to_know_how_many_channels(baseline: ModuleType, argv: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        baseline.words(argv)
    assert stopped.value.code == 2
    assert "--1ch" in capsys.readouterr().err


def test_the_baseline_is_a_thin_door_onto_train(baseline: ModuleType) -> None:
    start = ["train", "--config"]
    end = ["--audio_path", "/scratch/eigenscape/", "--wandb", "auto"]
    one = [*start, "encodec_baseline_1ch", "--channels", "1", "--name", "baseline_1ch"]
    assert baseline.words(["--1ch"]) == [*one, *end]
    many = [*start, "encodec_baseline_32ch", "--channels", "25", "--name", "foa"]
    rest = ["--audio_path", "a", "--audio_path", "b", "--wandb=off", "--batch", "2"]
    given = ["--channels", "25", "--name", "foa", *rest]
    assert baseline.words(given) == [*many, *rest]
    stored = ["--db_path", "db", "--channel_choice", "random", "--wandb", "auto"]
    assert baseline.words(["--1ch", "--db_path", "db"]) == [*one, *stored]
    assert baseline.words(["--1ch", "--resume", "runs/one"]) == ["train", "--resume", "runs/one", "--wandb", "auto"]


def test_the_baseline_trains_on_many_channels(baseline: ModuleType, tmp_path: Path) -> None:
    """As a reader of its documentation calls it; with a network small enough for a test."""
    generator = np.random.default_rng(0)
    for number in range(2):
        noise = 0.1 * generator.standard_normal((36000, 32))
        soundfile.write(tmp_path / f"{number}.wav", noise, 24000, subtype="PCM_24", format="RF64")
    small = ["--override", "CAPACITY = 2", "--override", "DISCRIMINATOR_CAPACITY = 2", "--override", "LATENT_SIZE = 8"]
    words = [sys.executable, str(SCRIPTS / "train_baseline.py"), "--32ch", "--audio_path", str(tmp_path), "--out_path",
             str(tmp_path / "runs"), "--smoke_test", "--workers", "0", "--batch", "1", *small]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "32 channel(s)" in done.stdout and "done at step 2" in done.stdout
    assert (tmp_path / "runs" / "baseline_32ch" / "validation_segments.json").exists()
