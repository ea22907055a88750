"""How much of everything: in full for `make chaos`, and a little of each for ordinary test runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """Counts of each phase.

    Attributes:
        asks: seeded requests whose answers are known.
        storm_streams: at once, against a queue of `storm_queue`.
        storm_queue: see above.
        storm_s: seconds for which they come again and again.
        disconnects: clients that leave at a random moment.
        slow_readers: clients that read little, late or never.
        half_bodies: clients that send half of what they announce.
        prefill_aborts: clients that leave while their long prompt is computed.
        kills: of the engine, under load.
        stops: of the engine, without an end; first while it works, then while it rests.
        kill_streams: open at each of these.
        drain_streams: open when the server is told to end.
        faults: raised between the parts of the engine, one at a time.
        hostile: requests that nobody should send.
        batch_lines: of a batch whose server is killed.
        batch_kills: how often.
        stream_records: through a command between two pipes.
        soak_s: seconds of mixed traffic.
    """

    asks: int = 12
    storm_streams: int = 500
    storm_queue: int = 32
    storm_s: float = 15.0
    disconnects: int = 2000
    slow_readers: int = 200
    half_bodies: int = 200
    prefill_aborts: int = 100
    kills: int = 10
    stops: int = 2
    kill_streams: int = 16
    drain_streams: int = 64
    faults: int = 400
    hostile: int = 20_000
    batch_lines: int = 2000
    batch_kills: int = 5
    stream_records: int = 10_000
    soak_s: float = 120.0


FULL = Sizes()
SHORT = Sizes(
    asks=6,
    storm_streams=60,
    storm_queue=4,
    storm_s=1.0,
    disconnects=40,
    slow_readers=4,
    half_bodies=8,
    prefill_aborts=8,
    kills=1,
    stops=1,
    kill_streams=4,
    drain_streams=16,
    faults=48,
    hostile=200,
    batch_lines=60,
    batch_kills=1,
    stream_records=200,
    soak_s=1.0,
)
