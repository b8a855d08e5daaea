"""The load that the benchmarks share: many objects at once, and when each of them was seen to be ready."""

import json
import math
import os
import queue
import sys
import threading
import time

from plane import is_ready

CONNECTIONS = 20
STARTED = time.monotonic()


def say(text):
    print(f"{time.monotonic() - STARTED:5.0f}s  {text}", file=sys.stderr, flush=True)


def number(name, default, usage):
    """A setting from the environment."""
    text = os.environ.get(name, str(default))
    if not text.isdigit() or int(text) < 1:
        sys.exit(f"error: {name} must be a whole number above 0, not {text!r}\n\n{usage}")
    return int(text)


class Watcher(threading.Thread):
    """Notes when each object of these names was first seen Ready, or with another condition, on our clock."""

    def __init__(self, api, path, names, condition="Ready"):
        super().__init__(daemon=True)
        self.api, self.path, self.names, self.condition = api, path, frozenset(names), condition
        self.ready, self.done, self.error = {}, threading.Event(), None

    def run(self):
        try:
            for item in self.api.watch(self.path):
                name = item["metadata"]["name"]
                if name in self.names and name not in self.ready and is_ready(item, self.condition):
                    self.ready[name] = time.time()
                    if len(self.ready) == len(self.names):
                        break
        except Exception as error:
            self.error = error
        self.done.set()


def create_all(plane, path, items):
    """Creates everything over a few connections. When each was asked for, and when the last was there."""
    todo, asked, errors = queue.SimpleQueue(), {}, []
    for item in items:
        todo.put((item["metadata"]["name"], json.dumps(item)))
    ready_to_go = threading.Barrier(CONNECTIONS + 1)

    def work():
        try:
            api = plane.connect()
            api("GET", "/version")
            ready_to_go.wait()
            while True:
                name, body = todo.get_nowait()
                asked[name] = time.time()
                api("POST", path, body)
        except queue.Empty:
            pass
        except Exception as error:
            errors.append(error)
            ready_to_go.abort()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    try:
        ready_to_go.wait()
    except threading.BrokenBarrierError:
        pass
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return asked, time.time()


def percentile(sorted_values, share):
    return sorted_values[max(0, math.ceil(len(sorted_values) * share) - 1)]
