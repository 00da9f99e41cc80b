"""Long-lived TCP connections of tests that look at what conntrack makes of them.

    connection.py serve PORT
    connection.py idle HOST PORT COUNT SECONDS     is there still a way back after idling?
    connection.py pingpong HOST PORT LOCAL_PORT COMMAND     while that is run six times
    connection.py blind HOST PORT LOCAL_PORT FILE  FIN and RST of anybody, then a RST of its own

The answer is one line of JSON on standard output; `blind` writes FILE.ready when it has sent what is
no part of the connection, and waits for FILE.go.
"""
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time


def connect(host, port, local_port=0):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(20)
    if local_port:
        connection.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", local_port))
    connection.connect((host, port))
    return connection


def exchange(connection, payload=b"12345678"):
    connection.sendall(payload)
    got = b""
    while len(got) < len(payload):
        more = connection.recv(65536)
        if not more:
            raise OSError("ended")
        got += more
    return got == payload


def busy(connection, seconds):
    """Exchanges enough for the connection to be learned."""
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        exchange(connection, b"x" * random.choice([8, 1000, 30000]))
        count += 1
        time.sleep(random.uniform(0, 0.004))
    return count


def answer(connection):
    """Echoes; after Q and a number of seconds it says nothing for so long, and then speaks first."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        while True:
            data = connection.recv(65536)
            if not data:
                return
            if data.startswith(b"Q"):
                time.sleep(float(data[1:]))
                connection.sendall(b"hello")
            else:
                connection.sendall(data)
    except OSError:
        pass
    finally:
        connection.close()


def serve(port):
    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", int(port)))
    listener.listen(64)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def idle(host, port, count, seconds):
    results = []

    def one():
        try:
            connection = connect(host, int(port))
            busy(connection, 1.5)
            connection.sendall(b"Q" + seconds.encode())
            connection.settimeout(float(seconds) + 10)
            results.append(connection.recv(100) == b"hello" and exchange(connection))
            connection.close()
        except OSError as error:
            results.append(str(error))

    threads = [threading.Thread(target=one) for _ in range(int(count))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"right": results.count(True), "results": results}


def pingpong(host, port, local_port, command):
    """Small exchanges; between two of them, now and then, something is done to the host's conntrack."""
    ran = 0
    try:
        connection = connect(host, int(port), int(local_port))
        busy(connection, 1)
        for _ in range(6):
            end = time.monotonic() + random.uniform(0.9, 1.2)
            while time.monotonic() < end:
                exchange(connection)
                # Behind a pause the last packet was an acknowledgement of the client's.
                time.sleep(random.choice([0.005, 0.06]))
            ran += subprocess.run(command, shell=True, capture_output=True).returncode == 0
        connection.settimeout(5)
        for _ in range(100):
            exchange(connection)
            time.sleep(0.01)
        connection.close()
        return {"ran": ran, "error": ""}
    except OSError as error:
        return {"ran": ran, "error": str(error)}


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def segment(source, target, flags):
    """A TCP packet of this connection's addresses and ports with numbers out of the air."""
    family = socket.AF_INET6 if ":" in source[0] else socket.AF_INET
    addresses = socket.inet_pton(family, source[0]) + socket.inet_pton(family, target[0])
    numbers = (random.getrandbits(32), random.getrandbits(32))
    tcp = struct.pack("!HHIIBBHHH", source[1], target[1], *numbers, 5 << 4, flags, 500, 0, 0)
    pseudo = addresses + struct.pack("!HH", len(tcp), socket.IPPROTO_TCP)
    tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
    if family == socket.AF_INET6:
        return struct.pack("!IHBB", 6 << 28, len(tcp), socket.IPPROTO_TCP, 64) + addresses + tcp
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, socket.IPPROTO_TCP, 0)
    ip += addresses
    return ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:] + tcp


def blind(host, port, local_port, file):
    connection = connect(host, int(port), int(local_port))
    source, target = connection.getsockname()[:2], connection.getpeername()[:2]
    count = busy(connection, 1.5)
    raw = socket.socket(connection.family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    for flags in (0x11, 0x14, 0x04):
        for _ in range(20):
            raw.sendto(segment(source, target, flags), (host, 0))
        busy(connection, 0.1)
    open(file + ".ready", "w").close()
    while not os.path.exists(file + ".go"):
        time.sleep(0.02)
    still = exchange(connection)
    # Closing so sends a RST.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    return {"count": count, "right": still}


verb, words = sys.argv[1], sys.argv[2:]
print(json.dumps({"serve": serve, "idle": idle, "pingpong": pingpong, "blind": blind}[verb](*words)))
