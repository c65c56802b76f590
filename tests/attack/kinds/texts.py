"""Bytes that cost more to look at than to send: names, transcripts, manifests, JSON."""

from __future__ import annotations

import json

from tests.attack.attacker import Attacker, kind


def marks(count: int) -> str:
    """A letter under combining marks of falling class: a normalization sorts them, by insertion in CPython."""
    return "a" + "\u0345\u0301\u0323" * (count // 3)


@kind("1")
async def marks_in_a_transcript(attacker: Attacker) -> None:
    """Uploads .txt files of combining marks; the door takes or refuses them, and must do either at once."""
    model = await attacker.model()
    text = marks(48_000).encode()
    await attacker.repeated(lambda n: attacker.upload(model, [(f"marks{n}.txt", text)]), 6, 2)


@kind("1")
async def marks_in_a_caption(attacker: Attacker) -> None:
    """The same in a cue of a .vtt file."""
    model = await attacker.model()
    text = ("WEBVTT\n\n00:00.000 --> 00:01.000\n" + marks(48_000) + "\n").encode()
    await attacker.repeated(lambda n: attacker.upload(model, [(f"marks{n}.vtt", text)]), 6, 2)


@kind("2")
async def marks_in_a_manifest(attacker: Attacker) -> None:
    """One manifest whose one line names a file of 48 KB of combining marks."""
    model = await attacker.model()
    line = json.dumps({"audio_filepath": marks(24_000), "text": "a"}, ensure_ascii=False).encode()
    await attacker.repeated(lambda n: attacker.upload(model, [(f"list{n}.jsonl", line)]), 3, 1)


@kind("2")
async def marks_in_file_names(attacker: Attacker) -> None:
    """A hundred files with names of 4 KB of combining marks in one request."""
    model = await attacker.model()
    files = [((marks(1_900) + f"{n}.txt").encode(), b"word") for n in range(100)]
    await attacker.repeated(lambda _: attacker.upload(model, files), 2, 1)


@kind("2")
async def marks_in_model_names(attacker: Attacker) -> None:
    """Names and searches of combining marks, as long as a body may be."""
    wide = marks(9_000)
    body = {"name": wide, "language_id": attacker.language, "organization_id": attacker.organization}
    await attacker.repeated(lambda _: attacker.owner.ask("POST", "/custom_models", body), 15, 3)
    query = "%CC%81%CC%A3" * 400
    await attacker.repeated(lambda _: attacker.owner.ask("GET", f"/speech-to-text/models?q={query}"), 15, 3)


@kind("1")
async def voices_without_an_end(attacker: Attacker) -> None:
    """A .vtt of ``<v.<v.<v.``, on which the old pattern for speakers was quadratic."""
    model = await attacker.model()
    text = ("WEBVTT\n\n00:00.000 --> 00:01.000\n" + "<v." * 16_000 + "\n").encode()
    await attacker.repeated(lambda n: attacker.upload(model, [(f"voices{n}.vtt", text)]), 6, 2)


@kind("11")
async def references_without_an_end(attacker: Attacker) -> None:
    """Entity references of 5,000 digits in captions."""
    model = await attacker.model()
    cue = "00:00:00,000 --> 00:00:01,000\n&#" + "9" * 5_000 + ";\n\n"
    text = "".join(f"{n}\n{cue}" for n in range(20)).encode()
    await attacker.repeated(lambda n: attacker.upload(model, [(f"references{n}.srt", text)]), 6, 2)


@kind("2")
async def giant_manifest_lines(attacker: Attacker) -> None:
    """Lines of almost a mebibyte: one long name, one deep nesting, one of very many members."""
    model = await attacker.model()
    million = 1_000_000
    lines = [
        b'{"audio_filepath":"' + b"a" * million + b'.wav","text":"a"}',
        b'{"audio_filepath":"a.wav","text":' + b"[" * 500_000 + b"]" * 500_000 + b"}",
        json.dumps({f"k{n}": n for n in range(60_000)}).encode(),
    ]
    await attacker.repeated(lambda n: attacker.upload(model, [(f"giant{n}.jsonl", b"\n".join(lines))]), 3, 1)


@kind("5")
async def manifest_of_200000_names(attacker: Attacker) -> None:
    """As many names as one request may bring, in 9 MB."""
    model = await attacker.model()
    text = b"\n".join(b'{"audio_filepath":"call-%06d.wav","text":"a"}' % n for n in range(200_000))
    await attacker.upload(model, [("names.jsonl", text)])


@kind("5")
async def files_of_one_stem(attacker: Attacker) -> None:
    """Very many files that are all a pair of each other."""
    model = await attacker.model()
    suffixes = [".txt", ".srt", ".vtt", ".wav.txt", ".mp3.vtt", ".ogg.srt"]
    timed = b"1\n00:00:00,000 --> 00:00:01,000\na\n"
    files = [
        (f"stem{n % 2}{suffixes[n % 6]}", b"word" if suffixes[n % 6].endswith("txt") else timed) for n in range(600)
    ]
    await attacker.repeated(lambda _: attacker.upload(model, files), 2, 1)


@kind("2", refuses=True)
async def long_file_names(attacker: Attacker) -> None:
    """A thousand files with names of 4 KB."""
    model = await attacker.model()
    files = [("n" * 4_000 + f"{n}.txt", b"word") for n in range(1_000)]
    await attacker.repeated(lambda _: attacker.upload(model, files), 2, 1)


@kind("15", refuses=True)
async def parts_without_an_end(attacker: Attacker) -> None:
    """A multipart body of 20,000 tiny parts, and one whose part has 1,000 header lines."""
    model = await attacker.model()
    await attacker.upload(model, [(f"n{n}.txt", b"w") for n in range(20_000)])
    mark = "0123456789abcdef"
    lines = "".join(f"X-{n}: y\r\n" for n in range(1_000))
    body = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n{lines}\r\nword\r\n--{mark}--\r\n'
    headers = {"Content-Type": f"multipart/form-data; boundary={mark}"}
    await attacker.repeated(
        lambda _: attacker.owner.ask("POST", f"/custom_models/{model}/data", body.encode(), headers), 10, 2
    )


@kind("2", refuses=True)
async def deep_json(attacker: Attacker) -> None:
    """Bodies of nesting, digits and duplicates, as large as a JSON body may be."""
    headers = {"Content-Type": "application/json"}
    bodies = [b"[" * 32_000 + b"]" * 32_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000, b'{"name":' + b"9" * 60_000 + b"}",
              b"{" + b'"name":"a",' * 5_000 + b'"name":"b"}', b'{"name":"' + b"\\ud800" * 10_000 + b'"}']  # fmt: skip
    await attacker.repeated(lambda n: attacker.owner.ask("POST", "/custom_models", bodies[n % 5], headers), 40, 4)


@kind("8", refuses=True)
async def forged_log_lines(attacker: Attacker) -> None:
    """Line breaks, escapes and whole log lines in paths, headers, names and keys."""
    forged = '\\n{\\"event\\": \\"forged line\\", \\"level\\": \\"error\\"}'
    await attacker.repeated(
        lambda n: attacker.owner.ask("GET", f"/custom_models/{n}%0A%7B%22event%22%3A%22forged+line%22%7D%0A"), 15, 3
    )
    await attacker.repeated(
        lambda n: attacker.anonymous.ask(
            "GET",
            f"/%1b%5b31m%0d%0aforged+line{n}",
            headers={"X-Request-Id": forged, "User-Agent": "\x1b[31mforged line"},
        ),
        15,
        3,
    )
    body = {"name": "a\x9b31m\u202eb", "language_id": attacker.language, "organization_id": attacker.organization}
    await attacker.repeated(lambda _: attacker.owner.ask("POST", "/custom_models", body), 5, 1)
