"""Runs what `cargo bench` measures inside the proxy, and leaves what each prints in DIR/NAME.md. Argument: DIR.

SIGTERM ends what runs: cargo's children too, which would stay when only cargo was told. Exit code 1 if one has failed; the others
are run all the same.
"""

import os
import signal
import subprocess
import sys

import goals


def run(name, directory):
    with open(os.path.join(directory, name + ".md"), "w") as out, open(os.path.join(directory, name + ".err"), "w") as err:
        # A session is a group of processes, with cargo's id.
        process = subprocess.Popen(["cargo", "bench", "--locked", "--bench", name], stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                   start_new_session=True)
        try:
            return process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory, failed = sys.argv[1], False
    for name in goals.INSIDE:
        print("cargo bench --bench %s" % name, file=sys.stderr)
        code = run(name, directory)
        if code != 0:
            failed = True
            print("scripts/bench.sh: cargo bench --bench %s ended with %d; see %s" % (name, code, os.path.join(directory, name + ".err")),
                  file=sys.stderr)
    sys.exit(1 if failed else 0)


main()
