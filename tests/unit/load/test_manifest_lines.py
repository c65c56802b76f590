"""Lines of a customer's manifest."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.data.manifest_lines import LONGEST_LINE, LineError, lines_of, understood
from worker.domain.data import DataItem, clean_name, kind_of, stem_of
from worker.pipeline.audio_names import AudioNames


def chunks(data: bytes, size: int):
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lines_come_out_however_the_bytes_come_in(size, encoding):
    data = 'one\r\n\n{"ü": 1}\nlast'.encode(encoding)
    lines = [(number, line.strip()) for number, line in lines_of(chunks(data, size))]
    assert lines == [(1, b"one"), (3, '{"ü": 1}'.encode()), (4, b"last")]


def test_an_endless_line_costs_itself_only_and_little_memory():
    data = b"a\n" + b"x" * (3 * LONGEST_LINE) + b"\nb\n" + b"y" * (2 * LONGEST_LINE)
    assert list(lines_of(chunks(data, 1 << 16))) == [(1, b"a"), (2, None), (3, b"b"), (4, None)]


def test_an_empty_file_has_no_lines():
    assert list(lines_of(chunks(b"", 1))) == []


def line(**fields) -> bytes:
    return json.dumps({"audio_filepath": "a.wav", "text": "hello"} | fields).encode()


def test_a_whole_line_is_understood():
    told = understood(line(text=" Hello\n there ", offset=1, duration=2.5, speaker=7, split="dev", more=[1]))
    assert (told.text, told.offset_s, told.duration_s, told.speaker, told.split) == (
        "Hello there",
        1.0,
        2.5,
        "7",
        "dev",
    )


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"not json", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[1]", "not a JSON object"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": "x"}', "audio_filepath"),
        (line(audio_filepath=3), "audio_filepath"),
        (line(text=["a"]), "text is no text"),
        (line(offset=-1), "offset is out of range"),
        (line(offset=-0.5), "offset is -0.5"),
        (line(offset=True), "offset is not a number"),
        (line(duration="2"), "duration is not a number"),
        (line(duration=0), "duration is 0"),
        (line(duration=float("nan")), "duration is nan"),
        (line(offset=float("inf")), "offset is inf"),
        (line(offset=10**400), "offset is out of range"),
        (line(split="validation"), "not 'validation'"),
        (line(split=["train"]), "split is train, dev or test"),
        (line(text="\ud800"), "letters that do not exist"),
        (line(split=[[[]]]), "not something else"),
        (line(audio_filepath="a" * 4_097), "audio_filepath has 4,097 characters"),
        (line(speaker="a" * 10_001), "speaker has 10,001 characters"),
        (b'{"audio_filepath": "a.wav", "text": "x", "speaker": ' + b"9" * 5_000 + b"}", "not JSON"),
        (line(speaker={}), "speaker"),
    ],
)
def test_a_bad_line_is_refused_with_the_reason(bad, why):
    with pytest.raises(LineError, match=why) as refused:
        understood(bad)
    assert refused.value.code == "bad_manifest_line"


def test_a_line_with_the_words_of_an_hour_says_what_to_do():
    with pytest.raises(LineError, match=r"at most 10,000\. Cut recording and transcript") as refused:
        understood(line(text="word " * 3_000))
    assert refused.value.code == "transcript_too_long"


@pytest.mark.parametrize("text", ["", "  ", "-", None])
def test_a_line_without_words_is_an_empty_transcript(text):
    with pytest.raises(LineError) as refused:
        understood(line(text=text))
    assert refused.value.code == "empty_transcript"


@given(
    st.binary(max_size=300)
    | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(
        lambda value: json.dumps({"audio_filepath": value, "text": value, "offset": value}).encode()
    )
)
def test_no_line_breaks_the_reader(data):
    try:
        understood(data).text.encode()
    except LineError as error:
        error.sentence.encode()


def audio(name: str) -> DataItem:
    return DataItem(1, name, stem_of(name), "audio", 1, "0" * 64, f"data/{name}")


@pytest.mark.parametrize(
    ("written", "manifest", "found"),
    [
        ("a.wav", "train.jsonl", "a.wav"),
        ("./a.wav", "train.jsonl", "a.wav"),
        ("a.wav", "set/train.jsonl", "set/a.wav"),
        ("../a.wav", "set/train.jsonl", "a.wav"),
        ("/home/bob/corpus/set/a.wav", "train.jsonl", "set/a.wav"),
        ("C:\\corpus\\unique.wav", "train.jsonl", "deep/unique.wav"),
        ("Cafe\u0301.wav", "train.jsonl", "Café.wav"),
    ],
)
def test_a_recording_is_found_as_people_write_it(written, manifest, found):
    names = AudioNames(map(audio, ["a.wav", "set/a.wav", "deep/unique.wav", "Café.wav"]))
    assert names.find(written, manifest).name == found


@pytest.mark.parametrize(
    ("written", "code"),
    [("/x/a.wav", "ambiguous_file"), ("b.wav", "missing_file"), ("../../etc/passwd", "missing_file")],
)
def test_a_recording_that_is_not_clear_is_not_guessed(written, code):
    names = AudioNames(map(audio, ["one/a.wav", "two/a.wav"]))
    with pytest.raises(LineError) as refused:
        names.find(written, "train.jsonl")
    assert refused.value.code == code


def test_as_many_folders_are_compared_as_it_takes():
    names = AudioNames(map(audio, ["x/one/a.wav", "y/one/a.wav", "x/two/a.wav", "a.wav", "xone/a.wav"]))
    assert names.find("/home/bob/x/one/a.wav", "train.jsonl").name == "x/one/a.wav"
    assert names.find("/home/bob/two/a.wav", "train.jsonl").name == "x/two/a.wav"
    with pytest.raises(LineError, match=r"could be x/one/a\.wav or y/one/a\.wav") as refused:
        names.find("/home/bob/one/a.wav", "train.jsonl")
    assert refused.value.code == "ambiguous_file"


@pytest.mark.parametrize(
    ("name", "kind", "stem"),
    [
        ("Talk.WAV", "audio", "Talk"),
        ("a/talk.txt", "transcript", "a/talk"),
        ("talk.wav.vtt", "transcript", "talk"),
        ("v1.2.opus", "audio", "v1.2"),
        ("v1.2.srt", "transcript", "v1.2"),
        ("train.jsonl", "manifest", "train.jsonl"),
        ("notes.pdf", None, "notes.pdf"),
        ("Cafe\u0301.m4a", "audio", "Café"),
    ],
)
def test_kind_and_stem_come_from_the_name(name, kind, stem):
    assert (kind_of(name), stem_of(name)) == (kind, stem)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "  ",
        "..",
        "../a.wav",
        "/etc/passwd",
        "a//b.wav",
        "a\x00b.wav",
        "x" * 401,
        "C:\\a.wav",
        "a/..",
        "\u202egnp.wav",
    ],
)
def test_a_hostile_name_is_refused(name):
    with pytest.raises(ValueError, match=r"^The file"):
        clean_name(name)


def test_an_honest_name_is_kept_in_composed_letters():
    assert clean_name(" ./calls\\Cafe\u0301 (2).wav ") == "calls/Café (2).wav"
