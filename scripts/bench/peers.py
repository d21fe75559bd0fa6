"""Starts the servers: each on a free port of 127.0.0.1, with nothing written but below one directory, and ready when it is
returned. `stop` ends them."""

import collections
import json
import os
import re
import signal
import socket
import subprocess
import time

import cases
import processors

HERE = os.path.dirname(os.path.abspath(__file__))
# Seconds to start and to stop: far more than a busy machine takes.
STARTING, STOPPING = 30, 5

# `path` is what stands before each key.
Server = collections.namedtuple("Server", "name process port path")


class Failed(Exception):
    """Something is not as it must be, so that figures would mean nothing."""


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


def start(name, command, log, port=None, path="/key/", told=None, where=processors.SERVER, environment=None):
    """`told` finds the port in the log of who says it; the others are given one. Who cannot have it ends, and that is seen."""
    with open(log, "w") as file:
        process = subprocess.Popen(processors.pinned(where, command), stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                   env=environment, cwd=os.path.dirname(log), start_new_session=True)
    ends = time.monotonic() + STARTING
    try:
        while process.poll() is None and time.monotonic() < ends:
            if told:
                with open(log, errors="replace") as file:
                    said = re.search(told, file.read())
                port = int(said.group(1)) if said else None
            if port and listens(port):
                return Server(name, process, port, path)
            time.sleep(0.05)
        raise Failed("%s does not start; see %s" % (name, log))
    except BaseException:
        stop([Server(name, process, port, path)])
        raise


def stop(servers):
    for server in servers:
        server.process.terminate()
    for server in servers:
        try:
            server.process.wait(STOPPING)
        except subprocess.TimeoutExpired:
            # All of it: nginx' worker would stay without its master.
            os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()


def redis(directory, name="redis", where=processors.SERVER):
    port = free_port()
    return start(name, ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"],
                 os.path.join(directory, name + ".log"), port, where=where)


def proxy(directory, case, backing):
    """With nothing of the caller's environment, so that every run is of the same proxy. Nothing expires meanwhile."""
    return start("proxy", [os.path.abspath("target/release/segment-redis-proxy")], os.path.join(directory, "proxy.log"),
                 told=r"listening on 127\.0\.0\.1:(\d+)", environment={
                     "CACHE_SIZE": str(case.room[0]), "CACHE_TTL": "3600", "REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(backing.port),
                     "PROXY_HOST": "127.0.0.1", "PROXY_PORT": "0"})


def floor(directory, answer):
    """`answer` is what it gives to each read."""
    path = os.path.join(directory, "answer")
    with open(path, "wb") as file:
        file.write(answer)
    return start("floor", [os.path.abspath("target/release/examples/floor"), os.path.abspath(path)],
                 os.path.join(directory, "floor.log"), told=r"^(\d+)\n")


def nginx(directory, name, modules, outside, inside):
    port, folder = free_port(), os.path.abspath(os.path.join(directory, name))
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(HERE, "nginx.conf")) as file:
        text = file.read()
    for what, by in [("DIRECTORY", folder), ("MODULES", modules), ("OUTSIDE", outside), ("INSIDE", inside), ("PORT", str(port))]:
        text = text.replace("@%s@" % what, by)
    path = os.path.join(folder, "nginx.conf")
    with open(path, "w") as file:
        file.write(text)
    # -e: it opens a log before it has read where that is to be.
    return start(name, ["nginx", "-p", folder, "-e", os.path.join(folder, "error.log"), "-c", path], os.path.join(folder, "out.log"), port)


def nginx_return(directory, case):
    name = cases.key(case)
    body = '{"value":"%s","fromCache":true}' % cases.value(name, case.length)
    return nginx(directory, "nginx", "", "", "location = /key/%s { return 200 '%s'; }" % (name, body))


def nginx_lua(directory, case, backing):
    with open(os.path.join(HERE, "read_through.lua")) as file:
        code = file.read().replace("@REDIS@", str(backing.port))
    modules = "".join("load_module /usr/lib/nginx/modules/%s_module.so;\n" % module for module in ("ndk_http", "ngx_http_lua"))
    return nginx(directory, "lua", modules, "lua_shared_dict cache %s;" % case.room[1],
                 "location /key/ { content_by_lua_block {\n%s} }" % code)


def webdis(directory, backing):
    """As Debian sets it, but for where it listens, what it asks, and that it stays in front and says only what is wrong."""
    port, path = free_port(), os.path.join(directory, "webdis.json")
    with open("/etc/webdis/webdis.json") as file:
        configuration = json.load(file)
    configuration.update(redis_host="127.0.0.1", redis_port=backing.port, http_host="127.0.0.1", http_port=port, daemonize=False,
                         verbosity=0, logfile=os.path.abspath(os.path.join(directory, "webdis-own.log")))
    configuration.pop("pidfile", None)
    with open(path, "w") as file:
        json.dump(configuration, file)
    return start("webdis", ["webdis", os.path.abspath(path)], os.path.join(directory, "webdis.log"), port, "/GET/")
