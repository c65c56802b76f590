"""Transcripts: encodings and cues."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.data.cues import pieces_of
from worker.data.transcripts import Cue, TranscriptError, cues_of, decoded, utterance


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_every_unicode_encoding_is_read(encoding):
    assert utterance("Grüße aus Köln, Dr. Müller.\n".encode(encoding)) == "Grüße aus Köln, Dr. Müller."


def test_another_encoding_is_refused_with_the_place():
    with pytest.raises(TranscriptError, match=r"byte 0xfc in line 2\). Save it as UTF-8") as refused:
        utterance("Grob\nGrün".encode("latin-1"))
    assert refused.value.code == "unreadable_transcript"


@pytest.mark.parametrize("data", [b"", b"  \n\t", b"...", b"\xef\xbb\xbf", "♪ - !".encode()])
def test_a_transcript_without_words_is_empty(data):
    with pytest.raises(TranscriptError) as refused:
        utterance(data)
    assert refused.value.code == "empty_transcript"


@pytest.mark.parametrize("data", [b"RIFF\x01\x02\x03WAVE", b"\x7fELF\x02\x01", b"a\0b"])
def test_something_else_than_text_is_refused(data):
    with pytest.raises(TranscriptError) as refused:
        decoded(data)
    assert refused.value.code == "unreadable_transcript"


def test_lines_of_a_text_become_one_utterance_in_composed_letters():
    assert utterance("one\r\n  two\u00a0three\n\nCafe\u0301".encode()) == "one two three Café"


VTT = """\ufeffWEBVTT - a talk
Kind: captions

STYLE
::cue { color: lime }

NOTE not spoken --- at all

intro
00:01.000 --> 00:03.500 align:start position:0%
<v Ada>Good <i>morning</i> &amp; welcome.

00:00:04,000 --> 00:00:06,000
- Thank you.

00:00:07.000 --> 00:00:08.000
[Music]

00:00:09.000 --> 00:00:10.000
(applause)
"""


def test_vtt_gives_what_is_said_when_and_by_whom():
    cues, faults = cues_of(VTT.encode())
    assert faults == []
    assert [(cue.start_ms, cue.end_ms, cue.text, cue.speaker) for cue in cues] == [
        (1000, 3500, "Good morning & welcome.", "Ada"),
        (4000, 6000, "Thank you.", None),
    ]


def test_srt_is_read_with_windows_line_ends_and_missing_empty_lines():
    srt = "1\r\n00:00:01,000 --> 00:00:02,000\r\nOne\r\n2\r\n00:00:02,000 --> 00:00:03,5\r\n{\\an8}<b>Two</b>\r\n"
    cues, faults = cues_of(srt.encode())
    assert faults == []
    assert [(cue.start_ms, cue.end_ms, cue.text) for cue in cues] == [(1000, 2000, "One"), (2000, 3500, "Two")]


def test_a_bad_cue_costs_itself_only():
    cues, faults = cues_of(
        b"WEBVTT\n\n00:05.000 --> 00:04.000\nbackwards\n\n-1:00 --> 00:03.000\nnegative\n\n"
        b"00:01.000 --> 00:02.000\ngood\n\n00:02.000 --> tomorrow\nnever\n"
    )
    assert [cue.text for cue in cues] == ["good"]
    assert [(fault.line, fault.code) for fault in faults] == [(3, "bad_cue"), (6, "bad_cue"), (12, "bad_cue")]


def test_cues_out_of_order_are_put_in_order():
    cues, _ = cues_of(b"WEBVTT\n\n00:05.000 --> 00:06.000\nsecond\n\n00:01.000 --> 00:02.000\nfirst\n")
    assert [cue.text for cue in cues] == ["first", "second"]


def test_scrolling_captions_say_each_line_once():
    vtt = """WEBVTT

00:00:00.000 --> 00:00:02.000

hello there

00:00:02.000 --> 00:00:02.010
hello there

00:00:02.010 --> 00:00:04.000
hello there
how are you

00:00:04.000 --> 00:00:04.010
how are you

00:00:04.010 --> 00:00:06.000
how are you
fine
"""
    cues, _ = cues_of(vtt.encode())
    assert [cue.text for cue in cues] == ["hello there", "how are you", "fine"]


@pytest.mark.parametrize(
    ("cue", "said", "speaker"),
    [
        ("<v Ada>Hello", "Hello", "Ada"),
        ("<v.loud.first  Ada Lovelace>Hello</v>", "Hello", "Ada Lovelace"),
        ("<v &lt;Ada&gt;>Hello", "Hello", "<Ada>"),
        ("<v.<v.<v Ada>Hello", "<v.<v.Hello", "Ada"),
        ("<v Ada>Hello <v Bob>you", "Hello you", None),
        ("<v>Hello", "Hello", None),
        ("a &amp; b &#65; &#x42;", "a & b A B", None),
        (f"a &#{'9' * 5000}; b &#x{'f' * 5000}; c", "a \ufffd b \ufffd c", None),
        ("&#0000065; or &#00000065;", "A or \ufffd", None),
    ],
)
def test_mark_up_and_references_are_read_as_written(cue, said, speaker):
    [found], faults = cues_of(f"WEBVTT\n\n00:01.000 --> 00:02.000\n{cue}\n".encode())
    assert (found.text, found.speaker, faults) == (said, speaker, [])


def test_a_cue_that_nobody_can_say_costs_itself_only():
    timing = "00:01.000 --> 00:02.000"
    cues, faults = cues_of(
        f"WEBVTT\n\n{timing}\n{'<b>' * 7000}\n\n{timing}\n{'x' * 10_001}\n\n{timing}\ngood\n".encode()
    )
    assert [cue.text for cue in cues] == ["good"]
    assert [(fault.line, fault.code) for fault in faults] == [(3, "transcript_too_long"), (6, "transcript_too_long")]
    assert faults[1].sentence == "The cue in line 6 has 10,001 characters; at most 10,000 are read."


def test_cues_that_cannot_be_used_count_as_cues():
    with pytest.raises(TranscriptError) as refused:
        cues_of(b"-->\n" * 100_001)
    assert refused.value.code == "transcript_too_large"


def test_a_text_that_is_no_utterance_says_what_to_do():
    assert utterance(b" \n" * 50_000 + b"a" + b" \n" * 50_000) == "a"
    with pytest.raises(TranscriptError, match=r"has 10,001 characters; .* give a \.vtt or \.srt") as refused:
        utterance(b"a" * 10_001)
    assert refused.value.code == "transcript_too_long"


def test_a_word_really_said_twice_stays_twice():
    cues, _ = cues_of(b"WEBVTT\n\n00:01.000 --> 00:02.000\nNo.\n\n00:02.000 --> 00:03.000\nNo.\n")
    assert [cue.text for cue in cues] == ["No.", "No."]


def test_a_file_without_cues_is_empty():
    with pytest.raises(TranscriptError) as refused:
        cues_of(b"WEBVTT\n\njust some words\n")
    assert refused.value.code == "empty_transcript"


def test_too_many_cues_are_refused():
    many = b"WEBVTT\n\n" + b"".join(
        b"00:00:%02d.000 --> 00:00:%02d.500\nx\n\n" % (n % 59, n % 59) for n in range(100_002)
    )
    with pytest.raises(TranscriptError) as refused:
        cues_of(many)
    assert refused.value.code == "transcript_too_large"


@given(st.binary(max_size=400))
def test_no_bytes_break_the_reader(data):
    try:
        cues, _ = cues_of(b"WEBVTT\n\n" + data)
    except TranscriptError:
        return
    assert all(cue.end_ms > cue.start_ms for cue in cues)


def cue(start_s: float, end_s: float, text: str = "words", speaker: str | None = None) -> Cue:
    return Cue(round(start_s * 1000), round(end_s * 1000), text, speaker, 1)


def spans(pieces):
    return [(piece.start_ms / 1000, piece.end_ms / 1000) for piece in pieces]


def test_short_cues_join_until_a_sentence_ends_after_eight_seconds():
    cues = [cue(0, 3, "We went"), cue(3, 6, "home. Then"), cue(6, 9, "we slept."), cue(9, 12, "A new day.")]
    pieces, faults = pieces_of(cues, 30)
    assert faults == []
    assert spans(pieces) == [(0, 9), (9, 12)]
    assert pieces[0].text == "We went home. Then we slept."


def test_without_full_stops_a_segment_ends_after_twenty_seconds():
    pieces, _ = pieces_of([cue(4 * n, 4 * n + 4) for n in range(10)], 30)
    assert spans(pieces) == [(0, 20), (20, 40)]


def test_a_long_pause_and_another_speaker_end_a_segment():
    pieces, _ = pieces_of([cue(0, 2, speaker="A"), cue(2, 4, speaker="B"), cue(7, 8, speaker="B")], 30)
    assert [(piece.start_ms, piece.speaker) for piece in pieces] == [(0, "A"), (2000, "B"), (7000, "B")]


def test_a_segment_is_never_longer_than_allowed_and_a_longer_cue_is_refused():
    pieces, faults = pieces_of([cue(0, 15), cue(15, 29), cue(29, 60), cue(60, 89)], 30)
    assert spans(pieces) == [(0, 29), (60, 89)]
    assert [fault.code for fault in faults] == ["too_long"]
    assert "lasts 31 s" in faults[0].sentence


def test_overlapping_cues_are_never_cut_apart():
    pieces, faults = pieces_of([cue(0, 10), cue(8, 21), cue(20, 31), cue(31, 35)], 30)
    assert spans(pieces) == [(31, 35)]
    assert "3 overlapping cues" in faults[0].sentence
    assert spans(pieces_of([cue(0, 10, "a."), cue(8, 12, "b."), cue(12, 14)], 30)[0]) == [(0, 12), (12, 14)]


def test_the_same_cue_twice_is_said_once():
    pieces, _ = pieces_of([cue(1, 3, "once"), cue(1, 3, "once")], 30)
    assert [piece.text for piece in pieces] == ["once"]


@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 45_000)), max_size=40))
def test_whatever_the_cues_segments_are_short_ordered_and_lose_nothing_in_silence(times):
    cues = sorted(
        (Cue(start, start + length, f"w{n}.", None, n) for n, (start, length) in enumerate(times)),
        key=lambda one: (one.start_ms, one.end_ms, one.line),
    )
    pieces, faults = pieces_of(cues, 30)
    assert all(0 < piece.end_ms - piece.start_ms <= 30_000 for piece in pieces)
    assert [piece.start_ms for piece in pieces] == sorted(piece.start_ms for piece in pieces)
    words = " ".join(piece.text for piece in pieces).split()
    assert len(words) == len(set(words))
    assert len(words) + len(faults) >= bool(cues)
    if not faults:
        assert len(words) == len(cues)
