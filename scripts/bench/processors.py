"""Who runs where, and what it has cost: servers have the first processor that is allowed, the load and the Redis behind the
caches have the others."""

import os

ALLOWED = sorted(os.sched_getaffinity(0))
SERVER = ALLOWED[:1]


def siblings(processor):
    """Those that share a core with it."""
    try:
        with open("/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list" % processor) as file:
            parts = [part.split("-") for part in file.read().strip().split(",")]
        return {number for part in parts for number in range(int(part[0]), int(part[-1]) + 1)}
    except (OSError, ValueError):
        return set()


# Not on the other half of the server's core, unless there is nothing else.
LOAD = [processor for processor in ALLOWED[1:] if processor not in siblings(SERVER[0])] or ALLOWED[1:]
TICKS = os.sysconf("SC_CLK_TCK")


def pinned(processors, command):
    """taskset becomes the command, so that its id is the command's."""
    return ["taskset", "--cpu-list", ",".join(map(str, processors))] + command


def fields(process):
    """Of /proc/PID/stat, behind the name, which may hold anything: the first is the state."""
    with open("/proc/%s/stat" % process) as file:
        return file.read().rpartition(")")[2].split()


def family(process):
    """A process and all that come from it."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(fields(entry)[1])
            except OSError:
                # It has ended meanwhile.
                pass
    found = [process]
    for member in found:
        found.extend(child for child, parent in parents.items() if parent == member)
    return found


def seconds(process):
    """Processor time of a process and all that come from it, user and system, all threads."""
    total = 0
    for member in family(process):
        times = fields(member)
        total += int(times[11]) + int(times[12])
    return total / TICKS
