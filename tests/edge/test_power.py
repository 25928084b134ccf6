"""Watts: trees as Jetsons have them, a Pi 5's words, devices that have no sensor."""

from __future__ import annotations

import pytest

from splitrt.edge.power import PMIC, Sensor, command, mean, pmic, sensor
from splitrt.errors import ProfileError

ORIN_NANO = "sys/class/hwmon/hwmon1"
AGX = ("sys/class/hwmon/hwmon3", "sys/class/hwmon/hwmon4")
NANO = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
# The form in which a Pi 5 prints them, with fewer rails.
PI_5 = """     3V7_WL_SW_A current(0)=0.00195163A
       3V3_SYS_A current(1)=0.06050090A
      VDD_CORE_A current(7)=1.02200000A
     3V7_WL_SW_V volt(8)=3.69912200V
       3V3_SYS_V volt(9)=3.31230500V
      VDD_CORE_V volt(15)=0.72204230V
         EXT5V_V volt(24)=5.14986000V
          BATT_V volt(25)=0.00000000V
"""


def nothing(words):
    return ""


def tree(root, folder, files):
    """A folder as sysfs shows it: one value a file."""
    (root / folder).mkdir(parents=True)
    for name, value in files.items():
        (root / folder / name).write_text(f"{value}\n")


def rails(*rows):
    """(channel, label, millivolts, milliamperes) as hwmon's files."""
    files = {"name": "ina3221"}
    for channel, label, volts, amperes in rows:
        files |= {
            f"in{channel}_label": label,
            f"in{channel}_input": volts,
            f"curr{channel}_input": amperes,
        }
    return files


def test_an_orin_nano_is_read_at_its_input(tmp_path):
    tree(tmp_path, "sys/class/hwmon/hwmon0", {"name": "pwmfan", "in1_label": "VDD_IN"})
    cpu, soc = (2, "VDD_CPU_GPU_CV", 4976, 120), (3, "VDD_SOC", 4968, 280)
    tree(tmp_path, ORIN_NANO, rails((1, "VDD_IN", 4976, 960), cpu, soc))
    found = sensor(tmp_path, nothing)
    assert found.read() == pytest.approx(4.976 * 0.960) and "VDD_IN" in found.source
    (tmp_path / ORIN_NANO / "curr1_input").write_text("2000\n")
    assert found.read() == pytest.approx(4.976 * 2)


def test_an_agx_orin_is_the_sum_of_its_rails_without_those_that_are_none(tmp_path):
    tree(
        tmp_path, AGX[0],
        rails((1, "VDD_GPU_SOC", 20000, 200), (2, "VDD_CPU_CV", 20000, 100),
              (3, "VIN_SYS_5V0", 5000, 600), (7, "sum of shunt voltages", 9000, 9000)),
    )  # fmt: skip
    tree(tmp_path, AGX[1], rails((1, "NC", 9000, 9000), (2, "VDDQ_VDD2_1V8AO", 5000, 100)))
    found = sensor(tmp_path, nothing)
    assert found.read() == pytest.approx(4 + 2 + 3 + 0.5)
    assert "NC" not in found.source and "shunt" not in found.source


def test_a_jetson_of_jetpack_4_is_read_in_milliwatts(tmp_path):
    tree(
        tmp_path, NANO,
        {"rail_name_0": "POM_5V_IN", "in_power0_input": 2459, "rail_name_1": "POM_5V_GPU",
         "in_power1_input": 81, "rail_name_2": "POM_5V_CPU", "in_power2_input": 488},
    )  # fmt: skip
    found = sensor(tmp_path, nothing)
    assert found.read() == pytest.approx(2.459) and "POM_5V_IN" in found.source


def test_a_rail_that_cannot_be_read_is_left_out(tmp_path):
    tree(tmp_path, ORIN_NANO, rails((1, "VDD_IN", "", 960), (2, "VDD_SOC", 5000, 200)))
    assert sensor(tmp_path, nothing).read() == pytest.approx(1)


def test_a_pi_5_is_read_by_its_power_chip(tmp_path):
    asked = []

    def run(words):
        asked.append(tuple(words))
        return PI_5

    found = sensor(tmp_path, run)
    rails = 0.00195163 * 3.699122 + 0.0605009 * 3.312305 + 1.022 * 0.7220423
    assert found.read() == pytest.approx(1.1451 * rails + 0.5879)
    assert set(asked) == {PMIC} == {("vcgencmd", "pmic_read_adc")}


@pytest.mark.parametrize("text", ["", "VCHI initialization failed", "EXT5V_V volt(24)=5.1V"])
def test_other_words_are_no_watts(text):
    with pytest.raises(ValueError, match="no rail"):
        pmic(text)


def test_a_device_without_a_sensor_has_none(tmp_path):
    assert sensor(tmp_path, nothing) is None
    assert sensor(tmp_path, lambda words: 'error=1 error_msg="Command not registered"') is None
    tree(tmp_path, ORIN_NANO, {"name": "cpu_thermal", "in1_label": "VDD_IN"})
    assert sensor(tmp_path, nothing) is None


def test_a_mean_is_of_all_readings_while_the_work_is_done():
    values, done = iter([1.0, 3.0] * 1000), []
    found = mean(Sensor("a test", lambda: next(values)), 0.3, lambda: done.append(1))
    assert 1 <= found <= 3 and done


def test_readings_that_fail_are_passed_over_unless_all_do():
    turn = iter([OSError(), 5.0] * 1000)

    def read():
        one = next(turn)
        if isinstance(one, OSError):
            raise one
        return one

    assert mean(Sensor("a test", read), 0.3) == 5

    def dead():
        raise OSError

    with pytest.raises(ProfileError, match="no readings"):
        mean(Sensor("a test", dead), 0.05)


def test_a_command_that_fails_or_is_missing_prints_nothing():
    assert command(["no-such-command-here"]) == ""
    assert command(["false"]) == ""
    assert command(["echo", "volt("]) == "volt(\n"
