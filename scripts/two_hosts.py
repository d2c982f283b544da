"""Trains on two hosts, cuts one of them off, and proves that nothing was lost.

    sudo python scripts/two_hosts.py [--write benchmarks/results/two_hosts.md]

The hosts are two network namespaces of this machine, with a cable between them (a veth pair) and no other network;
both see the same folders. Each runs torchrun, one process, gloo; the two meet through torchrun's c10d rendezvous on the
first host. The same small run is made twice. One is left in peace. In the other the second host's link goes down for a
few seconds; then until its connections are given up and its torchrun fails; then the host loses power as well. Whoever
starts torchrun on a host (here this script, elsewhere systemd, a pod, Slurm) starts it again when it has ended. Both
runs must end with the same weights, to float rounding, and the same loss at every step. Exit code 0 only if all this
holds.

Linux gives a connection up after 15 tries, about a quarter of an hour; here, within the namespaces, after 6, about half
a minute (net.ipv4.tcp_retries2).

Needs root and `ip` (iproute2). Namespaces, links and processes are removed at the end, also after an error.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import datetime
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

STEPS = 240
SHORT, LONG, LOST = 50, 110, 170  # the steps after which the link goes down; the last time with the power
MOMENT = 5.0  # seconds
PATIENCE = 900.0  # seconds for a run
PORT = 29400
TOLERANCE = 1e-5
RUN = [
    *("shakespeare-char-cpu", "--device", "cpu", "--threads", "1", "--precision", "fp32", "--micro-batch", "2"),
    *("--model.n-layer", "2", "--model.n-embd", "32", "--model.n-head", "2", "--data.sequence-length", "32"),
    *("--train.tokens-per-step", "224", "--train.steps", str(STEPS), "--optim.warmup-steps", "5"),  # 7 sequences
    *("--log.every", "1", "--eval.every", "0", "--sample.every", "0", "--checkpoint.every", "20"),
]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Host:
    """A network namespace with one interface, eth0, and what runs in it."""

    def __init__(self, number: int) -> None:
        self.name, self.namespace = f"host{number}", f"overnight-{os.getpid()}-{number}"
        self.address, self.started = f"10.77.0.{number}", 0
        self.torchrun: subprocess.Popen[bytes] | None = None
        ip("netns", "add", self.namespace)
        atexit.register(self.remove)

    def plug(self, device: str) -> None:
        ip("link", "set", device, "netns", self.namespace)
        self.ip("link", "set", device, "name", "eth0")
        self.ip("address", "add", f"{self.address}/24", "dev", "eth0")
        self.link("up")
        self.ip("link", "set", "lo", "up")
        retries = ["sysctl", "--quiet", "--write", "net.ipv4.tcp_retries2=6"]
        subprocess.run(["ip", "netns", "exec", self.namespace, *retries], check=True)

    def ip(self, *words: str) -> None:
        ip("-n", self.namespace, *words)

    def link(self, state: str) -> None:
        self.ip("link", "set", "eth0", state)

    def start(self, head: Host, out: Path, arguments: list[str]) -> None:
        """torchrun, in this namespace and under this host's name; the rendezvous is on `head`."""
        conf = f"is_host={int(self is head)},read_timeout=10,join_timeout=300"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{head.address}:{PORT}", "--rdzv-id", out.name]
        torchrun += ["--rdzv-conf", conf, "--local-addr", self.address, "--max-restarts", "3"]
        inside = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"']
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
        self.started += 1
        with out.with_name(f"{out.name}-{self.name}.log").open("ab") as log:
            command = [*inside, self.name, *torchrun, "-m", "overnight", "train", *arguments, "--out", str(out)]
            self.torchrun = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def processes(self) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False)
        return [int(word) for word in found.stdout.split()]

    def lose_power(self) -> None:
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def failed(self) -> bool:
        return self.torchrun is not None and self.torchrun.poll() not in (None, 0)

    def finished(self) -> bool:
        return self.torchrun is not None and self.torchrun.poll() == 0

    def remove(self) -> None:
        self.lose_power()
        subprocess.run(["ip", "netns", "del", self.namespace], check=False)


def connected() -> tuple[Host, Host]:
    hosts = Host(1), Host(2)
    one, two = (f"ovn{os.getpid()}{end}"[-15:] for end in "ab")
    ip("link", "add", one, "type", "veth", "peer", "name", two)
    for host, device in zip(hosts, (one, two), strict=True):
        host.plug(device)
    return hosts


def attempts_of(out: Path) -> int:
    from overnight.runs import read_lines

    return len(read_lines(out / "attempts.jsonl"))


def steps_of(out: Path) -> int:
    from overnight.runs import read_lines

    lines = read_lines(out / "metrics.jsonl")
    return int(lines[-1]["step"]) if lines else 0


def in_peace() -> Iterator[None]:
    while True:
        yield


def cut_off(hosts: tuple[Host, Host], out: Path, say: Callable[[str], None]) -> Iterator[None]:
    """What happens to the second host; a generator that is asked to go on again and again."""
    victim = hosts[1]
    while steps_of(out) < SHORT:
        yield
    victim.link("down")
    time.sleep(1.0)  # what had arrived by then is computed
    reached = steps_of(out)
    time.sleep(MOMENT)
    if steps_of(out) != reached:
        raise SystemExit("the cut did not hit the run")
    victim.link("up")
    say(f"step {reached}: cut off for {1 + MOMENT:.0f} s; TCP bridges it, nothing is started again")
    for step, lost in ((LONG, False), (LOST, True)):
        while steps_of(out) < step:
            yield
        yield from _cut(victim, out, lost, say)
    while True:
        yield


def _cut(victim: Host, out: Path, lost: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Cuts a host off until its torchrun has ended; then it has its link again, and must train again."""
    starts, begun = victim.started, time.monotonic()
    victim.link("down")
    if lost:
        victim.lose_power()
    while victim.started == starts:
        yield
    reached, gone = steps_of(out), time.monotonic()
    if lost:
        time.sleep(MOMENT)
    victim.link("up")
    what = "its processes killed" if lost else "its torchrun gave up"
    say(f"step {reached}: cut off for {time.monotonic() - begun:.0f} s, {what}")
    attempts = attempts_of(out)
    while attempts_of(out) == attempts or steps_of(out) <= reached:
        yield
    say(f"  both train again {time.monotonic() - gone:.0f} s after its torchrun was started again")


def train(hosts: tuple[Host, Host], out: Path, data: Path, events: Iterator[None]) -> float:
    """One run on both hosts, with what the events do to it; returns its seconds."""
    arguments, begun = [*RUN, "--data", str(data)], time.monotonic()
    for host in hosts:
        host.started = 0
        host.start(hosts[0], out, arguments)
    while not all(host.finished() for host in hosts):
        if time.monotonic() - begun > PATIENCE:
            raise SystemExit(f"{out.name} has not ended after {PATIENCE:g} s")
        for host in hosts:
            if host.failed():
                host.start(hosts[0], out, arguments)
        next(events)
        time.sleep(0.05)
    return time.monotonic() - begun


def compare(peaceful: Path, disturbed: Path) -> tuple[float, float]:
    """The largest differences of a weight at the end, and of a loss at any step."""
    from safetensors.torch import load_file

    from overnight.checkpoint import folder_name
    from overnight.runs import read_lines

    weights = [
        load_file(run / "checkpoints" / folder_name(STEPS) / "model.safetensors") for run in (peaceful, disturbed)
    ]
    losses = [
        {line["step"]: line["loss"] for line in read_lines(run / "metrics.jsonl") if line["kind"] == "train"}
        for run in (peaceful, disturbed)
    ]
    assert weights[0].keys() == weights[1].keys() and weights[0]
    assert list(losses[0]) == list(losses[1]) == list(range(1, STEPS + 1)), "a step is missing or was logged twice"
    return (
        max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]),
        max(abs(losses[0][step] - losses[1][step]) for step in losses[0]),
    )


def prove(folder: Path, say: Callable[[str], None]) -> bool:
    import torch

    from overnight.machine.device import describe, versions
    from overnight.runs import read_lines

    found = versions()
    say(
        f"{describe(torch.device('cpu'))}, torch {found['torch']}, Linux {os.uname().release}, "
        f"Python {found['python']}, {datetime.date.today()}; `python scripts/two_hosts.py`\n"
    )
    data, peaceful, disturbed = folder / "data", folder / "peaceful", folder / "disturbed"
    prepare = ["prepare", "stdlib", "--out", str(data), "--tokenizer", "bytes", "--limit-tokens", "300000"]
    subprocess.run([sys.executable, "-m", "overnight", *prepare], check=True, stdout=subprocess.DEVNULL)
    hosts = connected()
    seconds = train(hosts, peaceful, data, in_peace())
    say(f"- in peace: {STEPS} steps in {seconds:.0f} s")
    seconds = train(hosts, disturbed, data, cut_off(hosts, disturbed, lambda text: say("- " + text.strip())))
    starts = " and ".join(str(host.started) for host in hosts)
    attempts = [line["world_size"] for line in read_lines(disturbed / "attempts.jsonl")]
    say(
        f"- disturbed: {STEPS} steps in {seconds:.0f} s; torchrun was started {starts} times, "
        f"training {len(attempts)} times"
    )
    weight, loss = compare(peaceful, disturbed)
    say(f"\nLargest difference of any weight at the end: {weight:.1e}; of the loss at any step: {loss:.1e}")
    return weight <= TOLERANCE and loss <= TOLERANCE and len(attempts) > 1 and set(attempts) == {2}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, help="a file for the findings")
    parser.add_argument("--keep", action="store_true", help="keep the runs and what the hosts said")
    given = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("ip"):
        raise SystemExit("this needs root, and `ip` (apt install iproute2)")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # the ends of things are cleaned up then, too
    lines = ["# Two hosts, one of them cut off in the middle\n"]

    def say(text: str) -> None:
        lines.append(text)
        print(text, flush=True)

    folder = Path(tempfile.mkdtemp(prefix="two_hosts_"))
    try:
        holds = prove(folder, say)
    finally:
        if given.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    say("\nAll of it holds." if holds else "\nIT DOES NOT HOLD.")
    if given.write:
        given.write.write_text("\n".join(lines) + "\n")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
