"""Starts and stops the servers that are measured.

Each listens on a free port of 127.0.0.1, writes below one directory only, and accepts connections
when its function returns.
"""

import collections
import json
import os
import re
import signal
import socket
import subprocess
import time

import cases
import cpu

HERE = os.path.dirname(os.path.abspath(__file__))
# Seconds to start and to stop: far longer than a busy machine takes.
START_TIMEOUT, STOP_TIMEOUT = 30, 5

# `path` precedes each key in a request.
Server = collections.namedtuple("Server", "name process port path")


def find_binary(name):
    """Returns the path of a program that scripts/bench.sh has built."""
    return os.path.abspath(os.path.join(os.environ["BUILD_DIRECTORY"], name))


def find_optional():
    """Returns the paths of the servers that may be missing: an earlier build, and Valkey.

    scripts/bench.sh has found them.
    """
    found = {"base": os.environ.get("BASE_BINARY"), "valkey": os.environ.get("VALKEY_SERVER")}
    return {name: os.path.abspath(path) for name, path in found.items() if path}


def choose_names(case):
    """Returns the names of the servers of a case, without those that are missing."""
    return [name for name in case.servers if name not in ("base", "valkey") or name in find_optional()]


class Failed(Exception):
    """Problem that makes the figures worthless."""


def choose_port():
    """Returns a free port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def is_listening(port):
    """Returns true if a port accepts connections."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


def start(name, command, log, port=None, path="/key/", port_pattern=None, cpus=cpu.SERVER, environment=None):
    """Starts a server and waits until it listens.

    `port_pattern` finds the port in the log of a server that chooses its own. A server that cannot
    bind its port exits, which raises Failed.
    """
    with open(log, "w") as file:
        process = subprocess.Popen(cpu.pin(cpus, command), stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                   env=environment, cwd=os.path.dirname(log), start_new_session=True)
    deadline = time.monotonic() + START_TIMEOUT
    try:
        while process.poll() is None and time.monotonic() < deadline:
            if port_pattern:
                with open(log, errors="replace") as file:
                    found = re.search(port_pattern, file.read())
                port = int(found.group(1)) if found else None
            if port and is_listening(port):
                return Server(name, process, port, path)
            time.sleep(0.05)
        raise Failed("%s did not start; see %s" % (name, log))
    except BaseException:
        stop([Server(name, process, port, path)])
        raise


def stop(servers):
    """Stops servers and waits for them."""
    for server in servers:
        server.process.terminate()
    for server in servers:
        try:
            server.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            # The whole group: a worker of nginx would outlive its master.
            os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()


def start_redis(directory, name="redis", cpus=cpu.SERVER, binary="redis-server"):
    """Starts a Redis or a Valkey without persistence."""
    port = choose_port()
    return start(name, [binary, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"],
                 os.path.join(directory, name + ".log"), port, cpus=cpus)


def start_proxy(directory, case, backing, name="proxy"):
    """Starts the proxy, or its earlier build, in front of a Redis. No entry expires during a case.

    The proxy gets none of the caller's environment, so that runs are comparable.
    """
    binary = find_binary("segment-redis-proxy") if name == "proxy" else find_optional()[name]
    return start(name, [binary], os.path.join(directory, name + ".log"),
                 port_pattern=r"listening on 127\.0\.0\.1:(\d+)", environment={
                     "CACHE_SIZE": str(case.capacity[0]), "CACHE_TTL": "3600", "REDIS_HOST": "127.0.0.1",
                     "REDIS_PORT": str(backing.port), "PROXY_HOST": "127.0.0.1", "PROXY_PORT": "0"})


def start_floor(directory, reply):
    """Starts the floor, which answers each read with `reply`."""
    path = os.path.join(directory, "reply")
    with open(path, "wb") as file:
        file.write(reply)
    return start("floor", [find_binary("examples/floor"), os.path.abspath(path)],
                 os.path.join(directory, "floor.log"), port_pattern=r"^(\d+)\n")


def start_nginx(directory, name, modules, http_directives, server_directives):
    """Starts an nginx with additions to nginx.conf."""
    port, folder = choose_port(), os.path.abspath(os.path.join(directory, name))
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(HERE, "nginx.conf")) as file:
        text = file.read()
    for placeholder, replacement in [("DIRECTORY", folder), ("MODULES", modules), ("HTTP_DIRECTIVES", http_directives),
                                     ("SERVER_DIRECTIVES", server_directives), ("PORT", str(port))]:
        text = text.replace("@%s@" % placeholder, replacement)
    path = os.path.join(folder, "nginx.conf")
    with open(path, "w") as file:
        file.write(text)
    # -e: nginx opens an error log before it reads the configuration.
    return start(name, ["nginx", "-p", folder, "-e", os.path.join(folder, "error.log"), "-c", path],
                 os.path.join(folder, "out.log"), port)


def start_nginx_return(directory, case):
    """Starts an nginx that has the response in its configuration."""
    key = cases.choose_key(case)
    body = '{"value":"%s","fromCache":true}' % cases.make_value(key, case.length)
    return start_nginx(directory, "nginx", "", "", "location = /key/%s { return 200 '%s'; }" % (key, body))


def start_nginx_lua(directory, case, backing):
    """Starts an nginx that caches in a lua_shared_dict in front of a Redis."""
    with open(os.path.join(HERE, "read_through.lua")) as file:
        code = file.read().replace("@REDIS@", str(backing.port))
    modules = "".join("load_module /usr/lib/nginx/modules/%s_module.so;\n" % module
                      for module in ("ndk_http", "ngx_http_lua"))
    return start_nginx(directory, "lua", modules, "lua_shared_dict cache %s;" % case.capacity[1],
                       "location /key/ { content_by_lua_block {\n%s} }" % code)


def start_webdis(directory, backing):
    """Starts webdis in front of a Redis, with Debian's configuration.

    Only the addresses differ, and that webdis stays in the foreground and logs errors alone.
    """
    port, path = choose_port(), os.path.join(directory, "webdis.json")
    with open("/etc/webdis/webdis.json") as file:
        configuration = json.load(file)
    configuration.update(redis_host="127.0.0.1", redis_port=backing.port, http_host="127.0.0.1", http_port=port,
                         daemonize=False, verbosity=0,
                         logfile=os.path.abspath(os.path.join(directory, "webdis-own.log")))
    configuration.pop("pidfile", None)
    with open(path, "w") as file:
        json.dump(configuration, file)
    return start("webdis", ["webdis", os.path.abspath(path)], os.path.join(directory, "webdis.log"), port, "/GET/")
