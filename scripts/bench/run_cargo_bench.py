"""Runs the benchmarks of `cargo bench` and writes the output of each to DIR/NAME.md.

    run_cargo_bench.py DIR

Exits with 1 if one of them failed; the others run all the same. SIGTERM ends the running benchmark.
"""

import os
import signal
import subprocess
import sys

import goals


def run_benchmark(name, directory):
    """Runs one benchmark and returns its exit code."""
    path, command = os.path.join(directory, name), ["cargo", "bench", "--locked", "--bench", name]
    with open(path + ".md", "w") as out, open(path + ".err", "w") as err:
        # The session is a process group with cargo's id. Signals to it also reach cargo's children.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
        try:
            return process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise


def main():
    """Runs all benchmarks that the report contains."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory, failed = sys.argv[1], False
    for name in goals.CARGO_BENCHES:
        print("cargo bench --bench %s" % name, file=sys.stderr)
        code = run_benchmark(name, directory)
        if code != 0:
            failed = True
            print("scripts/bench.sh: cargo bench --bench %s exited with %d; see %s" % (
                name, code, os.path.join(directory, name + ".err")), file=sys.stderr)
    sys.exit(1 if failed else 0)


main()
