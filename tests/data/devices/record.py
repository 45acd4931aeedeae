"""Records what `edgecls.bench` reads of the machine it runs on, as a file for tests: `python record.py > NAME.json`.

Serial numbers in /proc/cpuinfo are left out; look through the file before you pass it on.
"""

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

FILES = (
    "etc/nv_tegra_release",
    "etc/os-release",
    "proc/cpuinfo",
    "proc/device-tree/compatible",
    "proc/device-tree/model",
    "proc/meminfo",
    "proc/sys/kernel/osrelease",
    "sys/class/devfreq/*.gpu/cur_freq",
    "sys/class/dmi/id/product_name",
    "sys/class/hwmon/hwmon*/name",
    "sys/class/hwmon/hwmon*/*_label",
    "sys/class/hwmon/hwmon*/curr*_input",
    "sys/class/hwmon/hwmon*/in*_input",
    "sys/class/hwmon/hwmon*/oc*_event_cnt",
    "sys/class/hwmon/hwmon*/temp*_input",
    "sys/class/powercap/intel-rapl:*/energy_uj",
    "sys/class/powercap/intel-rapl:*/max_energy_range_uj",
    "sys/class/powercap/intel-rapl:*/name",
    "sys/class/thermal/cooling_device*/cur_state",
    "sys/class/thermal/cooling_device*/type",
    "sys/class/thermal/thermal_zone*/temp",
    "sys/class/thermal/thermal_zone*/type",
    "sys/devices/platform/*/*firmware/get_throttled",
    "sys/devices/system/cpu/cpu[0-9]*/cpu_capacity",
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq",
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq",
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor",
    "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count",
    "sys/devices/system/cpu/cpu[0-9]*/topology/physical_package_id",
    "sys/devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list",
    "sys/devices/system/cpu/present",
)
TOOLS = ("vcgencmd get_throttled", "vcgencmd measure_temp", "vcgencmd measure_clock arm", "nvpmodel -q")

files = {}
for pattern in FILES:
    for path in sorted(Path("/").glob(pattern)):
        try:
            text = path.read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        files[str(path.relative_to("/"))] = re.sub(r"^Serial\s*:.*\n", "", text, flags=re.MULTILINE)
tools = {}
for tool in TOOLS:
    try:
        tools[tool] = subprocess.run(tool.split(), capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        continue
source = [f"Recorded on a {platform.machine()} machine by tests/data/devices/record.py."]
json.dump({"source": source, "files": files, "tools": tools}, sys.stdout, indent=1, ensure_ascii=False)
print()
