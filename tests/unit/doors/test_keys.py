# SPDX-License-Identifier: Apache-2.0
"""The directory with the advert keys: what counts as one, and what happens when it changes or breaks."""

import asyncio
import logging
import os
from pathlib import Path

import pytest

from holdfast_speaker import keys
from holdfast_speaker.keys import KeyFiles, KeysError, key_in, read
from holdfast_speaker.vrrp.seal import Seal

KEY, NEXT = b"k" * 32, b"n" * 32


@pytest.fixture
def seal() -> Seal:
    return Seal("enforce", wall_offset_us=0)


def accepted(seal: Seal, key_id: int) -> list[bytes]:
    return list(seal.keyring.accepted(key_id, 0))


def test_each_file_named_by_an_id_is_a_key(tmp_path: Path, seal: Seal) -> None:
    (tmp_path / "1").write_bytes(KEY)
    (tmp_path / "255").write_bytes(b"hex:" + NEXT.hex().encode() + b"\n")
    (tmp_path / "..data").mkdir()
    KeyFiles(tmp_path, seal).start()

    assert (accepted(seal, 1), accepted(seal, 255)) == ([KEY], [NEXT])
    assert seal.wall_offset_us > 0


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (b"x" * 16, b"x" * 16),
        (b"passphrase of enough length\r\n\n", b"passphrase of enough length"),
        (b"hex:" + b"00ff" * 8, b"\x00\xff" * 8),
        (b"\x00\xff" * 50, b"\x00\xff" * 50),
    ],
)
def test_a_key_is_text_bytes_or_hex(content: bytes, key: bytes) -> None:
    assert key_in(content) == key


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("1", b"x" * 15 + b"\n", "15 bytes long: must be at least 16"),
        ("1", b"", "0 bytes long"),
        ("1", b"hex:123", "hexadecimal"),
        ("1", b"hex:" + b"zz" * 16, "hexadecimal"),
        ("1", b"x" * 5000, "longer than 4096 bytes"),
        ("0", KEY, "1 to 255"),
        ("256", KEY, "1 to 255"),
        ("01", KEY, "1 to 255"),
        ("key", KEY, "1 to 255"),
        ("²", KEY, "1 to 255"),
    ],
)
def test_what_is_no_key_is_named_with_its_reason_and_without_its_content(
    tmp_path: Path, seal: Seal, name: str, content: bytes, why: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(KeysError) as refused:
        KeyFiles(tmp_path, seal).start()

    assert f"{name}: " in str(refused.value)
    assert why in str(refused.value)
    assert "x" * 15 not in str(refused.value)


def test_a_folder_a_pipe_and_a_dead_link_are_no_keys(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    os.mkfifo(tmp_path / "2")
    (tmp_path / "3").symlink_to("nowhere")
    found, faults = read(tmp_path)

    assert found == {}
    assert sorted(faults) == ["1", "2", "3"]


def test_a_directory_that_is_not_there_ends_the_start_with_its_name(tmp_path: Path, seal: Seal) -> None:
    with pytest.raises(KeysError, match=r"no advert key in .*/absent: .*No such file"):
        KeyFiles(tmp_path / "absent", seal).start()


def test_changes_are_read_again_and_what_breaks_leaves_the_last_good_key(
    tmp_path: Path, seal: Seal, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Secret's mount is swapped by one rename of ..data; here the same way."""
    monkeypatch.setattr(keys, "REREAD_S", 0.005)
    caplog.set_level(logging.INFO)

    def mount(turn: str, **files: bytes) -> None:
        folder = tmp_path / f"..{turn}"
        folder.mkdir()
        for name, content in files.items():
            (folder / name.removeprefix("k")).write_bytes(content)
        (tmp_path / "..new").symlink_to(folder.name)
        (tmp_path / "..new").rename(tmp_path / "..data")
        for name in files:
            link = tmp_path / name.removeprefix("k")
            if not link.is_symlink():
                link.symlink_to(f"..data/{link.name}")

    async def until(reached: str) -> None:
        for _ in range(1000):
            if reached in caplog.text:
                return
            await asyncio.sleep(0.005)
        pytest.fail(f"never said: {reached}\n{caplog.text}")

    async def story() -> None:
        mount("one", k1=KEY)
        files = KeyFiles(tmp_path, seal, clock=lambda: 0)
        files.start()
        reading = asyncio.create_task(files.run())
        mount("two", k1=KEY, k2=NEXT)
        await until("advert keys 1, 2, signing with 1")
        mount("three", k1=KEY, k2=b"short")
        await until("2 is refused: its key is 5 bytes long: must be at least 16; the last good one stays")
        assert accepted(seal, 2) == [NEXT]
        for name in ("1", "2"):
            (tmp_path / name).unlink()
        await asyncio.sleep(0.05)
        assert (accepted(seal, 1), accepted(seal, 2)) == ([KEY], [NEXT])
        reading.cancel()

    asyncio.run(story())
    assert caplog.text.count("2 is refused") == 1
    assert caplog.text.count("advert keys ") == 2  # neither the bad file nor the empty directory was news
    assert "short" not in caplog.text
    assert "n" * 16 not in caplog.text
