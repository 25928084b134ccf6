"""A camera on the network, from a real RTSP server on loopback that is killed and started again."""

from __future__ import annotations

import signal
import time
from itertools import islice

import pytest

from splitrt.edge.source import source
from splitrt.errors import SplitrtError
from tests.edge.rtsp import HEIGHT, WIDTH, Door

pytest.importorskip("cv2", reason="OpenCV is not installed")


@pytest.fixture
def door():
    with Door() as made:
        yield made


def test_a_network_camera_gives_its_picture_in_rgb(door):
    door.start()
    with source(door.address) as camera:
        frames = list(islice(camera, 3))
    assert all(frame.image.shape == (HEIGHT, WIDTH, 3) for frame in frames)
    red, green, blue = frames[-1].image[HEIGHT // 3, WIDTH * 3 // 14].astype(int)  # the second bar
    assert red > blue + 100 and green > blue + 100  # is yellow


def test_who_is_slow_gets_the_latest_picture_of_a_network_camera(door):
    door.start()
    with source(door.address) as camera:
        for frame in islice(camera, 4):
            age = time.monotonic() - frame.captured
            time.sleep(0.5)
    assert camera.dropped > 5
    assert age < 0.5  # while 20 a second came, none waited in a queue


def test_a_network_camera_that_is_killed_and_comes_back_goes_on(door):
    door.start()
    with source(door.address, patience=None) as camera:
        frames = iter(camera)
        before = next(frames)
        for times in (1, 2):
            door.kill()
            door.start()
            while camera.opened <= times:
                before = next(frames)
            after = next(frames)
            assert after.index > before.index and after.image.shape == before.image.shape


def test_a_network_camera_that_is_away_at_the_beginning_is_waited_for(door):
    with pytest.raises(SplitrtError, match=r"cannot be opened\nhelp: "):
        source(door.address)
    with source(door.address, patience=None) as camera:
        frames = iter(camera)
        assert camera.opened == 0
        door.start()
        assert next(frames).index == 0


def test_a_network_camera_that_hangs_is_given_up_after_the_patience(door):
    door.start()
    with source(door.address, patience=1.0) as camera:
        frames = iter(camera)
        next(frames)
        door.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(SplitrtError, match=r"gave no frame for 1 s\nhelp: "):
                for _ in frames:
                    pass
        finally:
            door.process.send_signal(signal.SIGCONT)


def test_a_password_is_not_shown(door):
    address = door.address.replace("//", "//me:secret@")
    with pytest.raises(SplitrtError) as raised:
        source(address)
    assert "secret" not in str(raised.value) and "rtsp://…@127.0.0.1" in str(raised.value)
