#!/usr/bin/env python3
"""Runs fio-profiles/ and nbdcopy over NBD against ours, qemu-nbd and nbdkit, interleaved in one run, and prints one table.

Every server has its own files in one directory of one file system, opened with O_DIRECT (but for nbdkit, whose file
plugin has only the page cache, and whose memory plugin has no file), and listens on a unix socket. Two store nothing: ours
with its export rok:null, and nbdkit's null plugin. The file itself is written by fio without a server. Each round runs every
profile against every server before the next round begins, in an order that rotates,
so that a slow minute of the machine hits all of them. While one is measured the others are stopped (SIGSTOP), so
that nobody's background work is paid by somebody else. A ratio compares with qemu-nbd raw in the same round; the
figures are medians over the rounds, and the second raw server shows what difference is only noise. A second table has the
targets of the project, each a ratio of two servers in the same round.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROFILES_DIRECTORY = ROOT / "fio-profiles"
MIB = 1024 * 1024

# Name of the profile, and what of it is compared: operations a second for small requests, bytes for large ones.
TIMED_PROFILES = {
    "random-read-qd1": "IOPS",
    "random-read-qd32": "IOPS",
    "random-write-qd1": "IOPS",
    "random-write-qd32": "IOPS",
    "mixed-16k": "IOPS",
    "sequential-read": "MiB/s",
    "sequential-write": "MiB/s",
}
# nbdcopy of a whole volume: out of it, and into it.
COPIES = {"nbdcopy-out": "MiB/s", "nbdcopy-in": "MiB/s"}
# What writes data before anything is measured, and reads it back.
PREPARATIONS = ("verify", "prefill")
UNITS = TIMED_PROFILES | COPIES

# A log-structured store needs free space to write into. The table says so beside the figures.
POOL_SIZE_FACTOR = 4
START_TIMEOUT_SECONDS = 120
STOP_TIMEOUT_SECONDS = 30
# Beyond the profile's own run time: connecting, and writing the whole volume for prefill and verify.
FIO_SLACK_SECONDS = 180
VOLUME_NAME = "vol1"
NULL_NAME = "rok:null"
NULL_POOL_MIB = 512
BASELINE = "raw"
# Profile, server, the servers of which the slower one of the round is the measure, and the least ratio to it.
TARGETS = (
    ("random-read-qd32", "ours", ("raw",), 1.2),
    ("random-write-qd32", "ours", ("raw",), 1.2),
    ("random-read-qd1", "ours", ("raw",), 1.0),
    ("random-write-qd1", "ours", ("raw",), 1.0),
    ("sequential-read", "ours", ("raw",), 0.95),
    ("sequential-write", "ours", ("raw",), 0.95),
    ("random-read-qd32", "ours", ("qcow2-luks",), 2),
    ("random-write-qd32", "ours", ("qcow2-luks",), 3),
    ("random-write-qd32", "ours", ("file", "ours-null"), 0.9),
    ("random-read-qd1", "ours-null", ("nbdkit-null",), 1),
    ("random-read-qd32", "ours-null", ("nbdkit-null",), 1),
    ("random-write-qd32", "ours-null", ("nbdkit-null",), 1),
    ("sequential-read", "ours-null", ("nbdkit-null",), 1),
    ("sequential-write", "ours-null", ("nbdkit-null",), 1),
)


class Failure(Exception):
    """Something outside this program failed; the message is for the user."""


class Server:
    """An NBD server that was started here, and one of its exports."""

    # Whether what was written can be read back.
    has_data = True
    # Whether it is reached over NBD.
    is_remote = True

    def __init__(self, name, title, socket_path, log_path):
        self.name = name
        self.export = VOLUME_NAME
        self.title = title
        self.socket_path = socket_path
        self.log_path = log_path
        self.process = None

    @property
    def uri(self):
        return f"nbd+unix:///{self.export}?socket={self.socket_path}"

    def profile(self, name, scratch):
        """The file with a profile of fio."""
        return PROFILES_DIRECTORY / f"{name}.fio"

    def launch(self, command, question=None, environment=None):
        """Starts the server; returns when the command `question` succeeds, and fails if the server ends before."""
        question = question or ["nbdinfo", "--size", self.uri]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while subprocess.run(question, capture_output=True, env=environment,
                             timeout=START_TIMEOUT_SECONDS).returncode != 0:
            if self.process.poll() is not None:
                raise Failure(f"{self.title} ended with {self.process.returncode}: {self.log_tail()}")
            if time.monotonic() > deadline:
                raise Failure(f"{self.title} did not answer within {START_TIMEOUT_SECONDS} s: {self.log_tail()}")
            time.sleep(0.05)

    def log_tail(self):
        return self.log_path.read_text(errors="replace").strip()[-1000:] or "(no output)"

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def stop(self):
        if self.process is None or self.process.poll() is not None:
            return
        self.resume()
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class NullServer(Server):
    """A server that stores nothing."""

    has_data = False


class LocalFile(Server):
    """No server: fio writes a file itself, past the page cache."""

    is_remote = False
    path = None

    def profile(self, name, scratch):
        local = f"ioengine=io_uring\ndirect=1\nfilename={self.path}"
        text = super().profile(name, scratch).read_text()
        nbd = "ioengine=nbd\nuri=${ROK_URI}"
        if nbd not in text:
            raise Failure(f"the profile {name} does not begin with its engine and URI")
        own = scratch / f"{name}.fio"
        own.write_text(text.replace(nbd, local))
        return own

    def pause(self):
        """There is nothing to stop."""

    resume = pause


def run(command, environment=None):
    """Runs a command that must succeed within the start timeout."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment,
        timeout=START_TIMEOUT_SECONDS,
    )
    if done.returncode != 0:
        raise Failure(f"{' '.join(map(str, command))}\nended with {done.returncode}: {done.stderr.strip()[-1000:]}")
    return done.stdout


def start_ours(server, options, data, *further):
    """An encrypted pool in a directory, and one thin volume; `further` are arguments of `serve`."""
    environment = serve_ours(server, options, data, options.volume_mib * POOL_SIZE_FACTOR, *further)
    run([options.ours, "create", VOLUME_NAME, "--size", f"{options.volume_mib}MiB"], environment)


def start_ours_null(server, options, data):
    """The same, with the export that stores nothing instead of a volume."""
    server.export = NULL_NAME
    serve_ours(server, options, data, NULL_POOL_MIB, "--nbd-null", f"{options.volume_mib}MiB")


def serve_ours(server, options, data, pool_mib, *further):
    """Serves a new encrypted pool; returns the environment in which commands reach the daemon."""
    pool, key, api = data / "pool", data / "key", Path(f"{server.socket_path}.api")
    run([options.ours, "pool", "create", pool, "--size", f"{pool_mib}MiB", "--key-file", key, "--generate-key"])
    environment = dict(os.environ, ROK_SOCKET=str(api))
    server.launch(
        [options.ours, "serve", "--pool", pool, "--key-file", key, "--nbd-unix", server.socket_path, "--socket", api,
         *further],
        question=[options.ours, "status"], environment=environment,
    )
    return environment


def start_file(server, options, data):
    server.path = data / "image.raw"
    run(["qemu-img", "create", "-q", "-f", "raw", server.path, f"{options.volume_mib}M"])


def start_raw(server, options, data):
    image = data / "image.raw"
    run(["qemu-img", "create", "-q", "-f", "raw", image, f"{options.volume_mib}M"])
    server.launch(qemu_nbd(server, options) + ["--format=raw", image])


def start_qcow2(server, options, data):
    image = data / "image.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", image, f"{options.volume_mib}M"])
    server.launch(qemu_nbd(server, options) + ["--format=qcow2", image])


def start_qcow2_luks(server, options, data):
    image, secret = data / "image.qcow2", data / "secret"
    secret.write_text("a passphrase of the comparison only")
    secret_object = f"secret,id=key,file={secret}"
    # The derivation of the key is slow on purpose and no part of what is measured: 10 ms of it are enough.
    luks = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "--object", secret_object, "-o", luks, image,
         f"{options.volume_mib}M"])
    source = f"driver=qcow2,encrypt.format=luks,encrypt.key-secret=key,file.driver=file,file.filename={image}"
    server.launch(qemu_nbd(server, options) + ["--object", secret_object, "--image-opts", source])


def nbdkit(server):
    return ["nbdkit", "--foreground", "--exit-with-parent", f"--unix={server.socket_path}", f"--threads={os.cpu_count()}"]


def start_nbdkit_file(server, options, data):
    image = data / "image.raw"
    run(["qemu-img", "create", "-q", "-f", "raw", image, f"{options.volume_mib}M"])
    server.launch(nbdkit(server) + ["file", image])


def start_nbdkit_memory(server, options, data):
    server.launch(nbdkit(server) + ["memory", f"{options.volume_mib}M"])


def start_nbdkit_null(server, options, data):
    server.launch(nbdkit(server) + ["null", f"{options.volume_mib}M"])


def qemu_nbd(server, options):
    return ["qemu-nbd", "--persistent", "--shared=8", f"--socket={server.socket_path}",
            f"--export-name={VOLUME_NAME}", "--cache=none", f"--aio={options.aio}", "--discard=unmap"]


# In the order of the table's columns. The baseline comes first.
SERVERS = {
    "raw": ("qemu-nbd raw", start_raw, Server),
    "raw-again": ("qemu-nbd raw, again", start_raw, Server),
    "ours": ("rok-blk, encrypted", start_ours, Server),
    "qcow2": ("qemu-nbd qcow2", start_qcow2, Server),
    "qcow2-luks": ("qemu-nbd qcow2+LUKS", start_qcow2_luks, Server),
    "nbdkit-file": ("nbdkit file, page cache", start_nbdkit_file, Server),
    "nbdkit-memory": ("nbdkit memory", start_nbdkit_memory, Server),
    "file": ("the file itself", start_file, LocalFile),
    "ours-null": ("rok-blk null", start_ours_null, NullServer),
    "nbdkit-null": ("nbdkit null", start_nbdkit_null, NullServer),
}


def parse_arguments():
    def positive(text):
        value = int(text)
        if value < 1:
            raise argparse.ArgumentTypeError(f"{value} is not positive")
        return value

    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    parser = argparse.ArgumentParser(description="Compares rok-blk with qemu-nbd and nbdkit over NBD, with fio and nbdcopy.")
    parser.add_argument("--rounds", type=positive, default=os.environ.get("ROUNDS") or "3", help="[ROUNDS=3]")
    parser.add_argument("--runtime", type=positive, default=os.environ.get("RUNTIME") or "3",
                        help="seconds of each run [RUNTIME=3]")
    parser.add_argument("--volume-mib", type=positive, default=os.environ.get("VOLUME_MIB") or "512",
                        help="size of each volume [VOLUME_MIB=512]")
    parser.add_argument("--directory", type=Path, default=target,
                        help="a temporary directory is made in it, on the file system to measure [the target directory]")
    parser.add_argument("--servers", default=",".join(SERVERS), help="which of: " + ", ".join(SERVERS))
    parser.add_argument("--profiles", default=",".join(UNITS), help="which of: " + ", ".join(UNITS))
    parser.add_argument("--ours", type=Path, default=target / "debug" / "rok-blk", help="the rok-blk binary")
    parser.add_argument("--json", action="store_true", help="print every figure of every round instead of the table")
    options = parser.parse_args()
    options.servers = chosen(parser, "server", options.servers, SERVERS)
    options.profiles = chosen(parser, "profile", options.profiles, UNITS)
    if BASELINE not in options.servers:
        parser.error(f"the servers must include {BASELINE}, which the ratios refer to")
    if "ours" in options.servers and not os.access(options.ours, os.X_OK):
        parser.error(f"there is no program {options.ours}: run `make compare`, or name it with --ours")
    return options


def chosen(parser, what, text, known):
    """The named members of `known`, in its order."""
    names = text.split(",")
    for name in names:
        if name not in known:
            parser.error(f"there is no {what} '{name}'; there are: {', '.join(known)}")
    return [name for name in known if name in names]


def supported_aio():
    """io_uring where the kernel and qemu have it, as ours uses it; Linux AIO else (in many containers)."""
    with tempfile.NamedTemporaryFile() as image:
        image.truncate(MIB)
        # qemu-io opens the image and leaves at once; it fails if it cannot set up io_uring.
        probe = ["qemu-io", "-f", "raw", "-n", "-i", "io_uring", "-c", "quit", image.name]
        return "io_uring" if subprocess.run(probe, capture_output=True, timeout=30).returncode == 0 else "native"


def check_free_space(options):
    copies = len(options.servers) + 1 + (POOL_SIZE_FACTOR if "ours" in options.servers else 0)
    needed = options.volume_mib * MIB * copies
    free = shutil.disk_usage(options.directory).free
    if free < needed:
        raise Failure(f"{options.directory} has {free // MIB} MiB free and this needs {needed // MIB}: "
                      "choose a smaller --volume-mib or another --directory")


def run_fio(server, profile, options, seed, scratch):
    """Runs a profile against the server; returns fio's own result of its one job."""
    output = scratch / "fio.json"
    environment = dict(os.environ, ROK_URI=server.uri, RUNTIME=str(options.runtime))
    command = ["fio", "--output-format=json", f"--output={output}", f"--randseed={seed}",
               server.profile(profile, scratch)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment,
                          cwd=scratch, timeout=options.runtime + FIO_SLACK_SECONDS)
    if done.returncode != 0:
        raise Failure(f"fio {profile} against {server.title} ended with {done.returncode}: "
                      f"{done.stderr.strip()[-1000:]}\n{server.log_tail()}")
    # Above the document fio may print remarks of its engine.
    text = output.read_text()
    job = json.loads(text[text.index("{"):])["jobs"][0]
    if job["error"] != 0:
        raise Failure(f"fio {profile} against {server.title} reports error {job['error']}")
    return job


def measure_copy(server, profile, options, scratch):
    """Copies the whole volume to nowhere, or a file of random bytes that is in the page cache into the volume, flushed."""
    image = scratch / "copy.raw"
    ends = [server.uri, "null:"] if profile == "nbdcopy-out" else [image, server.uri]
    started = time.monotonic()
    run(["nbdcopy", "--flush", "--"] + ends)
    return {"value": options.volume_mib / (time.monotonic() - started), "latency_us_p99": None}


def write_copy_image(options, scratch):
    with open(scratch / "copy.raw", "wb") as image:
        for _ in range(options.volume_mib):
            image.write(os.urandom(MIB))


def measure(server, profile, options, seed, scratch):
    if profile in COPIES:
        return measure_copy(server, profile, options, scratch)
    job = run_fio(server, profile, options, seed, scratch)
    directions = [job[name] for name in ("read", "write") if job[name]["total_ios"] > 0]
    if not directions:
        raise Failure(f"fio {profile} against {server.title} did no I/O")
    iops = sum(direction["iops"] for direction in directions)
    bytes_per_second = sum(direction["bw_bytes"] for direction in directions)
    return {
        "value": iops if UNITS[profile] == "IOPS" else bytes_per_second / MIB,
        "latency_us_p99": max(direction["clat_ns"]["percentile"]["99.000000"] for direction in directions) / 1000,
    }


def measure_all(servers, options, scratch):
    """Figures by profile, server and round."""
    figures = {profile: {server.name: [] for server in servers} for profile in options.profiles}
    write_copy_image(options, scratch)
    for server in servers:
        server.resume()
        for profile in PREPARATIONS if server.has_data else ():
            progress(f"{profile}: {server.title}")
            run_fio(server, profile, options, 1, scratch)
        server.pause()
    for round_index in range(options.rounds):
        for profile_index, profile in enumerate(options.profiles):
            first = (round_index + profile_index) % len(servers)
            progress(f"round {round_index + 1} of {options.rounds}: {profile}")
            for server in servers[first:] + servers[:first]:
                if profile in COPIES and not server.is_remote:
                    continue
                server.resume()
                figures[profile][server.name].append(measure(server, profile, options, round_index + 1, scratch))
                server.pause()
    return figures


def progress(text):
    print(text, file=sys.stderr, flush=True)


def summarize(figures, options):
    """Medians of figure and ratio, and the spread (largest less smallest, over the median)."""
    summary = {}
    for profile, by_server in figures.items():
        baseline = [figure["value"] for figure in by_server[BASELINE]]
        summary[profile] = {"unit": UNITS[profile], "servers": {}}
        for name, rounds in by_server.items():
            if not rounds:
                continue
            values = [figure["value"] for figure in rounds]
            median = statistics.median(values)
            summary[profile]["servers"][name] = {
                "median": median,
                "ratio": statistics.median(value / base for value, base in zip(values, baseline)),
                "spread": (max(values) - min(values)) / median,
                # A copy has no latencies.
                "latency_us_p99": None if profile in COPIES else statistics.median(
                    figure["latency_us_p99"] for figure in rounds),
                "rounds": rounds,
            }
    return summary


def setting(options):
    file_system = run(["findmnt", "--noheadings", "--output=FSTYPE", "--target", options.directory]).strip()
    return {
        "rounds": options.rounds,
        "runtime_seconds": options.runtime,
        "volume_mib": options.volume_mib,
        "pool_mib": options.volume_mib * POOL_SIZE_FACTOR,
        "processors": os.cpu_count(),
        "kernel": os.uname().release,
        "file_system": file_system,
        "qemu": run(["qemu-nbd", "--version"]).split("\n")[0],
        "qemu_aio": options.aio,
        "fio": run(["fio", "--version"]).strip(),
    }


def print_table(summary, where, options):
    columns = " | ".join(SERVERS[name][0] for name in options.servers)
    print(f"| profile | unit | {columns} |")
    print("|---|---|" + "---:|" * len(options.servers))
    for profile, row in summary.items():
        cells = []
        for name in options.servers:
            cell = row["servers"].get(name)
            cells.append("–" if cell is None else f"{cell['median']:,.0f} ({cell['ratio']:.2f}×, spread {cell['spread']:.0%})")
        print(f"| {profile} | {row['unit']} | {' | '.join(cells)} |")
    print()
    print(f"Median of {where['rounds']} rounds of {where['runtime_seconds']} s; ratio to qemu-nbd raw of the same round; "
          "spread is largest less smallest over the median. verify was clean on every server that stores something.")
    pool = f"; the pool has {where['pool_mib']} MiB" if "ours" in options.servers else ""
    print(f"Volumes of {where['volume_mib']} MiB{pool}; {where['processors']} processors, kernel {where['kernel']}, "
          f"{where['file_system']}; {where['qemu']}, cache=none, aio={where['qemu_aio']}; {where['fio']}.")


def verdict(values, least):
    """The cells of a table for a ratio in each round, and the least that it should be."""
    median = statistics.median(values)
    met = "met" if median >= least else "missed"
    return f"{median:.3f} ({min(values):.3f} to {max(values):.3f}) | {least:.3f} | {met} |"


def print_targets(summary):
    print("\n| profile | ratio | median, and least to most | target | |")
    print("|---|---|---:|---:|---|")
    for profile, name, others, least in TARGETS:
        by_server = summary.get(profile, {}).get("servers", {})
        if not {name, *others} <= by_server.keys():
            continue
        rounds = {server: [figure["value"] for figure in by_server[server]["rounds"]] for server in (name, *others)}
        measures = map(min, zip(*(rounds[other] for other in others)))
        ratios = [value / measure for value, measure in zip(rounds[name], measures)]
        what = " or ".join(SERVERS[other][0] for other in others)
        print(f"| {profile} | {SERVERS[name][0]} to {what} | {verdict(ratios, least)}")


def compare(options):
    options.directory.mkdir(parents=True, exist_ok=True)
    check_free_space(options)
    options.aio = supported_aio()
    servers = []
    # The sockets have a directory of their own, since the path of a unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="rok-compare-", dir=options.directory) as data_name, \
            tempfile.TemporaryDirectory(prefix="rok-") as socket_name:
        data, sockets = Path(data_name), Path(socket_name)
        try:
            for name in options.servers:
                title, start, kind = SERVERS[name]
                server = kind(name, title, sockets / name, data / f"{name}.log")
                servers.append(server)
                (data / name).mkdir()
                progress(f"starting: {title}")
                start(server, options, data / name)
                server.pause()
            figures = measure_all(servers, options, data)
        finally:
            for server in servers:
                server.stop()
    summary, where = summarize(figures, options), setting(options)
    if options.json:
        print(json.dumps({"setting": where, "profiles": summary}, indent=2))
    else:
        print_table(summary, where, options)
        print_targets(summary)


def main():
    # Ended from outside, it still stops its servers and removes its files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = parse_arguments()
    try:
        compare(options)
    except (Failure, OSError, subprocess.TimeoutExpired) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
