"""An engine that forks, and whose child deafly outlives it with everything it inherited; see test_subprocess."""

import os
import signal
import socket
import time

server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(600)
