#!/usr/bin/env python3
"""What hostile and greedy clients cost an honest one, over NBD with fio, and prints one table.

Serves one encrypted volume, and the export that stores nothing, which tells what the server costs where the disk does not
decide. Each round measures the honest client alone, beside eight hostile connections, alone again,
and beside eight clients that flood the server. The hostile ones break no rule that would end them at once: two say
one byte a second, two say nothing, two ask for more than the server reads, and two connect and leave, each at most 50 times
a second. The ratio is to the mean of the two measurements alone in the same round; figures are medians over the rounds.
"""

import argparse
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from compare import NULL_NAME, Failure, ROOT, Server, VOLUME_NAME, run_fio, start_ours, verdict

# Profile and export of the honest client. The others use the volume.
HONEST = (("random-read-qd32", VOLUME_NAME), ("random-write-qd32", VOLUME_NAME), ("random-write-qd32", NULL_NAME))
FLOODING_COUNT = 8
RECONNECTIONS_PER_SECOND = 50
# What hostile connections may cost, and the part of its fair share (a ninth) that flooding ones must leave.
HOSTILE_RATIO_MIN, FLOODED_SHARE_MIN = 0.9, 0.5

NBD_REQUEST_MAGIC, NBD_OPT_MAGIC, NBD_OPT_GO = 0x25609513, b"IHAVEOPT", 7
NBD_CMD_READ = 0


def receive(connection, size):
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the server closed the connection")
        data += part
    return data


def connect(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect(str(path))
    return connection


def connect_to_volume(path):
    """A connection in its transmission phase."""
    connection = connect(path)
    receive(connection, 18)
    name = VOLUME_NAME.encode()
    data = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
    connection.sendall(struct.pack(">I", 3) + NBD_OPT_MAGIC + struct.pack(">II", NBD_OPT_GO, len(data)) + data)
    while True:
        _, _, kind, size = struct.unpack(">QIII", receive(connection, 20))
        receive(connection, size)
        if kind == 1:
            return connection
        if kind & 1 << 31:
            raise Failure(f"the server refused {VOLUME_NAME} with {kind:#x}")


def request(offset, size):
    return struct.pack(">IHHQQI", NBD_REQUEST_MAGIC, 0, NBD_CMD_READ, 1, offset, size)


def say_a_byte_a_second(path, ended):
    while not ended.is_set():
        with connect_to_volume(path) as connection:
            for byte in request(0, 4096):
                if ended.wait(1):
                    return
                connection.sendall(bytes([byte]))
            receive(connection, 16 + 4096)


def say_nothing(path, ended):
    with connect_to_volume(path):
        ended.wait()


def ask_too_much(path, ended):
    """Reads longer than the server answers, one after the other as fast as they are refused, but for a pause."""
    with connect_to_volume(path) as connection:
        while not ended.wait(1 / RECONNECTIONS_PER_SECOND):
            connection.sendall(request(0, 0xFFFFF000))
            receive(connection, 16)


def come_and_go(path, ended):
    while not ended.wait(1 / RECONNECTIONS_PER_SECOND):
        connect_to_volume(path).close()


BEHAVIOURS = (say_a_byte_a_second, say_nothing, ask_too_much, come_and_go)


class Hostile:
    """Eight hostile connections for as long as the block runs; fails if one of them was not hostile to the end."""

    def __init__(self, path):
        self.path = path
        self.ended = threading.Event()
        self.failures = []
        self.threads = [threading.Thread(target=self.behave, args=(behaviour,)) for behaviour in BEHAVIOURS * 2]

    def behave(self, behaviour):
        try:
            behaviour(self.path, self.ended)
        except (OSError, Failure) as error:
            if not self.ended.is_set():
                self.failures.append(f"{behaviour.__name__}: {error}")

    def __enter__(self):
        for thread in self.threads:
            thread.start()

    def __exit__(self, *_):
        self.ended.set()
        for thread in self.threads:
            thread.join()
        if self.failures:
            raise Failure("; ".join(self.failures))


class Flood:
    """Eight fio clients that keep 64 requests under way each, for as long as the block runs."""

    def __init__(self, server, scratch):
        self.command = ["fio", "--name=flood", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randrw", "--bs=4k",
                        "--iodepth=64", "--time_based", "--runtime=600", "--output=/dev/null"]
        self.scratch = scratch
        self.processes = []

    def __enter__(self):
        for _ in range(FLOODING_COUNT):
            self.processes.append(subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                                   stderr=subprocess.DEVNULL, cwd=self.scratch))

    def __exit__(self, *_):
        ended = [process.poll() for process in self.processes]
        for process in self.processes:
            process.kill()
            process.wait()
        if any(code is not None for code in ended):
            raise Failure(f"a flooding client ended early: {ended}")


def iops(server, honest, options, scratch):
    profile, server.export = honest
    job = run_fio(server, profile, options, 1, scratch)
    server.export = VOLUME_NAME
    return job["read"]["iops"] + job["write"]["iops"]


def measure(server, options, scratch):
    """Ratios to the honest client alone, beside hostile connections, and beside flooding ones."""
    ratios = {honest: ([], []) for honest in HONEST}
    run_fio(server, "prefill", options, 1, scratch)
    for number in range(options.rounds):
        for honest, (hostile, flooded) in ratios.items():
            print(f"round {number + 1} of {options.rounds}: {' to '.join(honest)}", file=sys.stderr, flush=True)
            alone = [iops(server, honest, options, scratch)]
            with Hostile(server.socket_path):
                beside_hostile = iops(server, honest, options, scratch)
            alone.append(iops(server, honest, options, scratch))
            with Flood(server, scratch):
                beside_flood = iops(server, honest, options, scratch)
            hostile.append(beside_hostile / statistics.mean(alone))
            flooded.append(beside_flood / statistics.mean(alone))
    return ratios


def print_table(ratios, options):
    print("| honest client | beside | ratio to alone | target | |")
    print("|---|---|---:|---:|---|")
    fair_share = 1 / (FLOODING_COUNT + 1)
    for honest, (hostile, flooded) in ratios.items():
        for what, values, least in (("8 hostile connections", hostile, HOSTILE_RATIO_MIN),
                                    ("8 flooding clients", flooded, FLOODED_SHARE_MIN * fair_share)):
            print(f"| {' to '.join(honest)} | {what} | {verdict(values, least)}")
    print(f"\nMedian of {options.rounds} rounds of {options.runtime} s, {os.cpu_count()} processors, which the clients use too.")


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    parser = argparse.ArgumentParser(description="Measures what hostile and flooding NBD clients cost an honest one.")
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("ROUNDS") or 3), help="[ROUNDS=3]")
    parser.add_argument("--runtime", type=int, default=int(os.environ.get("RUNTIME") or 3), help="seconds [RUNTIME=3]")
    parser.add_argument("--volume-mib", type=int, default=256, help="size of the volume [256]")
    parser.add_argument("--ours", type=Path, default=target / "debug" / "rok-blk", help="the rok-blk binary")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="rok-hostile-", dir=target) as data_name, \
                tempfile.TemporaryDirectory(prefix="rok-") as socket_name:
            data = Path(data_name)
            server = Server("ours", "rok-blk", Path(socket_name) / "nbd", data / "log")
            try:
                start_ours(server, options, data, "--nbd-null", f"{options.volume_mib}MiB")
                print_table(measure(server, options, data), options)
            finally:
                server.stop()
    except (Failure, OSError, subprocess.TimeoutExpired) as error:
        print(f"hostile: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
