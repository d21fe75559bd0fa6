"""CPU affinity, CPU time and memory of the processes.

Servers run on the first allowed CPU. The load, and the Redis behind the caches, have the others.
"""

import os

ALLOWED = sorted(os.sched_getaffinity(0))
SERVER = ALLOWED[:1]


def read_siblings(cpu):
    """Returns the CPUs that share a core with this one, itself included."""
    try:
        with open("/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list" % cpu) as file:
            parts = [part.split("-") for part in file.read().strip().split(",")]
        return {number for part in parts for number in range(int(part[0]), int(part[-1]) + 1)}
    except (OSError, ValueError):
        return set()


# Not on the other thread of the server's core, unless there is no other CPU.
LOAD = [cpu for cpu in ALLOWED[1:] if cpu not in read_siblings(SERVER[0])] or ALLOWED[1:]
TICKS, PAGE_BYTES = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


def pin(cpus, command):
    """Returns the command line that runs a command on these CPUs.

    taskset replaces itself with the command, so the process id is that of the command.
    """
    return ["taskset", "--cpu-list", ",".join(map(str, cpus))] + command


def read_stat(process):
    """Returns the fields of /proc/PID/stat behind the process name; the first is the state.

    The name may contain any character, so fields are counted from its end.
    """
    with open("/proc/%s/stat" % process) as file:
        return file.read().rpartition(")")[2].split()


def list_descendants(process):
    """Returns a process and all its descendants."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(read_stat(entry)[1])
            except OSError:
                # It has exited since the directory was listed.
                pass
    found = [process]
    for member in found:
        found.extend(child for child, parent in parents.items() if parent == member)
    return found


def read_seconds(process):
    """Returns the CPU time of a process and its descendants: user and system, all threads."""
    total = 0
    for member in list_descendants(process):
        times = read_stat(member)
        total += int(times[11]) + int(times[12])
    return total / TICKS


def read_resident_bytes(process):
    """Returns the memory of a process that is in RAM."""
    with open("/proc/%d/statm" % process) as file:
        return int(file.read().split()[1]) * PAGE_BYTES
