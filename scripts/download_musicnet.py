"""Download MusicNet (Thickstun et al., ICLR 2017): 330 recordings of classical music, 34 hours, CC BY 4.0.

    python scripts/download_musicnet.py --output musicnet

An interrupted download goes on where it stopped; every file is compared with its published size and MD5 before it gets
its name; the archive is unpacked beside its place and renamed, so that a folder musicnet/ is always whole. Needs only
Python.
"""

import argparse
import hashlib
import http.client
import os
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

BASE_URL = "https://zenodo.org/records/5120004/files"
BLOCK = 1 << 20
FOLDER = "musicnet"
UNPACKED_PER_PACKED = 2.2


class DownloadError(Exception):
    """Something a person can mend; the message names it."""


@dataclass(frozen=True)
class Remote:
    """A published file.

    Attributes:
        name: its name at the source and here.
        size: bytes.
        md5: checksum as published, in hexadecimal.
    """

    name: str
    size: int
    md5: str


# Sizes and checksums as Zenodo's record 5120004 publishes them.
METADATA = Remote("musicnet_metadata.csv", 43_775, "1caef62cee9c875235e62aac368b49d8")
ARCHIVE = Remote("musicnet.tar.gz", 11_097_394_998, "844764911fa0d5b97c97da944a057590")

Report = Callable[[str], None]


def download(remote: Remote, folder: Path, *, base_url: str = BASE_URL, attempts: int = 8, wait: float = 2.0,
             report: Report = print) -> Path:
    """Fetch a file, going on with what an earlier try has left, and verify it.

    Args:
        remote: what to fetch.
        folder: where to.
        base_url: address of the folder at the source.
        attempts: tries in a row that bring nothing new before giving up.
        wait: seconds before the second try; doubled for every further one.
        report: takes lines for the person.

    Raises:
        DownloadError: no connection, no room on the disk, the source refuses, or the checksum differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / remote.name, folder / f"{remote.name}.part"
    if path.is_file() and path.stat().st_size == remote.size:
        report(f"{path}: already here")
        return path
    fails = 0
    while _size(part) < remote.size:
        before = _size(part)
        _check_room(folder, remote.size - before, remote.name)
        try:
            _fetch(f"{base_url}/{remote.name}", part, remote, report)
        except urllib.error.HTTPError as error:
            if error.code not in (408, 429, 500, 502, 503, 504):
                raise DownloadError(f"{error.url} answers {error.code} {error.reason}") from error
            reason = f"{error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        except OSError as error:
            raise DownloadError(f"cannot write {part}: {error.strerror}; what is there is kept") from error
        else:
            reason = "the connection ended early"
        if _size(part) >= remote.size:
            break
        fails = fails + 1 if _size(part) <= before else 1
        if fails >= attempts:
            raise DownloadError(f"{remote.name}: {reason}; {_size(part):,} of {remote.size:,} bytes are kept "
                                f"in {part}, start again to go on from there")
        pause = min(60.0, wait * 2 ** (fails - 1))
        report(f"{remote.name}: {reason}; going on in {pause:.0f} s from byte {_size(part):,}")
        time.sleep(pause)
    _verify(part, remote, report)
    os.replace(part, path)
    return path


def _fetch(url: str, part: Path, remote: Remote, report: Report) -> None:
    """Append what is missing to the part file; begin anew if the source cannot send a range."""
    have = _size(part)
    headers = {"User-Agent": "rave_tools", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        total = _total_size(response)
        if total is not None and total != remote.size:
            raise DownloadError(f"{url} has {total:,} bytes, {remote.size:,} were published: the source has changed")
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        with part.open("ab" if goes_on else "wb") as stream:
            report(f"{remote.name}: {'going on at' if goes_on else 'from'} byte {have if goes_on else 0:,} "
                   f"of {remote.size:,}")
            for block in _blocks(response):
                stream.write(block)
                _show(remote, stream.tell())
    _show(remote, None)


def _total_size(response: http.client.HTTPResponse) -> int | None:
    """The size of the whole file as the answer states it, if it does."""
    stated = response.headers.get("Content-Range", "").rpartition("/")[2] if response.status == 206 \
        else response.headers.get("Content-Length", "")
    return int(stated) if stated and stated.isdigit() else None


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(BLOCK):
        yield block


def _verify(part: Path, remote: Remote, report: Report) -> None:
    report(f"{remote.name}: verifying")
    digest = hashlib.md5(usedforsecurity=False)
    with part.open("rb") as stream:
        for block in _blocks(stream):
            digest.update(block)
    if _size(part) != remote.size or digest.hexdigest() != remote.md5:
        size = _size(part)
        part.unlink()
        raise DownloadError(f"{remote.name} is damaged: {size:,} bytes with MD5 {digest.hexdigest()}, published are "
                            f"{remote.size:,} bytes with MD5 {remote.md5}. It is deleted; start again")


def unpack(archive: Path, folder: Path, *, report: Report = print) -> Path:
    """Unpack the archive to ``folder/musicnet``, all or nothing.

    Raises:
        DownloadError: the archive cannot be read, reaches outside the folder, or does not fit on the disk.
    """
    target, partial = folder / FOLDER, folder / f"{FOLDER}.unpacking"
    if target.is_dir():
        report(f"{target}: already here")
        return target
    if not hasattr(tarfile, "data_filter"):
        raise DownloadError(f"unpacking safely needs Python 3.10.12, 3.11.4 or newer; unpack {archive} by hand")
    _check_room(folder, int(archive.stat().st_size * UNPACKED_PER_PACKED), f"unpacking {archive.name}")
    shutil.rmtree(partial, ignore_errors=True)
    report(f"unpacking {archive} (some minutes)")
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(partial, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DownloadError(f"{archive} cannot be unpacked: {error}") from error
    inner = partial / FOLDER
    os.replace(inner if inner.is_dir() else partial, target)
    shutil.rmtree(partial, ignore_errors=True)
    return target


def _check_room(folder: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(f"{what} needs {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _show(remote: Remote, done: int | None) -> None:
    """A line that counts, on a terminal only."""
    if sys.stderr.isatty():
        text = "" if done is None else f"{remote.name}: {done / 1e6:,.0f} of {remote.size / 1e6:,.0f} MB"
        print(f"\r{text:<60}", end="\r" if done is None else "", file=sys.stderr, flush=True)


def main(words: list[str] | None = None, *, files: tuple[Remote, Remote] = (METADATA, ARCHIVE)) -> int:
    """Download and unpack; the exit code is 0, 1 for an error, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("musicnet"), help="folder for the files [%(default)s]")
    parser.add_argument("--base_url", default=BASE_URL, help="another address of the same files")
    parser.add_argument("--keep_archive", action="store_true", help="do not delete the archive after unpacking")
    options = parser.parse_args(words)
    metadata, archive = files
    try:
        download(metadata, options.output, base_url=options.base_url)
        if not (options.output / FOLDER).is_dir():
            packed = download(archive, options.output, base_url=options.base_url)
            unpack(packed, options.output)
            if not options.keep_archive:
                packed.unlink()
    except DownloadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; start again to go on from there", file=sys.stderr)
        return 130
    print(f"MusicNet is in {options.output / FOLDER}; next: scripts/rave_preprocess.sh")
    return 0


if __name__ == "__main__":
    sys.exit(main())
