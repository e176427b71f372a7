"""Broker processes: access rules, passwords, TLS, ports, and that no process stays behind."""

from __future__ import annotations

import datetime
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from worlds.brokers import DEADLINE_S, Inbox, wait_for

from kasmina_edge.contracts.topics import Topics
from kasmina_edge.errors import InputError, LinkError
from kasmina_edge.transport.broker import (
    BrokerProcess,
    TlsFiles,
    access_rules,
    main,
    password_file,
    start_embedded,
    start_mosquitto,
)
from kasmina_edge.transport.mqtt import MqttTransport
from kasmina_edge.updates.mqtt_fetcher import MqttFetcher

TOPICS = Topics(site="lab")
USERS = {"controller": "c-word", "cam-1": "one-word", "cam-2": "two-word"}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_access_rules_keep_devices_apart_and_out_of_the_repository() -> None:
    with start_mosquitto(users=USERS, topics=TOPICS) as broker:
        clients = {u: MqttTransport(broker.address, u, username=u, password=p) for u, p in USERS.items()}
        for client in clients.values():
            client.connect(DEADLINE_S)
        controller, cam, other = clients["controller"], clients["cam-1"], clients["cam-2"]
        heard, spied, read = Inbox(), Inbox(), Inbox()
        controller.subscribe(TOPICS.device("+", "reported"), heard).wait(DEADLINE_S)
        other.subscribe(f"{TOPICS.root}/{TOPICS.site}/#", spied)
        cam.subscribe(TOPICS.metadata("timestamp.json"), read).wait(DEADLINE_S)
        cam.publish(TOPICS.reported("cam-1"), b"mine", wait_s=DEADLINE_S)
        with pytest.raises(LinkError, match="refused: Not authorized"):
            cam.publish(TOPICS.reported("cam-2"), b"not mine", wait_s=DEADLINE_S)
        with pytest.raises(LinkError, match="refused: Not authorized"):
            cam.publish(TOPICS.metadata("timestamp.json"), b"forged", retain=True, wait_s=DEADLINE_S)
        controller.publish(TOPICS.metadata("timestamp.json"), b"signed", retain=True, wait_s=DEADLINE_S)
        controller.publish(TOPICS.reported("cam-9"), b"last", wait_s=DEADLINE_S)
        assert read.wait()[0].payload == b"signed"
        assert [m.payload for m in heard.wait(2)] == [b"mine", b"last"]
        assert [m.payload for m in spied.wait()] == [b"signed"]
        for client in clients.values():
            client.close()


@pytest.mark.parametrize(("user", "password"), [("cam-1", "wrong"), ("nobody", "one-word"), (None, None)])
def test_who_cannot_say_the_word_is_not_let_in(user: str | None, password: str | None) -> None:
    with start_mosquitto(users=USERS) as broker:
        stranger = MqttTransport(broker.address, "x", username=user, password=password)
        with pytest.raises(LinkError, match="the broker refused: Not authorized") as caught:
            stranger.connect(DEADLINE_S)
        assert password is None or password not in str(caught.value)


def test_a_barrier_that_the_rules_forbid_is_an_error_and_no_proof_of_absence() -> None:
    with (
        start_mosquitto(users=USERS, topics=TOPICS) as broker,
        MqttTransport(broker.address, "cam-1", username="cam-1", password=USERS["cam-1"]) as cam,
    ):
        fetcher = MqttFetcher(cam, TOPICS, "cam-2", timeout_s=0.3)
        with pytest.raises(LinkError, match=r"no answer within 0\.3 s"):
            fetcher._look_up((TOPICS.metadata("2.root.json"),))


def test_no_password_is_written_down_and_names_are_device_ids() -> None:
    text = password_file(USERS)
    assert [line.split(":")[0] for line in text.splitlines()] == sorted(USERS)
    assert not any(password in text for password in USERS.values())
    assert password_file(USERS) != text, "each password has a salt of its own"
    for users in ({"cam 1": "x"}, {"cam-1\nroot": "x"}, {"cam-1": ""}):
        with pytest.raises(InputError):
            password_file(users)
    assert "pattern write kasmina/lab/d/%u/#" in access_rules("controller", TOPICS)


def _certificates(folder: Path, host: str) -> tuple[Path, TlsFiles]:
    """A one-day authority and a certificate of ``host`` signed by it."""
    now = datetime.datetime.now(datetime.UTC)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "server")}
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])

    def sign(name: str, subject: x509.Name, *extensions: x509.ExtensionType) -> bytes:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
        builder = builder.public_key(keys[name].public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=1))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(keys["ca"], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    server = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    files = {
        "ca.pem": sign("ca", issuer, x509.BasicConstraints(ca=True, path_length=0)),
        "server.pem": sign("server", server, x509.SubjectAlternativeName([x509.DNSName(host)])),
        "server.key": keys["server"].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder / "ca.pem", TlsFiles(folder / "server.pem", folder / "server.key")


def test_tls_holds_with_the_right_authority_and_name_and_with_nothing_else(tmp_path: Path) -> None:
    ca_file, tls = _certificates(tmp_path, "localhost")
    with start_mosquitto(tls=tls) as broker:
        assert broker.address.startswith("mqtts://localhost:")
        inbox = Inbox()
        with MqttTransport(broker.address, "a", ca_file=ca_file) as client:
            client.subscribe("x", inbox).wait(DEADLINE_S)
            client.publish("x", bytes(128 * 1024), wait_s=DEADLINE_S)
            assert len(inbox.wait()[0].payload) == 128 * 1024
        with pytest.raises(LinkError, match="its certificate does not hold"):
            MqttTransport(broker.address, "b").connect(DEADLINE_S)
        with pytest.raises(LinkError, match="its certificate does not hold"):
            MqttTransport(broker.address.replace("localhost", "127.0.0.1"), "c", ca_file=ca_file).connect(DEADLINE_S)


@pytest.mark.parametrize("start", [start_embedded, start_mosquitto])
def test_a_port_in_use_is_refused_and_a_closed_broker_leaves_nothing(start: object) -> None:
    assert callable(start)
    broker: BrokerProcess = start()
    pid, folder = broker.pid, broker.folder
    assert pid is not None and alive(pid) and (folder / "broker.log").exists()
    with pytest.raises(InputError, match=f"port {broker.port} on 127.0.0.1 is in use"):
        start(broker.port)
    broker.close()
    broker.close()
    assert broker.pid is None and not alive(pid) and not folder.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", broker.port), timeout=1.0)


def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="ended with code"):
        start_mosquitto(tls=TlsFiles(tmp_path / "no.pem", tmp_path / "no.key"))


def test_retained_messages_survive_a_polite_stop_of_mosquitto(tmp_path: Path) -> None:
    with start_mosquitto(folder=tmp_path / "broker") as broker:
        with MqttTransport(broker.address, "a") as a:
            a.publish("kept", b"x", retain=True, wait_s=DEADLINE_S)
        broker.stop()
        broker.start()
        inbox = Inbox()
        with MqttTransport(broker.address, "b") as b:
            b.subscribe("kept", inbox)
            assert inbox.wait()[0].payload == b"x"


@pytest.mark.parametrize("kind", ["embedded", "mosquitto"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_broker_program_is_ready_when_it_says_so_and_ctrl_c_ends_everything(
    tmp_path: Path, kind: str, number: signal.Signals
) -> None:
    ready = tmp_path / "ready.json"
    command = [sys.executable, "-m", "kasmina_edge.transport.broker", "--kind", kind, "--ready-file", str(ready)]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: ready.exists() or program.poll() is not None, "the ready file")
        found = json.loads(ready.read_text())
        with MqttTransport(found["address"], "a") as client:
            client.publish("x", b"x", wait_s=DEADLINE_S)
        program.send_signal(number)
        out, err = program.communicate(timeout=DEADLINE_S)
    finally:
        program.kill()
        program.wait()
    assert (program.returncode, err) == (0, "")
    assert found["address"] in out
    wait_for(lambda: not alive(found["pid"]), "the broker's end")


def test_a_broker_program_says_what_is_wrong_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            assert main(["--kind", "mosquitto", "--port", str(port), "--folder", str(tmp_path)]) == 2
        finally:
            for n, handler in before.items():
                signal.signal(n, handler)
    assert f"port {port} on 127.0.0.1 is in use" in capsys.readouterr().err
