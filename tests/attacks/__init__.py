"""What strangers send: after every bad input the server (or device) is as it was before."""

import pytest

pytest.register_assert_rewrite("tests.attacks.unharmed", "tests.attacks.victim")
