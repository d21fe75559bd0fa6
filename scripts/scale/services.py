"""Starts and stops Redis, the proxies and the balancers, with the files of deploy/scale.

Every process listens on free ports of 127.0.0.1 and writes below one directory only. It ends with
its parent, even if that is killed.
"""

import ctypes
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
DEPLOY = os.path.join(HERE, "..", "..", "deploy", "scale")
# Seconds to start and to stop: far longer than a busy machine takes.
START_TIMEOUT, STOP_TIMEOUT = 30, 10
# Signal that a process gets when its parent ends (prctl).
PR_SET_PDEATHSIG = 1
# Directories of daemons, which the PATH of a user may lack.
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
LIBC = ctypes.CDLL(None)


class Failed(Exception):
    """Problem that makes the figures worthless."""


def choose_port():
    """Returns a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(what, is_true):
    """Waits for a condition. Raises Failed if it takes too long."""
    deadline = time.monotonic() + START_TIMEOUT
    while not is_true():
        if time.monotonic() > deadline:
            raise Failed("timed out: %s" % what)
        time.sleep(0.02)


def is_listening(port):
    """Returns true if a port accepts connections."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


def end_with_parent():
    """Makes the kernel end this process when its parent ends. Runs in the child."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Service:
    """One process that listens on a port."""

    def __init__(self, name, port, command, log, environment=None):
        self.name, self.port = name, port
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=os.path.dirname(log),
                env=environment or dict(os.environ, PATH=PATH), preexec_fn=end_with_parent)
        try:
            wait_until("%s listens; see %s" % (name, log), self.is_ready)
        except Failed:
            self.stop()
            raise

    def is_ready(self):
        """Returns true if the process listens. Raises Failed if it has exited."""
        if self.process.poll() is not None:
            raise Failed("%s exited with code %d" % (self.name, self.process.returncode))
        return is_listening(self.port)

    def read_processor_seconds(self):
        """Returns the processor time of the process so far, user and system, of all its threads.

        Reads the process' clock, which counts nanoseconds. /proc/PID/stat counts hundredths of a
        second, too coarse for a proxy that is hardly busy.
        """
        # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of the kernel, as clock_getcpuclockid(3) does.
        return time.clock_gettime(~self.process.pid << 3 | 2)

    def kill(self):
        """Kills the process at once (SIGKILL)."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """Ends the process and waits for it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.kill()


class Proxy(Service):
    """One proxy, with its counters."""

    def __init__(self, binary, number, redis_port, port, directory, variables):
        environment = dict(variables, REDIS_HOST="127.0.0.1", REDIS_PORT=str(redis_port), PROXY_HOST="127.0.0.1",
                           PROXY_PORT=str(port), CACHE_TTL="3600", REDIS_TIMEOUT="20000")
        name = "proxy%d" % number
        super().__init__(name, port, [binary], os.path.join(directory, name + ".log"), environment)

    def read_counters(self):
        """Returns the samples of /metrics by name."""
        url = "http://127.0.0.1:%d/metrics" % self.port
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=START_TIMEOUT) as response:
            text = response.read().decode()
        return {name: float(value) for name, value in re.findall(r"^([a-z_]+) (\S+)$", text, re.MULTILINE)}

    def list_cached(self, keys):
        """Returns the keys that this proxy holds. Does not ask Redis: TTL looks at the cache."""
        commands = b"".join(b"*2\r\n$3\r\nTTL\r\n$%d\r\n%s\r\n" % (len(key), key.encode()) for key in keys)
        with socket.create_connection(("127.0.0.1", self.port), timeout=START_TIMEOUT) as connection:
            connection.sendall(commands)
            with connection.makefile("rb") as replies:
                return {key for key in keys if replies.readline() != b":-2\r\n"}


def substitute(text, ports, listen_pattern, listen):
    """Replaces the addresses of a file in deploy/scale by those of this machine.

    Raises Failed if an address of the file is missing: then the file itself was not used.
    """
    text, count = re.subn(listen_pattern, listen, text)
    if count != 1:
        raise Failed("the file has %d lines like %s" % (count, listen_pattern))
    for number, port in enumerate(ports, 1):
        text, count = re.subn(r"proxy%d:8080\b" % number, "127.0.0.1:%d" % port, text)
        if count == 0:
            raise Failed("the file has no proxy%d:8080" % number)
    return text


def read_deployed(name):
    """Returns the text of a file in deploy/scale."""
    with open(os.path.join(DEPLOY, name)) as file:
        return file.read()


def replace(text, old, new):
    """Replaces a line of a configuration everywhere. Raises Failed if it is missing."""
    if old not in text:
        raise Failed("the file has no %r" % old)
    return text.replace(old, new)


def start_haproxy(ports, directory, changes=()):
    """Starts HAProxy with deploy/scale/haproxy.cfg, after changes of (old, new)."""
    port = choose_port()
    text = read_deployed("haproxy.cfg")
    for old, new in changes:
        text = replace(text, old, new)
    path = os.path.join(directory, "haproxy.cfg")
    with open(path, "w") as file:
        file.write(substitute(text, ports, r"bind :8081\b", "bind 127.0.0.1:%d" % port))
    return Service("haproxy", port, ["haproxy", "-db", "-f", path], os.path.join(directory, "haproxy.log"))


def start_nutcracker(ports, directory, changes=()):
    """Starts twemproxy with deploy/scale/nutcracker.yml, after changes of (old, new)."""
    port = choose_port()
    text = read_deployed("nutcracker.yml")
    for old, new in changes:
        text = replace(text, old, new)
    path = os.path.join(directory, "nutcracker.yml")
    with open(path, "w") as file:
        file.write(substitute(text, ports, r"listen: 0\.0\.0\.0:22121\b", "listen: 127.0.0.1:%d" % port))
    command = ["nutcracker", "-c", path, "-o", os.path.join(directory, "nutcracker.log"),
               "-p", os.path.join(directory, "nutcracker.pid"), "-a", "127.0.0.1", "-s", str(choose_port())]
    return Service("nutcracker", port, command, os.path.join(directory, "nutcracker.out"))


def start_nginx(ports, directory):
    """Starts nginx with deploy/scale/nginx.conf, which belongs into the http context."""
    port = choose_port()
    included, path = os.path.join(directory, "included.conf"), os.path.join(directory, "nginx.conf")
    with open(included, "w") as file:
        file.write(substitute(read_deployed("nginx.conf"), ports, r"listen 8081;", "listen 127.0.0.1:%d;" % port))
    log = os.path.join(directory, "nginx.log")
    temporary = "".join("%s_temp_path %s/%s;\n" % (name, directory, name)
                        for name in ("client_body", "fastcgi", "uwsgi", "scgi", "proxy"))
    with open(path, "w") as file:
        file.write("daemon off;\nmaster_process off;\npid %s/nginx.pid;\nerror_log %s;\n"
                   "events { worker_connections 4096; }\nhttp {\naccess_log off;\n%sinclude %s;\n}\n"
                   % (directory, log, temporary, included))
    return Service("nginx", port, ["nginx", "-p", directory, "-e", log, "-c", path], os.path.join(directory, "nginx.out"))


def start_redis(directory):
    """Starts a Redis without persistence."""
    port = choose_port()
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no",
               "--dir", directory]
    return Service("redis-server", port, command, os.path.join(directory, "redis.log"))


class ProcessorLimit:
    """Limits processes to a share of one processor each, by control groups. Needs root.

    So a proxy is the slowest part, as it would be with a machine of its own.
    """

    PERIOD_US = 100000

    def __init__(self, share):
        self.quota_us, self.groups = int(share * self.PERIOD_US), []

    def add(self, process_id):
        """Moves a process into a group of its own. Returns false if that is not possible."""
        first, second = "/sys/fs/cgroup/cpu", "/sys/fs/cgroup"
        parent = first if os.path.exists(first + "/cpu.cfs_quota_us") else second
        group = os.path.join(parent, "segment-scale-%d" % process_id)
        try:
            if parent == second:
                self.write(parent + "/cgroup.subtree_control", "+cpu")
            os.mkdir(group)
            self.groups.append(group)
            if parent == first:
                self.write(group + "/cpu.cfs_period_us", self.PERIOD_US)
                self.write(group + "/cpu.cfs_quota_us", self.quota_us)
            else:
                self.write(group + "/cpu.max", "%d %d" % (self.quota_us, self.PERIOD_US))
            self.write(group + "/cgroup.procs", process_id)
        except OSError:
            return False
        return True

    @staticmethod
    def write(path, value):
        """Writes one control file, which must exist."""
        with open(path, "r+") as file:
            file.write(str(value))

    def remove(self):
        """Removes the groups. Their processes must have ended."""
        for group in self.groups:
            try:
                os.rmdir(group)
            except OSError:
                pass
        self.groups = []
