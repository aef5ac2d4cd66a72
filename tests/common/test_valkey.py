"""The process's one client of Valkey."""

import subprocess
import sys

from tests.become import ROOT

ASK_AT_ONCE = """
import sys, threading
import django

django.setup()
from common import valkey

sys.setswitchinterval(1e-6)
start, clients = threading.Barrier(16), []

def ask():
    start.wait()
    clients.append(valkey.client())

threads = [threading.Thread(target=ask) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(clients), len({id(client) for client in clients}))
"""


def test_threads_that_ask_first_at_the_same_time_get_one_client(database):
    """A second one would close its connections when it is forgotten, under whoever still waits on them."""
    told = subprocess.run([sys.executable, "-c", ASK_AT_ONCE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["16", "1"]
