"""Promise: what comes out of a Channel is what the other end said, whole, once, in order; all else is a
WireError.
"""
import asyncio
import contextlib
import hashlib
import json
import random
import secrets
import tracemalloc
import unittest
from collections.abc import Iterator, Sequence
from typing import Any, Callable
from unittest import mock

import runmaker4
from tests.support import ALL
from tests.wire import (
    FROM_CLIENT,
    FROM_SERVER,
    LENGTH,
    MAC,
    NO_JSON,
    NO_NUMBERS,
    NO_OBJECTS,
    PRIME,
    PROVEN,
    STRANGE,
    TOKEN,
    UNPROVEN,
    Forger,
    QuickChannel,
    fields_of,
    frame,
    garbage,
    mutilate,
    pieces,
    plain,
    read_plain,
    split,
    spoiled,
)

ROUNDS = 100_000 if ALL else 5_000
OTHER_TOKEN = TOKEN[:-1] + "e"
GREETING, ANSWER, PROOF, AGREED = FLIGHTS = range(4)    # of a handshake
FIELDS = fields_of(FROM_CLIENT + FROM_SERVER)
Alter = Callable[[int, bytes], bytes]                   # what a network makes of a flight
Message = dict[str, Any]


def unaltered(_: int, data: bytes) -> bytes:
    return data


class Line:
    """Two ends and what lies between them.

    Every handshake goes through `alter`, and is recorded as it was sent.
    """

    def __init__(self, token: str = TOKEN) -> None:
        self.client, self.server = QuickChannel(token, False), QuickChannel(TOKEN, True)
        self.flights: list[bytes] = []
        self.errors = ""

    def shake(self, alter: Alter = unaltered) -> tuple[bool, bool]:
        """A handshake as far as it comes: which ends are convinced, client and server."""
        for number in FLIGHTS:
            sender, receiver = self.ends(number)
            self.flights.append(sender.outgoing())
            try:
                assert receiver.receive(alter(number, self.flights[-1])) == []
            except runmaker4.WireError as error:
                self.errors += str(error)
                break
        return self.client.authenticated, self.server.authenticated

    def ends(self, number: int) -> tuple[runmaker4.Channel, runmaker4.Channel]:
        """Who sends a flight and who receives it."""
        return (self.client, self.server) if number in (ANSWER, AGREED) else (self.server, self.client)

    def forger(self, from_server: bool) -> Forger:
        """One who can go on in the name of an end, once both are convinced."""
        return Forger(self.flights[GREETING], self.flights[ANSWER], self.client.shared, from_server)

    def directions(self) -> Iterator[tuple[runmaker4.Channel, runmaker4.Channel]]:
        """Sender and receiver, one way and the other."""
        yield self.client, self.server
        yield self.server, self.client


def proven() -> Line:
    """Two ends after their handshake."""
    line = Line()
    assert line.shake() == (True, True)
    return line


def both_ways() -> Iterator[tuple[runmaker4.Channel, runmaker4.Channel]]:
    """Two ends that have just proven themselves, sender and receiver: from the client, and from the server.
    """
    for number in range(2):
        yield list(proven().directions())[number]


def frames_of(sender: runmaker4.Channel, *messages: Message) -> list[bytes]:
    """The frames that these messages become."""
    for message in messages:
        sender.send(message)
    return split(sender.outgoing())


class ChannelCase(unittest.TestCase):
    """Assertions about what a channel makes of bytes."""

    def refuse(self, receiver: runmaker4.Channel, data: bytes, then: bytes = plain(a=1) * 3) -> str:
        """The bytes are refused, and what comes after them, too; what the error says."""
        with self.assertRaises(runmaker4.WireError) as caught:
            receiver.receive(data)
        self.assertEqual(self.received(receiver, then), [])
        return str(caught.exception)

    def received(self, receiver: runmaker4.Channel, *parts: bytes) -> list[Message]:
        """The messages that come out until an error ends it."""
        found: list[Message] = []
        with contextlib.suppress(runmaker4.WireError):
            for part in parts:
                found += receiver.receive(part)
        return found

    def numbered(self, count: int) -> list[Message]:
        return [{"type": "ping", "request": number} for number in range(count)]


class Handshake(ChannelCase):
    """Both ends prove that they know the token; nothing else convinces either of them."""

    def test_the_client_says_nothing_before_the_server(self) -> None:
        self.assertEqual(Line().client.outgoing(), b"")

    def test_an_end_is_convinced_only_by_the_last_byte(self) -> None:
        line = Line()
        for number in FLIGHTS:
            sender, receiver = line.ends(number)
            for byte in sender.outgoing():
                self.assertFalse(receiver.authenticated)
                self.assertEqual(receiver.receive(bytes([byte])), [])
        self.assertEqual((line.client.authenticated, line.server.authenticated), (True, True))

    def test_no_two_channels_say_the_same(self) -> None:
        random.seed(1)                                  # which is of no use to who wants to foretell nonces
        flights = [flight for _ in range(50) for flight in self.again().flights]
        self.assertEqual(len(set(flights)), len(flights))

    def again(self) -> Line:
        """Two ends that are proven, with the module `random` in the same state as for all the others."""
        random.seed(1)
        return proven()

    def test_a_wrong_token_is_refused_and_that_is_said(self) -> None:
        for other in OTHER_TOKEN, "", TOKEN.upper(), TOKEN + "0":
            with self.subTest(token=other):
                line = Line(other)
                self.assertEqual(line.shake(), (False, False))
                self.assertIn("token", self.refuse(line.client, line.server.outgoing()))

    def test_a_server_that_does_not_know_the_token_is_refused(self) -> None:
        public = "2" * 512
        proofs = "", "0" * 64, None, True, ["0" * 64], "\u00e9" * 64, "0" * 63
        for fake in (*(plain(public=public, proof=proof) for proof in proofs), plain(), plain(public=public),
                     plain(proof="0" * 64), plain(runmaker4=1, nonce="0" * 32, proof="0" * 64),
                     plain(type="welcome"), frame(b"{}")):
            with self.subTest(fake=fake):
                convinced = Line().shake(lambda number, data: fake if number == PROOF else data)
                self.assertEqual(convinced, (False, False))

    def test_nobody_computes_a_power_before_the_other_end_has_proved_that_it_knows_the_token(self) -> None:
        with mock.patch.object(runmaker4.Channel, "_make_public", side_effect=AssertionError("a power")):
            line = Line(OTHER_TOKEN)
            self.assertEqual(line.shake(), (False, False))
            self.assertIn("token", line.errors)
            client = Line().client
            client.receive(Line().server.outgoing())
            self.assertIn("token", self.refuse(client, plain(public="2" * 512, proof="0" * 64)))

    def test_a_public_number_whose_powers_are_foreseen_is_refused_also_from_who_knows_the_token(self) -> None:
        for public in 0, 1, PRIME - 1, PRIME, PRIME + 1, 16 ** 512 - 1:
            for sender in "server", "client":
                text = f"{public:0512x}"
                with self.subTest(public=public, sender=sender), mock.patch.object(
                        QuickChannel, "_make_public", lambda end: setattr(end, "my_public", text)):
                    line = Line()
                    line.shake()
                    self.assertIn("no public number", line.errors)

    def test_another_version_is_refused_and_that_is_said(self) -> None:
        for version in "0", "1", "1000000000":
            with self.subTest(version=version):
                line = Line()
                self.assertEqual(line.shake(self.changed(GREETING, "runmaker4", version)), (False, False))
                client = Line().client
                self.assertIn("version", self.refuse(client, plain(runmaker4=int(version), nonce="0" * 32)))
                line = Line()
                self.assertEqual(line.shake(self.changed(ANSWER, "runmaker4", version)), (False, False))
                self.assertIn("version", self.refuse(line.client, line.server.outgoing()))

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
        in_flights = ["runmaker4", "nonce"], ["runmaker4", "nonce", "proof"], *[["public", "proof"]] * 2
        for flight, fields in enumerate(in_flights):
            for field in fields:
                for text in STRANGE + NO_NUMBERS:
                    if (field, text) != ("runmaker4", "true"):      # which Python takes for 1
                        with self.subTest(flight=flight, field=field, text=text):
                            convinced = Line().shake(self.changed(flight, field, text))
                            self.assertEqual(convinced, (flight == AGREED, False))

    def test_a_nonce_is_128_bits_in_hexadecimal(self) -> None:
        """Nothing that a label could be made of, or that is not long enough to be new."""
        for nonce in "", "0", "0" * 31, "0" * 33, "to server " + "0" * 32, "0" * 31 + " ", "0" * 31 + "g":
            with self.subTest(nonce=nonce):
                self.refuse(Line().client, plain(runmaker4=runmaker4.WIRE_VERSION, nonce=nonce))
                with mock.patch.object(secrets, "token_hex", return_value=nonce):
                    client = runmaker4.Channel(TOKEN, False)
                server = runmaker4.Channel(TOKEN, True)
                client.receive(server.outgoing())
                answer = client.outgoing()
                self.assertEqual(read_plain(answer)["nonce"], nonce)
                self.refuse(server, answer)

    def test_no_altered_bit_convinces_anybody(self) -> None:
        for flight in FLIGHTS:
            for at in range(len(proven().flights[flight])):
                for bit in (1, 2, 4, 8, 16, 64, 128):               # 32 makes capitals, which mean the same
                    convinced = Line().shake(lambda number, data: data if number != flight else
                                             data[:at] + bytes([data[at] ^ bit]) + data[at + 1:])
                    self.assertEqual(convinced, (flight == AGREED, False), (flight, at, bit))

    def test_a_replayed_flight_convinces_nobody(self) -> None:
        old = proven().flights
        for flight in FLIGHTS:
            convinced = Line().shake(lambda number, data: old[number] if number == flight else data)
            self.assertEqual(convinced, (flight == AGREED, False), flight)
        self.assertEqual(Line().shake(lambda number, _: old[number]), (False, False))

    def test_reflected_flights_convince_nobody(self) -> None:
        line = Line()
        self.assertEqual(
            line.shake(lambda number, data: line.flights[GREETING] if number == ANSWER else data),
            (False, False),
        )
        line = Line()
        self.assertEqual(line.shake(lambda number, data: line.flights[ANSWER] if number == PROOF else data),
                         (False, False))
        line = Line()
        self.assertEqual(line.shake(lambda number, data: line.flights[PROOF] if number == AGREED else data),
                         (True, False))

    def test_a_clients_proof_is_no_servers_proof(self) -> None:
        first, second = Line().client, Line().client
        first.receive(Line().server.outgoing())
        answer = read_plain(first.outgoing())
        second.receive(plain(runmaker4=runmaker4.WIRE_VERSION, nonce=answer["nonce"]))
        for proof in answer["proof"], read_plain(second.outgoing())["proof"]:
            client = Line().client
            client.receive(plain(runmaker4=runmaker4.WIRE_VERSION, nonce=answer["nonce"]))
            client.outgoing()
            self.refuse(client, plain(public="2" * 512, proof=proof))
        self.refuse(first, plain(public="2" * 512, proof=answer["proof"]))

    def test_a_refusal_from_the_other_end_is_an_error_whatever_it_says(self) -> None:
        texts: list[object] = ["wrong token", "", "a\nb\x1b[2J", "\ud800", 5, None, [], {}, "x" * 900]
        for text in texts:
            for number in range(2):
                with self.subTest(text=text, number=number):
                    line = Line()
                    if number:
                        line.client.receive(line.server.outgoing())
                    self.refuse(line.client, plain(error=text))
                    self.refuse(Line().server, plain(error=text))

    def test_a_message_before_the_proof_is_refused(self) -> None:
        line = proven()
        early = frames_of(line.client, *self.numbered(1))[0]
        self.assertEqual(self.received(Line().server, early, plain(type="ping", request=1)), [])
        self.refuse(Line().server, plain(type="ping", request=1))
        self.refuse(Line().client, plain(type="pong", request=1))


class Messages(ChannelCase):
    """Between proven ends every message arrives as it was sent, in whatever pieces."""

    def test_all_bytes_go_through_both_ways(self) -> None:
        texts = [
            bytes(range(256)).decode("utf-8", "surrogateescape"),
            *map(chr, range(0xDC80, 0xDD00)),
            "\0",
            "",
            "\u00e9\u20ac\U0001f600",
            "\ud800",
            "\udfff",
            "\udc80\ud800x",
            "\u2028\x7f\x1b[0m",
            "\\\"/\b\f\n\r\t",
        ]
        for sender, receiver in both_ways():
            for text in texts:
                message: Message = {"a": text, text: [-1, 2 ** 53, -1e-9, True, None, {"b": [[], {}]}]}
                self.assertEqual(receiver.receive(b"".join(frames_of(sender, message))), [message])

    def test_random_messages_in_random_pieces_come_in_order(self) -> None:
        random_ = random.Random(20)
        for sender, receiver in both_ways():
            messages = [
                {"data": "x" * random_.choice([0, 1, 50, 3000]), "n": number} for number in range(300)
            ]
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

    def test_outgoing_bytes_are_given_once(self) -> None:
        for sender, _ in both_ways():
            sender.send({"type": "ping"})
            self.assertNotEqual(sender.outgoing(), b"")
            self.assertEqual(sender.outgoing(), b"")


class Forgeries(ChannelCase):
    """Nobody without the token gets a message in, out of its place, or in twice."""

    def three(self, sender: runmaker4.Channel) -> list[bytes]:
        return frames_of(sender, *self.numbered(3))

    def test_a_frame_without_its_mac_is_refused(self) -> None:
        body = json.dumps(self.numbered(1)[0]).encode()
        for fake in (frame(body) + bytes(MAC), frame(body)[:LENGTH] + bytes(MAC) + body,
                     frame(body)[:LENGTH] + hashlib.sha256(body).digest() + body):
            for _, receiver in both_ways():
                self.refuse(receiver, fake)

    def test_no_altered_bit_gets_in(self) -> None:
        size = len(self.three(proven().client)[0])
        for at in range(size):
            for bit in range(8):
                for sender, receiver in both_ways():
                    first, *others = self.three(sender)
                    altered = first[:at] + bytes([first[at] ^ 1 << bit]) + first[at + 1:]
                    self.assertEqual(self.received(receiver, altered, *others), [], (at, bit))

    def test_the_macs_are_those_of_the_protocols_table(self) -> None:
        for from_server in False, True:
            line = proven()
            forger = line.forger(from_server)
            sender, receiver = list(line.directions())[from_server]
            for message, genuine in zip(self.numbered(2), self.three(sender)):
                self.assertEqual(forger.frame(runmaker4.encode(message)), genuine)
            self.assertEqual(receiver.receive(line.forger(from_server).frame(b'{"a": 1}')), [{"a": 1}])


class Sizes(ChannelCase):
    """A frame has a length that a stranger cannot make large, and nobody endless."""
    TOO_LONG = (1, 2, 1000, 1 << 16)

    def lengths(self, most: int) -> Sequence[int]:
        return [*(most + more for more in self.TOO_LONG), 1 << 31, (1 << 32) - 1]

    def test_before_the_proof_a_kilobyte_at_the_most(self) -> None:
        for length in self.lengths(UNPROVEN):
            for end in Line().client, Line().server:
                self.refuse(end, length.to_bytes(4, "big"))         # not one byte more has to come

    def test_a_whole_kilobyte_is_taken(self) -> None:
        line = Line()
        self.assertEqual(line.shake(lambda _, data: frame(data[LENGTH:].ljust(UNPROVEN))), (True, True))

    def test_after_the_proof_a_megabyte_at_the_most(self) -> None:
        for length in self.lengths(PROVEN):
            for _, receiver in both_ways():
                self.refuse(receiver, length.to_bytes(4, "big"))

    def test_a_whole_megabyte_goes_through_and_no_more_is_sent(self) -> None:
        around = len(frames_of(proven().client, {"data": ""})[0]) - LENGTH - MAC
        for sender, receiver in both_ways():
            message = {"data": "x" * (PROVEN - around)}
            self.assertEqual(receiver.receive(frames_of(sender, message)[0]), [message])
            with self.assertRaises(ValueError):
                sender.send({"data": message["data"] + "x"})

    def test_the_limit_of_strangers_ends_with_the_proof(self) -> None:
        line = Line()
        for number in (GREETING, ANSWER, PROOF):
            sender, receiver = line.ends(number)
            receiver.receive(sender.outgoing())
        line.client.send({"data": "x" * 5000})
        self.assertEqual(line.server.receive(line.client.outgoing()), [{"data": "x" * 5000}])

    def test_a_channel_keeps_no_more_than_a_frame(self) -> None:
        line = proven()
        message = {"data": "x" * (PROVEN - 100)}
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for _ in range(8):
            for part in frames_of(line.client, message):
                half = len(part) // 2
                self.assertEqual(line.server.receive(part[:half]), [])
                self.assertEqual(len(line.server.receive(part[half:])), 1)
        self.assertLess(tracemalloc.get_traced_memory()[0], 4 * PROVEN)
        self.assertLess(tracemalloc.get_traced_memory()[1], 12 * PROVEN)


class Contents(ChannelCase):
    """A frame that is no JSON object is refused, also from somebody who knows the token."""

    REFUSED = (
        *NO_OBJECTS,
        *NO_JSON,
        *(f'{{"type": "ping", "request": {text}}}'.encode() for text in NO_NUMBERS),
    )
    DEEP = (b"[" * 200_000, b"[" * 200_000 + b"]" * 200_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
            b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}")

    def test_after_the_proof(self) -> None:
        for body in self.REFUSED + self.DEEP:
            for from_server in False, True:
                with self.subTest(body=body[:80], from_server=from_server):
                    line = proven()
                    forger, (_, receiver) = line.forger(from_server), list(line.directions())[from_server]
                    self.assertEqual(receiver.receive(forger.frame(b'{"a": 1}')), [{"a": 1}])
                    self.refuse(receiver, forger.frame(body), then=forger.frame(b'{"a": 1}'))

    def test_strange_texts_and_numbers_are_handed_on_as_they_are(self) -> None:
        for text in STRANGE:
            for from_server in False, True:
                line = proven()
                forger, (_, receiver) = line.forger(from_server), list(line.directions())[from_server]
                self.assertEqual(receiver.receive(forger.frame(f'{{"data": {text}}}'.encode())),
                                 [{"data": json.loads(text)}])


def pi_times(power: int) -> int:
    """The whole part of 2^power times pi, by Machin's formula."""
    one = 1 << power + 64

    def arctan(divisor: int) -> int:
        term, total, odd = one // divisor, 0, 1
        while term:
            total += term // odd if odd % 4 == 1 else -(term // odd)
            term, odd = term // divisor ** 2, odd + 2
        return total
    return 4 * (4 * arctan(5) - arctan(239)) >> 64


class Vectors(ChannelCase):
    """Numbers that were computed by hand from the table of the protocol: another end that follows it fits."""
    NONCES = {True: "a" * 32, False: "b" * 32}          # of the server, of the client
    EXPONENTS = {True: 2 ** 255 + 12345, False: 2 ** 255 + 67890}
    MESSAGE = {"type": "ping", "request": 7}
    AGREED_PROOF = "ae00138fb0f67ed97ed14919525a46d966742d7b958abad477b5c83a18363d1c"
    FRAMES = ("0000001b17de553d3e6b20d6c97c58976d16a12cba2c3c85d47bc81cfb9a8b50aac98464"
              "16623df2ddfe2146a76106dbd25b48f14e8195c19ca9bf174c4530",
              "0000001b5d7a85c7ba147ac30d912dab8665e25bfddc9ad6b122bc8d9129cd0b2acc5200"
              "7ffc6de1132ddfc90af87dc6b2de44145d9f25967c1bb47bf07c04")

    def test_the_modulus_is_that_of_rfc_3526(self) -> None:
        """Group 14: 2^2048 - 2^1984 - 1 + 2^64 * ([2^1918 pi] + 124476)."""
        self.assertEqual(PRIME, 2 ** 2048 - 2 ** 1984 - 1 + 2 ** 64 * (pi_times(1918) + 124476))

    def end(self, server: bool) -> runmaker4.Channel:
        """An end, as it is, that draws these numbers."""
        with mock.patch.object(secrets, "token_hex", return_value=self.NONCES[server]):
            return runmaker4.Channel(TOKEN, server)

    def test_a_session(self) -> None:
        client, server = self.end(False), self.end(True)
        flights = []
        for receiver, sender in ((client, server), (server, client)) * 2:
            drawn = self.EXPONENTS[receiver.server] - 2 ** 255
            with mock.patch.object(secrets, "randbits", lambda bits: {256: drawn}[bits]):
                flights.append(sender.outgoing())
                receiver.receive(flights[-1])
        agreed = read_plain(flights[AGREED])
        self.assertEqual(agreed["proof"], self.AGREED_PROOF)
        for number in range(2):
            client.send(self.MESSAGE)
            sealed = client.outgoing()
            self.assertEqual(sealed.hex(), self.FRAMES[number])
            self.assertEqual(server.receive(sealed), [self.MESSAGE])


class Numbers(unittest.TestCase):
    """A number that could not be is refused, whatever it is of."""

    def test_each_kind_has_its_bounds(self) -> None:
        kinds = {"whole": 1 << 62, "process": (1 << 31) - 1, "seconds": 1e11, "seconds_or_none": 1e11}
        for kind, most in kinds.items():
            for value in 0, most:
                self.assertEqual(getattr(runmaker4.Message({"a": value}), kind)("a"), value)
            large = 10 ** 18 if kind != "whole" else 10 ** 19
            wrong: list[object] = [-1, -1e-9, most + 1, 1e308, "1", True, [], large]
            for bad in wrong:
                with self.subTest(kind=kind, value=bad), self.assertRaises(runmaker4.WireError):
                    getattr(runmaker4.Message({"a": bad}), kind)("a")
        self.assertIsNone(runmaker4.Message({"a": None}).seconds_or_none("a"))

    def test_so_have_numbers_in_lists(self) -> None:
        self.assertEqual(runmaker4.Message({"a": [0, 1 << 62]}).items("a", int), [0, 1 << 62])
        for value in -1, (1 << 62) + 1, True, 1.0:
            with self.subTest(value=value), self.assertRaises(runmaker4.WireError):
                runmaker4.Message({"a": [1, value]}).items("a", int)


class Secrecy(ChannelCase):
    """The token leaves an end in no form; what is compared with a secret is compared in constant time.

    Nor is anything that is said readable on the wire.
    """

    def test_nothing_that_is_said_is_on_the_wire(self) -> None:
        for sender, _ in both_ways():
            for text in "secret", "x" * 1000, "\0" * 1000:
                first, second = frames_of(sender, *[{"type": "output", "data": text}] * 2)
                for sealed in first, second:
                    self.assertNotIn(b"output", sealed)
                    self.assertNotIn(text[:6].encode(), sealed)
                    self.assertLess(sealed.count(sealed[-1:]), 20 + len(sealed) // 64)
                self.assertNotEqual(first[LENGTH + MAC:], second[LENGTH + MAC:])
        frames = [frames_of(sender, {"a": "x" * 60})[0][LENGTH + MAC:] for line in (proven(), proven())
                  for sender, _ in line.directions()]
        self.assertEqual(len({one[:8] for one in frames}), len(frames), "a key is used twice")

    def test_who_learns_the_token_later_cannot_read_what_was_said(self) -> None:
        """Nothing that was sent, nor what is left in an end, has what the keys were made of."""
        line = proven()
        self.assertEqual((line.client.exponent, line.server.exponent), (0, 0))
        seen = b"".join(line.flights)
        self.assertNotIn(f"{line.client.shared:0512x}".encode(), seen)

    def test_nothing_but_a_comparison_in_constant_time_decides(self) -> None:
        with mock.patch("hmac.compare_digest", return_value=True):
            line = Line(OTHER_TOKEN)
            self.assertEqual(line.shake(), (True, True), "a proof is compared in another way")
            for sender, receiver in both_ways():
                one = frames_of(sender, {"a": 1})[0]
                self.assertEqual(receiver.receive(one[:LENGTH] + bytes(MAC) + one[LENGTH + MAC:]), [{"a": 1}])
        for sender, receiver in both_ways():
            with mock.patch("hmac.compare_digest", return_value=False):
                self.refuse(receiver, frames_of(sender, {"a": 1})[0])


class Fuzz(ChannelCase):
    """Whatever bytes come, at either end: messages that were sent, in their order, or a WireError; nothing
    else.
    """

    def check(self, seed: int, share: float, attack: Callable[[random.Random], None]) -> None:
        random_ = random.Random(seed)
        for number in range(int(ROUNDS * share)):
            state = random_.getstate()
            try:
                attack(random_)
            except Exception as error:
                raise AssertionError(
                    f"round {number} of seed {seed}, state {hash(state)}: {error!r}"
                ) from error

    def feed(self, random_: random.Random, receiver: runmaker4.Channel, data: bytes) -> list[Message]:
        return self.received(receiver, *pieces(random_, data, random_.choice([2, 40, 4000])))

    def a_stranger(self, random_: random.Random, steps: int = 3) -> tuple[Line, runmaker4.Channel]:
        """An end at a random point of its handshake, of which the other end has not proven anything."""
        line = Line()
        for number in range(random_.randrange(steps)):
            sender, receiver = line.ends(number)
            receiver.receive(sender.outgoing())
        return line, random_.choice([line.client, line.server])

    def test_random_bytes_and_objects_from_strangers(self) -> None:
        def attack(random_: random.Random) -> None:
            _, end = self.a_stranger(random_)
            data = b"".join(
                random_.choice([random_.randbytes(random_.randrange(80)), frame(garbage(random_).encode())])
                for _ in range(3)
            )
            before = end.authenticated
            self.assertEqual(self.feed(random_, end, data), [])
            self.assertEqual(end.authenticated, before)
        self.check(21, 0.3, attack)

    def test_mutilated_handshakes(self) -> None:
        def attack(random_: random.Random) -> None:
            flight = random_.choice(FLIGHTS)
            line = Line()
            mutilated = b""

            def alter(number: int, data: bytes) -> bytes:
                nonlocal mutilated
                if number == flight:
                    mutilated = data = mutilate(random_, data)
                return data
            convinced = line.shake(alter)
            if not mutilated.lower().startswith(line.flights[flight].lower()):      # capitals mean the same
                self.assertFalse(convinced[flight in (ANSWER, AGREED)], mutilated)
        self.check(22, 0.2, attack)

    def test_mutilated_sessions(self) -> None:
        def attack(random_: random.Random) -> None:
            sender, receiver = random_.choice(list(proven().directions()))
            messages = [random_.choice(FROM_CLIENT + FROM_SERVER) for _ in range(random_.randrange(1, 5))]
            frames = frames_of(sender, *messages)
            ways: list[Callable[[], None]] = [lambda: None, lambda: random_.shuffle(frames)]
            random_.choice(ways)()
            data = b"".join(frames)
            found = self.feed(random_, receiver, mutilate(random_, data))
            self.assertEqual(found, messages[:len(found)])
        self.check(23, 0.3, attack)

    def test_garbage_from_somebody_who_knows_the_token(self) -> None:
        def attack(random_: random.Random) -> None:
            line = proven()
            from_server = random_.random() < 0.5
            forger, (_, receiver) = line.forger(from_server), list(line.directions())[from_server]
            texts = [spoiled(random_, *random_.choice(FIELDS)) for _ in range(3)]
            bodies = [
                random_.choice([text.encode("utf-8", "surrogatepass"), mutilate(random_, text.encode())])
                for text in texts
            ]
            for message in self.feed(random_, receiver, b"".join(map(forger.frame, bodies))):
                self.assertIsInstance(message, dict)
                json.dumps(message, allow_nan=False)
        self.check(24, 0.2, attack)


class Ended(unittest.IsolatedAsyncioTestCase):
    """An end that sends nothing more still hears what the other has to say."""

    async def test_who_says_who_he_is_after_the_end_gets_no_answer(self) -> None:
        line = Line()
        transport = mock.Mock(is_closing=lambda: False, get_write_buffer_size=lambda: 0)
        link = runmaker4.Link(line.server, asyncio.get_running_loop())
        link.connection_made(transport)
        for _ in range(2):                              # until it says the last thing that the link must know
            line.client.receive(transport.write.call_args[0][0])
            if not line.client.authenticated:
                link.data_received(line.client.outgoing())
        link.end()
        transport.write.side_effect = RuntimeError("Cannot call write() after write_eof()")
        with mock.patch.multiple(link, authenticated=mock.DEFAULT, handled=mock.DEFAULT) as called:
            link.data_received(line.client.outgoing())
        self.assertTrue(called["authenticated"].called)
        transport.write_eof.assert_called_once_with()
