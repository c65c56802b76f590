"""Event lines between trainer and owner."""

from schemas.events import LONGEST_LINE, Checkpoint, Metric, Progress, Result, encode
from worker.launchers.event_stream import EventStream


async def drained(stream: EventStream):
    stream.close()
    return [event async for event in stream.events()]


def test_what_is_no_number_is_a_gap_in_its_curve_and_no_garbage():
    stream = EventStream()
    for value in ("NaN", "Infinity", "-Infinity", "null"):
        stream.push(b'{"event":"metric","name":"loss","value":%s,"steps_done":3}\n' % value.encode())
    stream.push(b'{"event":"progress","percent":1,"eta_s":Infinity,"audio_s":NaN}\n')
    *points, progress = stream._waiting
    assert [point.value for point in points] == [None] * 4
    assert (progress.eta_s, progress.audio_s, stream.garbage_lines) == (None, None, 0)


def test_steps_that_no_row_could_hold_are_garbage():
    stream = EventStream()
    stream.push(b'{"event":"metric","name":"loss","value":0.0,"steps_done":2147483648}\n')
    assert (stream.garbage_lines, len(stream._waiting)) == (1, 0)


async def test_events_cut_anywhere_arrive_whole():
    events = [Progress(percent=1), Metric(name="ü", value=2), Result(figures={"a": "ö"})]
    stream = EventStream()
    for byte in b"".join(encode(event) for event in events):
        stream.push(bytes([byte]))
    assert await drained(stream) == events
    assert stream.last_word == events[-1]


async def test_line_of_the_greatest_length_passes_and_one_byte_more_does_not():
    empty = len(encode(Result(figures={"a": ""})))
    longest = encode(Result(figures={"a": "x" * (LONGEST_LINE - empty)}))
    assert len(longest) == LONGEST_LINE
    stream = EventStream()
    stream.push(longest)
    stream.push(longest.replace(b"x", b"xx", 1))
    stream.push(longest)
    assert len(await drained(stream)) == 2
    assert stream.garbage_lines == 1


async def test_over_long_line_in_pieces_is_one_garbage_line():
    stream = EventStream()
    for _ in range(10):
        stream.push(b"x" * 30_000)
    stream.push(b"x\n" + encode(Progress(percent=3)))
    assert await drained(stream) == [Progress(percent=3)]
    assert stream.garbage_lines == 1


async def test_pressure_drops_progress_and_metrics_but_nothing_else():
    stream = EventStream()
    kept = [Checkpoint(path=f"c{n}", sha256="0", bytes=1, steps_done=n) for n in range(20)]
    for checkpoint in kept:
        stream.push(encode(Progress(percent=1)) * 100)
        stream.push(encode(Metric(name="loss", value=1)) * 100)
        stream.push(encode(checkpoint))
    events = await drained(stream)
    assert [event for event in events if isinstance(event, Checkpoint)] == kept
    assert stream.dropped == 4000 - (len(events) - 20)
    assert len(events) < 300


async def test_flood_of_what_must_not_be_dropped_asks_the_reader_to_wait():
    stream = EventStream()
    line = encode(Checkpoint(path="c", sha256="0", bytes=1, steps_done=1))
    while not stream.full:
        stream.push(line)
    events = stream.events()
    await anext(events)
    assert not stream.full


async def test_line_cut_off_by_the_trainers_death_is_no_garbage():
    stream = EventStream()
    stream.push(b'{"event":"progr')
    assert await drained(stream) == []
    assert stream.garbage_lines == 0
