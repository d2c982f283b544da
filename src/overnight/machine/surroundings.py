"""`overnight doctor`: what is around this machine: the hub, caches, trackers, links between GPUs."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from pathlib import Path

import torch

from overnight.config import TRACKERS
from overnight.machine.findings import Finding

HUB = "https://huggingface.co"
PATIENCE = 5.0  # seconds for the hub to answer


def network() -> Finding:
    """Whether the hub, or the mirror that HF_ENDPOINT names, answers."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or HUB
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return Finding("network", "not asked: HF_HUB_OFFLINE is set", "what the hub's cache holds can be used", "note")
    advice = "what is on this machine works without; HF_ENDPOINT names a mirror, https_proxy a proxy"
    if endpoint != HUB:
        advice = f"HF_ENDPOINT names it: unset it to use {HUB}"
    found: list[Finding] = []
    # a name may take far longer to look up than a connection may take to be made
    asking = threading.Thread(target=lambda: found.append(_asked(endpoint, advice)), daemon=True)
    asking.start()
    asking.join(2 * PATIENCE)
    late = Finding("network", f"{endpoint} does not answer within {2 * PATIENCE:g} s", advice, "note")
    return found[0] if found else late


def _asked(endpoint: str, advice: str) -> Finding:
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import urlopen

    begin = time.perf_counter()
    try:
        with urlopen(f"{endpoint}/api/datasets?limit=1", timeout=PATIENCE) as answer:
            kind = answer.headers.get_content_type()
    except HTTPError as error:
        return Finding("network", f"{endpoint} answers {error.code} {error.reason}", advice, "note")
    except (OSError, ValueError, HTTPException) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        return Finding("network", f"{endpoint} does not answer: {reason}", advice, "note")
    if "json" not in kind:
        return Finding("network", f"{endpoint} does not answer as a hub does", advice, "note")
    return Finding("network", f"{endpoint} answers in {(time.perf_counter() - begin) * 1e3:.0f} ms")


def cache() -> Finding:
    """Whether what comes from the hub can be kept."""
    folder = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser().absolute()
    there = folder
    while not there.exists():
        there = there.parent
    if os.access(there, os.W_OK):
        return Finding("hub's cache", str(folder))
    advice = f"{there} cannot be written to: HF_HOME=FOLDER names another place"
    return Finding("hub's cache", str(folder), advice, "note")


def trackers() -> Finding:
    """Which trackers are installed."""
    found = [name for name in TRACKERS if importlib.util.find_spec(name) is not None]
    absent = [name for name in TRACKERS if name not in found]
    if not found:
        return Finding("trackers", f"none; pip install {' or '.join(absent)} for --trackers")
    return Finding("trackers", ", ".join(found) + (f"; not installed: {', '.join(absent)}" if absent else ""))


def links(count: int) -> Finding:
    """Whether `count` GPUs read each other's memory, which is several times as fast as over main memory."""
    pairs = [(one, other) for one in range(count) for other in range(count) if one != other]
    apart = [f"{one}-{other}" for one, other in pairs if not torch.cuda.can_device_access_peer(one, other)]
    if not apart:
        return Finding("GPU links", f"all {count} GPUs read each other's memory")
    advice = "gradients go over main memory between these, which is slower"
    return Finding("GPU links", f"not between {', '.join(apart)}", advice, "note")
