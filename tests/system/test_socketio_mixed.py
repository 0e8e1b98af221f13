"""Users of the plain dialect and of Socket.IO, by each library and transport, in one room."""

from __future__ import annotations

from clients import Clients
from commands import Command
from counts import count
from socketio_players import LIBRARIES, Players

SERVE = ["serve", "--host=127.0.0.1", "--port=0", "--log-file="]
PLAIN = [f"plain-{number}" for number in range(8)]
# These for each of three libraries: twelve, and twenty in all.
TRANSPORTS = ["default", "websocket", "polling", "polling"]
ROOM_SIZE = 20
ACKS_OF_A_ROUND = ROOM_SIZE
EVENTS_OF_A_ROUND = ROOM_SIZE - 1 + ROOM_SIZE


class PlayedUser:
    """A Socket.IO client whose share of the ledger is taken from what it heard.

    python-socketio's `Client` handles each event in a thread of its own, in any order: what it heard is
    put in order, and counts once a round of the test is complete.
    """

    def __init__(self, ledger, player):
        self.ledger = ledger
        self.player = player
        self.life = ledger.begin(player.user_id, stays=True)
        self._events = self._acks = 0
        self._tells_order = player.players.library != "threads"

    @property
    def user_id(self):
        return self.life.user_id

    def send_event(self, to_users):
        event = self.ledger.send(self.life, to_users)
        self.player.send_event(to_users, f"{event.number} ")

    def note(self):
        """Take what it heard since into the ledger. An ack as an event has no id: they come in order."""
        events = self.player.of("collab_event")[self._events :]
        acks = self.player.of("event_ack")[self._acks :]
        if not self._tells_order:
            if (len(events), len(acks)) != (EVENTS_OF_A_ROUND, ACKS_OF_A_ROUND):
                return
            events.sort(key=lambda event: int(event["data"]))
            acks.sort(key=lambda ack: ack["total_recipients"])
        for event in events:
            self._events += 1
            self.ledger.receive(self.life, int(event["data"].split()[0]), {"data": event})
        for ack in acks:
            sent = self.life.sent[self._acks]
            self._acks += 1
            self.ledger.acknowledge(self.life, {"id": sent.number, "data": ack})


def test_every_pair_in_a_mixed_room_of_20_exchanges_events_in_order(tmp_path):
    all_players = [Players(library) for library in LIBRARIES]
    try:
        with Command(tmp_path, *SERVE) as command, Clients(command.address()) as clients:
            play(clients, all_players)
    finally:
        for players in all_players:
            players.close()


def play(clients, all_players):
    host, port = clients.address
    room = [*clients.connect(PLAIN, stays=True)]
    played = []
    for players in all_players:
        for number, transports in enumerate(TRANSPORTS):
            user_id = f"{players.library}-{transports}-{number}"
            player = players.connect(f"http://{host}:{port}", user_id, transports=transports)
            player.hear("connected")
            played.append(PlayedUser(clients.ledger, player))
    room += played
    assert len(room) == ROOM_SIZE
    rounds = count(2, 20)
    for _ in range(rounds):
        # One event for each pair, everybody at once; then one for everybody, oneself included.
        for step in range(1, len(room)):
            for place, sender in enumerate(room):
                sender.send_event([room[(place + step) % len(room)].user_id])
        for sender in room:
            sender.send_event([user.user_id for user in room])
        clients.until(lambda: all_settled(clients, played))
    clients.ledger.check()
    events = clients.ledger.events.values()
    assert len(events) == rounds * len(room) * len(room)
    assert not [event.number for event in events if event.undelivered]
    assert all(event.reached == event.recipients for event in events)
    transports = {user.player.state()["transport"] for user in played}
    assert transports == {"polling", "websocket"}


def all_settled(clients, played):
    for user in played:
        user.note()
    return clients.acknowledged() and all(
        event.undelivered is not None and event.reached == event.recipients
        for event in clients.ledger.events.values()
    )
