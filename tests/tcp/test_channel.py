"""Promise: a Channel opens for the right token alone, and gives what the other end said, whole, in order."""
import asyncio
import contextlib
import hashlib
import importlib
import json
import os
import random
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import tracemalloc
import unittest
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Union
from unittest import mock

import runmaker4
from tests.support.eavesdropping import extensions, records
from tests.support.garbage import garbage, pieces
from tests.support.messages import FROM_CLIENT, FROM_SERVER, fields_of
from tests.support.scripts import ALL, FULL
from tests.support.strange_json import NO_JSON, NO_NUMBERS, NO_OBJECTS, STRANGE
from tests.support.wire import (
    CONTEXT,
    CREDENTIALS,
    FILE_ID,
    LENGTH,
    PROVEN,
    TOKEN,
    UNPROVEN,
    VERSION,
    End,
    frame,
    plain,
    read_plain,
)

server_module = importlib.import_module("runmaker4-server")
ROUNDS = 100_000 if ALL else 5_000 if FULL else 2_000
OTHER_TOKEN = TOKEN[:-1] + "e"
OTHER_FILE = "e" * 32
# what is sent in the handshake, one way and the other; from HELLO on it is TLS
GREETING, KNOCK, CREDS, HELLO, CERTIFICATE, CONFIRMATION = FLIGHTS = range(6)
CLEAR = GREETING, KNOCK, CREDS
FIELDS = fields_of(FROM_CLIENT + FROM_SERVER)
Alter = Callable[[int, bytes], bytes]                   # what a network makes of a flight
Message = dict[str, Any]
Side = Union[runmaker4.Channel, End]


class Line:
    """Two ends and what lies between: each handshake goes through `alter`, and is recorded as sent."""

    def __init__(self, token: str = TOKEN, credentials: runmaker4.Credentials = CREDENTIALS,
                 wanted: str = "", context: ssl.SSLContext = CONTEXT) -> None:
        self.client: Side = runmaker4.ClientChannel(token, context, wanted)
        self.server: Side = runmaker4.ServerChannel(TOKEN, credentials)
        self.flights: list[bytes] = []
        self.errors = ""

    def shake(self, alter: Alter = lambda _, data: data,
              flights: Sequence[int] = FLIGHTS) -> tuple[bool, bool]:
        """A handshake as far as it comes: which ends are convinced, client and server."""
        for number in flights:
            sender, receiver = self.ends(number)
            self.flights.append(sender.take_outgoing())
            try:
                assert receiver.receive(alter(number, self.flights[-1])) == []
            except runmaker4.WireError as error:
                self.errors += str(error)
                break
        return self.client.is_authenticated, self.server.is_authenticated

    def ends(self, number: int) -> tuple[Side, Side]:
        return (self.client, self.server) if number % 2 else (self.server, self.client)

    def with_forger(self, from_server: bool) -> tuple[End, Side]:
        """Shake hands; an end that knows the token and may say anything, and the other end."""
        if from_server:
            self.server = forger = End(TOKEN, True)
        else:
            self.client = forger = End(TOKEN, False)
        assert self.shake() == (True, True)
        return forger, self.client if from_server else self.server

    def directions(self) -> Iterator[tuple[runmaker4.Channel, runmaker4.Channel]]:
        """Sender and receiver, one way and the other."""
        assert isinstance(self.client, runmaker4.Channel) and isinstance(self.server, runmaker4.Channel)
        yield self.client, self.server
        yield self.server, self.client


def new_credentials() -> runmaker4.Credentials:
    """Those of another server of the same file."""
    credentials: runmaker4.Credentials = server_module.make_credentials(
        runmaker4.tls_context(server_side=True), FILE_ID)
    return credentials


def proven() -> Line:
    """Two ends after their handshake."""
    line = Line()
    assert line.shake() == (True, True), line.errors
    return line


def both_ways() -> Iterator[tuple[runmaker4.Channel, runmaker4.Channel]]:
    """Sender and receiver, which have just proven themselves: from the client, and from the server."""
    for number in range(2):
        yield list(proven().directions())[number]


def frames_of(sender: runmaker4.Channel, *messages: Message) -> list[bytes]:
    """What these messages become, each for itself."""
    frames = []
    for message in messages:
        sender.send(message)
        frames.append(sender.take_outgoing())
    return frames


class ChannelCase(unittest.TestCase):
    """Assertions about what a channel makes of bytes."""

    def refuse(self, receiver: Side, data: bytes, then: bytes = plain(a=1) * 3) -> str:
        """The bytes are refused, and what comes after them, too; what the error says."""
        with self.assertRaises(runmaker4.WireError) as caught:
            receiver.receive(data)
        self.assertEqual(self.received(receiver, then), [])
        return str(caught.exception)

    def received(self, receiver: Side, *parts: bytes) -> list[Message]:
        """The messages that come out until an error ends it."""
        found: list[Message] = []
        with contextlib.suppress(runmaker4.WireError):
            for part in parts:
                found += receiver.receive(part)
        return found

    def numbered(self, count: int) -> list[Message]:
        return [{"type": "ping", "request": number} for number in range(count)]


def same(flight: int, altered: bytes, sent: bytes) -> bool:
    """Whether an altered flight means what was sent; more may follow.

    Capitals mean the same in hexadecimal.  TLS 1.3 ignores the version in the head of a record that is not
    encrypted (type 22), and a record that has no meaning any more (type 20; RFC 8446, 5.1 and 5).
    """
    if flight in CLEAR:
        return altered.lower().startswith(sent.lower())
    return meaning(altered).startswith(meaning(sent))


def meaning(data: bytes) -> bytes:
    """What counts of these records."""
    return b"".join(part[:1] + part[3:] if part[0] == 22 else part for part in records(data) if part[0] != 20)


class Handshake(ChannelCase):
    """Both ends prove that they know the token; nothing else convinces either of them."""

    def test_an_end_is_convinced_only_by_the_last_byte(self) -> None:
        line = Line()
        for number in FLIGHTS:
            sender, receiver = line.ends(number)
            for byte in sender.take_outgoing():
                self.assertFalse(receiver.is_authenticated)
                self.assertEqual(receiver.receive(bytes([byte])), [])
        self.assertEqual((line.client.is_authenticated, line.server.is_authenticated), (True, True))

    def test_each_end_understands_one_that_was_made_by_the_table_alone(self) -> None:
        for from_server in False, True:
            forger, receiver = Line().with_forger(from_server)
            forger.send({"type": "ping", "request": 1})
            self.assertEqual(receiver.receive(forger.take_outgoing()), [{"type": "ping", "request": 1}])
            receiver.send({"type": "pong", "request": 2})
            self.assertEqual(forger.receive(receiver.take_outgoing()), [{"type": "pong", "request": 2}])

    def test_what_comes_with_the_last_step_is_heard(self) -> None:
        """Nobody has to wait for a turn of the network between the steps."""
        line = Line()
        line.shake(flights=FLIGHTS[:CONFIRMATION])
        line.client.send({"a": 1})
        self.assertEqual(line.server.receive(line.client.take_outgoing()), [{"a": 1}])

    def test_no_two_channels_say_the_same(self) -> None:
        flights: list[bytes] = []
        for _ in range(50):
            random.seed(1)                              # which is of no use to who wants to foretell nonces
            flights += proven().flights
        self.assertEqual(len(set(flights)), len(flights))

    def test_a_wrong_token_is_refused_and_that_is_said(self) -> None:
        for other in OTHER_TOKEN, "", TOKEN.upper(), TOKEN + "0":
            with self.subTest(token=other):
                line = Line(other)
                self.assertEqual(line.shake(), (False, False))
                self.assertIn("token", self.refuse(line.client, line.server.take_outgoing()))

    def test_no_byte_reaches_openssl_before_the_other_end_has_proved_that_it_knows_the_token(self) -> None:
        with mock.patch.object(runmaker4, "Tls", side_effect=AssertionError("TLS has begun")):
            line = Line(OTHER_TOKEN)
            self.assertEqual(line.shake(), (False, False))
            self.assertIn("token", line.errors)
            hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600)
            for end in Line().client, Line().server:
                self.refuse(end, hello)
            client = Line().client
            client.receive(Line().server.take_outgoing())
            fake = plain(certificate="2" * 64, file="0" * 32, proof="0" * 64)
            self.assertIn("token", self.refuse(client, fake + hello))

    def test_another_version_is_refused_and_that_is_said(self) -> None:
        for version in "0", "1", "13", "14", "16", "1000000000":
            with self.subTest(version=version):
                line = Line()
                self.assertEqual(line.shake(self.changed(GREETING, "runmaker4", version)), (False, False))
                client = Line().client
                self.assertIn("version", self.refuse(client, plain(runmaker4=int(version), nonce="0" * 32)))
                line = Line()
                self.assertEqual(line.shake(self.changed(KNOCK, "runmaker4", version)), (False, False))
                self.assertIn("version", self.refuse(line.client, line.server.take_outgoing()))

    def changed(self, flight: int, field: str, text: str) -> Alter:
        """A network that puts this JSON text in the place of a field of one flight."""
        def alter(number: int, data: bytes) -> bytes:
            if number != flight:
                return data
            items = {name: json.dumps(value) for name, value in read_plain(data).items()}
            items[field] = text
            return frame(("{%s}" % ", ".join(f'"{name}": {item}' for name, item in items.items())).encode())
        return alter

    def test_no_strange_value_in_any_field_convinces_anybody(self) -> None:
        in_flights = ["runmaker4", "nonce"], ["runmaker4", "nonce", "proof"], ["certificate", "file", "proof"]
        for flight, fields in enumerate(in_flights):
            for field in fields:
                for text in STRANGE + NO_NUMBERS:
                    if (field, text) != ("runmaker4", "true"):      # which Python takes for 1
                        with self.subTest(flight=flight, field=field, text=text):
                            convinced = Line().shake(self.changed(flight, field, text))
                            self.assertEqual(convinced, (False, False))
        for text in STRANGE + NO_NUMBERS:
            for body in '{"proof": %s}' % text, text:
                self.assertFalse(self.confirmed_by(body.encode()))

    def confirmed_by(self, body: bytes) -> bool:
        """Whether a server is convinced by a client that knows the token, but sends this in step 5."""
        line = Line()
        line.client = client = End(TOKEN, False)
        with mock.patch.object(client, "confirm", lambda: client.put(body)):
            line.shake()
        return line.server.is_authenticated

    def test_the_proof_of_another_connection_confirms_nothing(self) -> None:
        other, _ = Line().with_forger(False)
        self.assertFalse(self.confirmed_by(json.dumps({"proof": other.proof(b"confirmed")}).encode()))

    def test_a_nonce_is_128_bits_in_hexadecimal(self) -> None:
        """Nothing that a label could be made of, or that is not long enough to be new."""
        for nonce in "", "0", "0" * 31, "0" * 33, "to server " + "0" * 32, "0" * 31 + " ", "0" * 31 + "g":
            with self.subTest(nonce=nonce):
                self.refuse(Line().client, plain(runmaker4=VERSION, nonce=nonce))
                with mock.patch.object(secrets, "token_hex", return_value=nonce):
                    client = Line().client
                server = Line().server
                client.receive(server.take_outgoing())
                knock = client.take_outgoing()
                self.assertEqual(read_plain(knock)["nonce"], nonce)
                self.refuse(server, knock)

    def test_no_altered_bit_convinces_anybody(self) -> None:
        """But for bits that TLS ignores, and capitals."""
        bits = (1, 2, 4, 8, 16, 64, 128)                # 32 makes capitals, which mean the same
        for flight in FLIGHTS:
            sent = proven().flights[flight]
            for at in range(len(sent)):
                for bit in bits if FULL or flight in CLEAR else bits[at % 7:at % 7 + 1]:
                    line, altered = Line(), b""

                    def alter(number: int, data: bytes) -> bytes:
                        nonlocal altered
                        if number == flight and at < len(data):         # the signature's length varies
                            altered = data = data[:at] + bytes([data[at] ^ bit]) + data[at + 1:]
                        return data
                    convinced = line.shake(alter)
                    if altered and not same(flight, altered, line.flights[flight]):
                        self.assertEqual(convinced, (flight == CONFIRMATION, False), (flight, at, bit))

    def test_a_replayed_flight_convinces_nobody(self) -> None:
        old = proven().flights
        for flight in FLIGHTS:
            convinced = Line().shake(lambda number, data: old[number] if number == flight else data)
            self.assertEqual(convinced, (flight == CONFIRMATION, False), flight)
        self.assertEqual(Line().shake(lambda number, _: old[number]), (False, False))

    def test_reflected_flights_convince_nobody(self) -> None:
        for flight in FLIGHTS[1:]:
            line = Line()
            convinced = line.shake(
                lambda number, data: line.flights[flight - 1] if number == flight else data)
            self.assertEqual(convinced, (flight == CONFIRMATION, False), flight)

    def test_a_flight_that_is_cut_short_convinces_nobody(self) -> None:
        for flight in FLIGHTS:
            size = len(proven().flights[flight])
            for cut in range(1, size, 1 if flight in CLEAR or FULL else 13):
                convinced = Line().shake(lambda number, data: data[:-cut] if number == flight else data)
                self.assertEqual(convinced, (flight == CONFIRMATION, False), (flight, cut))

    def test_a_clients_proof_is_no_servers_proof(self) -> None:
        first, second = Line().client, Line().client
        first.receive(Line().server.take_outgoing())
        knock = read_plain(first.take_outgoing())
        second.receive(plain(runmaker4=VERSION, nonce=knock["nonce"]))
        known: Message = dict(certificate="2" * 64, file="0" * 32)
        for proof in knock["proof"], read_plain(second.take_outgoing())["proof"]:
            client = Line().client
            client.receive(plain(runmaker4=VERSION, nonce=knock["nonce"]))
            client.take_outgoing()
            self.refuse(client, plain(**known, proof=proof))
        self.refuse(first, plain(**known, proof=knock["proof"]))

    def test_a_refusal_from_the_other_end_is_an_error_whatever_it_says(self) -> None:
        texts: list[object] = ["wrong token", "", "a\nb\x1b[2J", "\ud800", 5, None, [], {}, "x" * 900]
        for text in texts:
            for number in range(2):
                with self.subTest(text=text, number=number):
                    line = Line()
                    if number:
                        line.client.receive(line.server.take_outgoing())
                    self.refuse(line.client, plain(error=text))
                    self.refuse(Line().server, plain(error=text))

    def test_a_message_before_the_proof_is_refused(self) -> None:
        line = proven()
        line.client.send(self.numbered(1)[0])
        early = line.client.take_outgoing()
        self.assertEqual(self.received(Line().server, early, plain(type="ping", request=1)), [])
        self.refuse(Line().server, plain(type="ping", request=1))
        self.refuse(Line().client, plain(type="pong", request=1))
        for end in Line().client, Line().server:
            with self.assertRaises(ValueError):
                end.send(self.numbered(1)[0])


class States(ChannelCase):
    """At each step an end takes what the table of the protocol says, and nothing else."""

    def test_every_state_against_everything_that_an_end_ever_sends(self) -> None:
        """What comes in its turn is taken; all else breaks the connection, for good, and nothing is heard."""
        flights = proven().flights
        for state in FLIGHTS:
            for other in FLIGHTS:
                line = Line()
                line.shake(flights=FLIGHTS[:state])
                sender, receiver = line.ends(state)
                right = sender.take_outgoing()
                if other == state:
                    self.assertEqual(receiver.receive(right), [])
                else:
                    with self.subTest(state=state, other=other):
                        self.assertEqual(self.received(receiver, flights[other], right, b"x" * 2000), [])
                        self.assertFalse(receiver.is_authenticated)

    def test_an_end_that_is_broken_stays_so_and_says_nothing_more_but_why(self) -> None:
        for from_server in False, True:
            _, receiver = Line().with_forger(from_server)
            receiver.send({"a": 1})
            self.refuse(receiver, b"\x17\x03\x03\x00\x20" + bytes(32))
            alert = records(receiver.take_outgoing())
            self.assertEqual([part[0] for part in alert], [23])                 # sealed as all else
            self.assertEqual(receiver.take_outgoing(), b"")
            with self.assertRaises(ValueError):
                receiver.send({"a": 1})


class OverTls(ChannelCase):
    """TLS 1.3 protects what is said: no other version, no other certificate, nothing resumed or cut off."""

    def refused_in_tls(self, line: Line) -> str:
        """A handshake gets as far as TLS, where both ends part without having been convinced; why."""
        self.assertEqual(line.shake(), (False, False))
        self.assertGreaterEqual(len(line.flights), HELLO)
        return line.errors

    def test_neither_end_takes_an_older_tls_from_who_knows_the_token(self) -> None:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        client.maximum_version = server.maximum_version = ssl.TLSVersion.TLSv1_2
        old = server_module.make_credentials(server, FILE_ID)
        line = Line()
        line.server = End(TOKEN, True, credentials=old)
        with self.assertRaises(ssl.SSLError):           # of the server, for the client offers nothing older
            line.shake()
        line = Line()
        line.client = End(TOKEN, False, context=client)
        self.assertIn("PROTOCOL", self.refused_in_tls(line))
        line = Line()
        line.client, line.server = End(TOKEN, False, context=client), End(TOKEN, True, credentials=old)
        line.shake(flights=range(8))                    # the older one takes a turn more
        self.assertTrue(line.client.is_authenticated, "the two do not even fit each other")

    def test_a_man_in_the_middle_with_a_certificate_of_his_own_is_refused_and_learns_no_proof(self) -> None:
        """He passes on steps 1 to 3, and then speaks TLS with both ends."""
        own = new_credentials()
        line, to_client, to_server = Line(), End(TOKEN, True, credentials=own), End(TOKEN, False)
        line.shake(flights=CLEAR)
        to_client.ready = b""                           # he needs no token for what he does from here on
        to_client.start_tls(own.context)
        to_server.certified = b"%b%b" % (CREDENTIALS.certificate.encode(), FILE_ID.encode())
        with mock.patch.object(to_server, "confirm"):
            to_server.start_tls(CONTEXT)
            line.server.receive(to_server.take_outgoing())
            to_server.receive(line.server.take_outgoing())
        self.assertTrue(to_server.is_authenticated, "he is in TLS with the server")
        to_client.receive(line.client.take_outgoing())
        self.assertIn("does not end", self.refuse(line.client, to_client.take_outgoing()))
        with contextlib.suppress(ssl.SSLError):         # the client has hung up
            self.assertEqual(to_client.receive(line.client.take_outgoing()), [])
        self.assertEqual(to_client.text, b"")           # no proof that he could hand on
        for proof in read_plain(line.flights[KNOCK])["proof"], read_plain(line.flights[CREDS])["proof"]:
            to_server.send({"proof": proof})
            self.refuse(line.server, to_server.take_outgoing())

    def test_another_certificate_than_the_one_that_the_server_has_named(self) -> None:
        other = new_credentials()
        line = Line(credentials=runmaker4.replace(CREDENTIALS, certificate=other.certificate))
        self.assertIn("does not end", self.refused_in_tls(line))

    def test_another_file_than_the_one_that_is_wanted(self) -> None:
        """It is known before TLS begins, and only from a server that knows the token."""
        line = Line(wanted=OTHER_FILE)
        self.assertEqual(line.shake(), (False, False))
        self.assertIsInstance(line.client.error if isinstance(line.client, runmaker4.Channel) else None,
                              runmaker4.OtherFileError)
        self.assertEqual((len(line.flights), line.client.take_outgoing()), (3, b""))
        line = Line(OTHER_TOKEN, wanted=OTHER_FILE)
        line.shake()
        self.assertIn("token", line.errors)
        line = Line(wanted=FILE_ID)
        self.assertEqual(line.shake(), (True, True))

    def test_an_end_that_closes_tls_is_refused(self) -> None:
        for from_server in False, True:
            forger, receiver = Line().with_forger(from_server)
            assert forger.tls
            with contextlib.suppress(ssl.SSLWantReadError):
                forger.tls.unwrap()
            self.assertIn("closed", self.refuse(receiver, forger.take_outgoing()))

    def test_a_policy_that_forbids_the_certificate_is_told(self) -> None:
        context = runmaker4.tls_context(server_side=True)
        context.set_ciphers("DEFAULT:@SECLEVEL=5")
        with self.assertRaisesRegex(runmaker4.UsageError, "OpenSSL refuses our certificate: .*small"):
            server_module.make_credentials(context, FILE_ID)


class Messages(ChannelCase):
    """Between proven ends every message arrives as it was sent, in whatever pieces."""

    def test_all_bytes_go_through_both_ways(self) -> None:
        texts = [bytes(range(256)).decode("utf-8", "surrogateescape"), *map(chr, range(0xDC80, 0xDD00)),
                 "\0", "", "\u00e9\u20ac\U0001f600", "\ud800", "\udfff", "\udc80\ud800x", "\u2028\x7f\x1b[0m",
                 "\\\"/\b\f\n\r\t"]
        for sender, receiver in both_ways():
            for text in texts:
                message: Message = {"a": text, text: [-1, 2 ** 53, -1e-9, True, None, {"b": [[], {}]}]}
                self.assertEqual(receiver.receive(b"".join(frames_of(sender, message))), [message])

    def test_random_messages_in_random_pieces_come_in_order(self) -> None:
        random_ = random.Random(20)
        for sender, receiver in both_ways():
            messages = [{"data": "x" * random_.choice([0, 1, 50, 3000]), "n": n} for n in range(300)]
            data = b"".join(frames_of(sender, *messages))
            self.assertEqual(self.received(receiver, *pieces(random_, data, 4000)), messages)

    def test_a_message_comes_with_its_last_byte_and_not_before(self) -> None:
        for sender, receiver in both_ways():
            for message in self.numbered(3):
                *most, last = frames_of(sender, message)[0]
                for byte in most:
                    self.assertEqual(receiver.receive(bytes([byte])), [])
                    self.assertEqual(receiver.receive(b""), [])
                self.assertEqual(receiver.receive(bytes([last])), [message])


class Forgeries(ChannelCase):
    """Nobody without the token gets a message in, out of its place, or in twice."""

    def test_a_frame_that_is_not_encrypted_is_refused(self) -> None:
        body = json.dumps(self.numbered(1)[0]).encode()
        clear = frame(body)
        for fake in clear, b"\x17\x03\x03" + len(clear).to_bytes(2, "big") + clear:
            for _, receiver in both_ways():
                self.refuse(receiver, fake, then=clear)

    def test_no_altered_bit_gets_in(self) -> None:
        sender, _ = next(proven().directions())
        for at in range(len(frames_of(sender, *self.numbered(1))[0])):
            for bit in range(8):
                for sender, receiver in both_ways():
                    first, *others = frames_of(sender, *self.numbered(3))
                    altered = first[:at] + bytes([first[at] ^ 1 << bit]) + first[at + 1:]
                    self.assertEqual(self.received(receiver, altered, *others), [], (at, bit))

    def test_what_is_repeated_left_out_swapped_sent_back_or_of_another_connection_is_refused(self) -> None:
        ways: dict[str, Callable[[list[bytes], bytes, bytes], bytes]] = {
            "repeated": lambda three, back, alien: three[0] + three[0],
            "left out": lambda three, back, alien: three[1],
            "swapped": lambda three, back, alien: three[1] + three[0],
            "sent back": lambda three, back, alien: back,
            "of another connection": lambda three, back, alien: alien,
        }
        for name, way in ways.items():
            for (sender, receiver), (another, _) in zip(both_ways(), both_ways()):
                with self.subTest(way=name):
                    three = frames_of(sender, *self.numbered(3))
                    (back,), (alien,) = (frames_of(end, *self.numbered(1)) for end in (receiver, another))
                    self.refuse(receiver, way(three, back, alien), then=b"".join(three))


class Sizes(ChannelCase):
    """A frame has a length that a stranger cannot make large, and nobody endless."""
    TOO_LONG = (1, 2, 1000, 1 << 16, (1 << 31) - PROVEN)

    def test_before_the_proof_a_kilobyte_at_the_most(self) -> None:
        for length in *(UNPROVEN + more for more in self.TOO_LONG), (1 << 32) - 1:
            for end in Line().client, Line().server:
                self.refuse(end, length.to_bytes(4, "big"))         # not one byte more has to come

    def test_a_whole_kilobyte_is_taken(self) -> None:
        def longer(number: int, data: bytes) -> bytes:
            return frame(data[LENGTH:].ljust(UNPROVEN)) if number in CLEAR else data
        self.assertEqual(Line().shake(longer), (True, True))

    def test_also_in_tls_until_the_client_has_proved_itself(self) -> None:
        for more in 0, 1:
            line = Line()
            line.client = client = End(TOKEN, False)

            def confirm() -> None:
                proof = json.dumps({"proof": client.proof(b"confirmed")})
                client.put(proof.ljust(UNPROVEN + more).encode())
            with self.subTest(more=more), mock.patch.object(client, "confirm", confirm):
                self.assertEqual(line.shake(), (True, not more))
                self.assertEqual("too long" in line.errors, bool(more))

    def test_after_the_proof_a_megabyte_at_the_most(self) -> None:
        for length in *(PROVEN + more for more in self.TOO_LONG), (1 << 32) - 1:
            for from_server in False, True:
                forger, receiver = Line().with_forger(from_server)
                assert forger.tls
                forger.tls.write(length.to_bytes(4, "big"))         # not one byte more has to come
                self.refuse(receiver, forger.take_outgoing())

    def test_a_whole_megabyte_goes_through_and_no_more_is_sent(self) -> None:
        around = len(runmaker4.encode({"data": ""}))
        for sender, receiver in both_ways():
            message = {"data": "x" * (PROVEN - around)}
            self.assertEqual(receiver.receive(frames_of(sender, message)[0]), [message])
            with self.assertRaises(ValueError):
                sender.send({"data": message["data"] + "x"})

    def test_a_channel_keeps_no_more_than_a_frame(self) -> None:
        line = proven()
        message = {"data": "x" * (PROVEN - 100)}
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for _ in range(8):
            line.client.send(message)
            part = line.client.take_outgoing()
            half = len(part) // 2
            self.assertEqual(line.server.receive(part[:half]), [])
            self.assertEqual(len(line.server.receive(part[half:])), 1)
        self.assertLess(tracemalloc.get_traced_memory()[0], 4 * PROVEN)
        self.assertLess(tracemalloc.get_traced_memory()[1], 12 * PROVEN)


class Contents(ChannelCase):
    """A frame that is no JSON object is refused, also from somebody who knows the token."""

    REFUSED = (*NO_OBJECTS, *NO_JSON,
               *(f'{{"type": "ping", "request": {text}}}'.encode() for text in NO_NUMBERS))
    DEEP = (b"[" * 200_000, b"[" * 200_000 + b"]" * 200_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
            b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}")

    def test_after_the_proof(self) -> None:
        for body in self.REFUSED + self.DEEP:
            for from_server in False, True:
                with self.subTest(body=body[:80], from_server=from_server):
                    forger, receiver = Line().with_forger(from_server)
                    forger.put(b'{"a": 1}')
                    self.assertEqual(receiver.receive(forger.take_outgoing()), [{"a": 1}])
                    forger.put(body)
                    bad = forger.take_outgoing()
                    forger.put(b'{"a": 1}')
                    self.refuse(receiver, bad, then=forger.take_outgoing())

    def test_strange_texts_and_numbers_are_handed_on_as_they_are(self) -> None:
        for text in STRANGE:
            for from_server in False, True:
                forger, receiver = Line().with_forger(from_server)
                forger.put(f'{{"data": {text}}}'.encode())
                self.assertEqual(receiver.receive(forger.take_outgoing()), [{"data": json.loads(text)}])

    def test_numbers_in_lists_have_the_bounds_of_others(self) -> None:
        self.assertEqual(runmaker4.Message({"a": [0, 1 << 62]}).list_of("a", int), [0, 1 << 62])
        for value in -1, (1 << 62) + 1, True, 1.0:
            with self.subTest(value=value), self.assertRaises(runmaker4.WireError):
                runmaker4.Message({"a": [1, value]}).list_of("a", int)


class Vectors(ChannelCase):
    """Numbers that were computed by hand from the table of the protocol: another end that follows it fits."""
    NONCES = {True: "a" * 32, False: "b" * 32}          # of the server, of the client
    KEY = 112233445566778899
    # printf 'runmaker4 15 client\naaa...bbb...' | openssl dgst -sha256 -hmac "$TOKEN"
    HASH, CLIENT, SERVER, CONFIRMED = ("fc1552f771f07fc2934c12f9dcd0101f08dd8468651299b9f85d4d36334429a6",
                                       "0b9e041370a2f27d203db07bc066a874fb086ad1a3a37bc533b666121dd9a6e1",
                                       "e9371d329d71edde16a9d37a24dd424fb05c9bcb3421f2408b17dca5af41b9c5",
                                       "636aa10c96bbe4131b5f8c00bc059453071efb83cdbcdbffc83cdb2291c9d87a")

    def test_a_handshake(self) -> None:
        drawn = {server_module.ORDER - 1: self.KEY - 1}
        with mock.patch.object(secrets, "randbelow", lambda below: drawn[below]):
            credentials = new_credentials()
        self.assertEqual(credentials.certificate, self.HASH)
        line = Line(credentials=credentials)
        with mock.patch.object(secrets, "token_hex", return_value=self.NONCES[True]):
            line.server = runmaker4.ServerChannel(TOKEN, credentials)
        with mock.patch.object(secrets, "token_hex", return_value=self.NONCES[False]):
            line.client = End(TOKEN, False)
        with mock.patch.object(line.client, "confirm"):
            line.shake()
        greeting, knock, creds = map(read_plain, line.flights[:HELLO])
        self.assertEqual(greeting, {"runmaker4": 15, "nonce": self.NONCES[True]})
        self.assertEqual(knock, {"runmaker4": 15, "nonce": self.NONCES[False], "proof": self.CLIENT})
        self.assertEqual(creds, {"certificate": self.HASH, "file": FILE_ID, "proof": self.SERVER})
        line.client.send({"proof": self.CONFIRMED})
        self.assertEqual(line.server.receive(line.client.take_outgoing()), [])
        self.assertTrue(line.server.is_authenticated)


class Certificate(ChannelCase):
    """What a server makes for itself is a key on P-256, and a certificate that others can read."""

    def test_multiples_of_the_base_point(self) -> None:
        """The last are its negative; the others are NIST's test vectors for the curve."""
        x, y = server_module.BASE
        for factor, expected in {
            1: (x, y),
            2: (0x7cf27b188d034f7e8a52380304b51ac3c08969e277f21b35a60b48fc47669978,
                0x07775510db8ed040293d9ac69f7430dbba7dade63ce982299e04b79d227873d1),
            112233445566778899: (0x339150844ec15234807fe862a86be77977dbfb3ae3d96f4c22795513aeaab82f,
                                 0xb1c14ddfdc8ec1b2583f51e85a5eb3a155840f2034730e9b5ada38b674336a21),
            server_module.ORDER - 1: (x, server_module.FIELD - y),
        }.items():
            found = server_module.multiply_base(factor)
            self.assertEqual((int.from_bytes(found[:32], "big"), int.from_bytes(found[32:], "big")), expected)

    def test_openssl_reads_what_is_in_it(self) -> None:
        client, _ = Line().with_forger(False)
        assert client.tls
        der = client.tls.getpeercert(True) or b""
        self.assertEqual(hashlib.sha256(der).hexdigest(), CREDENTIALS.certificate)
        if not shutil.which("openssl"):
            self.skipTest("openssl is not on PATH")
        ended = subprocess.run(["openssl", "x509", "-inform", "der", "-text", "-noout"], input=der,
                               capture_output=True, check=True)
        self.assertEqual(ended.stderr, b"")
        for words in ("Version: 3 ", "Issuer: CN ?= ?runmaker4", "Subject: CN ?= ?runmaker4", "CURVE: P-256",
                      "Not Before: Jan +1 00:00:00 2020", "Not After : Dec 31 23:59:59 9999",
                      "Public-Key: .256 bit", "ecdsa-with-SHA256"):
            self.assertRegex(ended.stdout.decode(), words)

    def test_each_server_has_a_key_of_its_own_that_is_in_no_file(self) -> None:
        with tempfile.TemporaryDirectory() as home, mock.patch.dict(os.environ, HOME=home, TMPDIR=home):
            before = set(os.listdir("/proc/self/fd"))
            found = {new_credentials().certificate for _ in range(5)}
            self.assertEqual((len(found), os.listdir(home)), (5, []))
            self.assertLessEqual(set(os.listdir("/proc/self/fd")), before)


class Secrecy(ChannelCase):
    """What is said is readable to nobody, also later; what is compared with a secret takes constant time."""

    def test_who_learns_the_token_later_cannot_read_what_was_said(self) -> None:
        """TLS agrees on keys made of numbers drawn for this connection, and of nothing known before."""
        line = Line()
        client, _ = line.with_forger(False)
        assert client.tls
        self.assertEqual((client.tls.version(), client.tls.session_reused), ("TLSv1.3", False))
        self.assertEqual(line.server.take_outgoing(), b"", "a ticket is sent")
        encrypted = [part for part in records(line.flights[CERTIFICATE]) if part[:1] == b"\x17"]
        self.assertLess(max(map(len, encrypted)), 400, "a ticket is sent with the certificate")
        offered = extensions(line.flights[HELLO])
        self.assertIn(51, offered)
        self.assertNotIn(41, offered, "a key that is shared before is offered")

    def test_nothing_but_a_comparison_in_constant_time_decides(self) -> None:
        with mock.patch("hmac.compare_digest", return_value=True):
            line = Line(OTHER_TOKEN)
            self.assertEqual(line.shake(), (True, True), "a proof is compared in another way")
        for flight in KNOCK, CREDS, CONFIRMATION:
            line = Line()
            line.shake(flights=FLIGHTS[:flight])
            sender, receiver = line.ends(flight)
            with mock.patch("hmac.compare_digest", return_value=False):
                self.refuse(receiver, sender.take_outgoing())


class Fuzz(ChannelCase):
    """Whatever bytes come at either end: messages that were sent, in order, or a WireError; no more."""

    def check(self, seed: int, share: float, attack: Callable[[random.Random], None]) -> None:
        random_ = random.Random(seed)
        for number in range(int(ROUNDS * share)):
            state = random_.getstate()
            try:
                attack(random_)
            except Exception as error:
                where = f"round {number} of seed {seed}, state {hash(state)}"
                raise AssertionError(f"{where}: {error!r}") from error

    def feed(self, random_: random.Random, receiver: Side, data: bytes) -> list[Message]:
        return self.received(receiver, *pieces(random_, data, random_.choice([2, 40, 4000])))

    def test_random_bytes_and_objects_from_strangers(self) -> None:
        def attack(random_: random.Random) -> None:
            line = Line()
            line.shake(flights=FLIGHTS[:random_.randrange(CERTIFICATE)])
            end = random_.choice([line.client, line.server])
            data = b"".join(random_.choice([random_.randbytes(random_.randrange(80)),
                                            frame(garbage(random_).encode())]) for _ in range(3))
            before = end.is_authenticated
            self.assertEqual(self.feed(random_, end, data), [])
            self.assertEqual(end.is_authenticated, before)
        self.check(21, 0.3, attack)


class Forgotten(unittest.IsolatedAsyncioTestCase):

    async def test_the_kernel_asks_soon_whether_the_other_host_knows_the_connection(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, \
                socket.create_connection(server.getsockname()) as sock:
            transport = mock.Mock(get_extra_info=lambda _: sock, get_write_buffer_size=lambda: 0)
            end = Line().server
            assert isinstance(end, runmaker4.Channel)
            runmaker4.Link(end, asyncio.get_running_loop()).connection_made(transport)
            self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
            seconds = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            self.assertTrue(runmaker4.PING_SECONDS < seconds < runmaker4.MAX_HANDSHAKE_SECONDS, seconds)


class Ended(unittest.IsolatedAsyncioTestCase):
    """An end that sends nothing more still hears what the other has to say."""

    async def test_who_says_who_he_is_after_the_end_gets_no_answer(self) -> None:
        line = Line()
        transport = mock.Mock(is_closing=lambda: False, get_write_buffer_size=lambda: 0)
        assert isinstance(line.server, runmaker4.Channel)
        link = runmaker4.Link(line.server, asyncio.get_running_loop())
        link.connection_made(transport)
        for _ in range(3):                              # until it says the last thing that the link must know
            line.client.receive(transport.write.call_args[0][0])
            if not line.client.is_authenticated:
                link.data_received(line.client.take_outgoing())
        link.finish_writing()
        transport.write.side_effect = RuntimeError("Cannot call write() after write_eof()")
        with mock.patch.multiple(link, on_authenticated=mock.DEFAULT) as called:
            link.data_received(line.client.take_outgoing())
        self.assertTrue(called["on_authenticated"].called)
        transport.write_eof.assert_called_once_with()
