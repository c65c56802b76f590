"""Each hearing is another voice, the same one again for the same seed, and none is heard wrongly for it."""

# ruff: noqa: E402 - torch is loaded only where it is there

import pytest

torch = pytest.importorskip("torch")

from schemas.recipes import WhisperParameters
from worker.trainer.voices import Voice, heard_by, voice
from worker.trainer.whisper import Whisper, processor

pytestmark = [pytest.mark.trainer, pytest.mark.filterwarnings("default"), pytest.mark.timeout(600)]
HERTZ_A_BIN = 40
WIDE = WhisperParameters(speed_perturbation=0.2, vocal_tract_perturbation=0.1, equalizer_db=6.0)
NONE = WhisperParameters(speed_perturbation=0.0, vocal_tract_perturbation=0.0, equalizer_db=0.0)


@pytest.fixture(scope="module")
def filters(base):
    return Whisper(base).to_processor(processor()).filters


def tone(filters, hertz):
    """The power spectrum [bins] of one tone."""
    spectrum = torch.zeros(filters.shape[1], device=filters.device)
    spectrum[round(hertz / HERTZ_A_BIN)] = 1.0
    return spectrum


def test_a_seed_has_one_voice_within_the_limits_and_others_have_others():
    voices = [voice(WIDE, f"3/{hearing}", 4.0) for hearing in range(200)]
    assert voices == [voice(WIDE, f"3/{hearing}", 4.0) for hearing in range(200)]
    assert len(set(voices)) == 200
    speeds, warps = [one.speed for one in voices], [one.warp for one in voices]
    assert 1 / 1.2 <= min(speeds) < 0.86
    assert 1.16 < max(speeds) <= 1.2
    assert 1 / 1.1 <= min(warps) < 0.93
    assert 1.07 < max(warps) <= 1.1
    gains = [gain for one in voices for gain in one.gains_db]
    assert -6 <= min(gains) < -5
    assert 5 < max(gains) <= 6


def test_without_perturbation_it_is_heard_as_it_was_recorded(filters):
    plain = voice(NONE, "3/0", 4.0)
    assert (plain.speed, plain.warp, set(plain.gains_db)) == (1.0, 1.0, {0.0})
    assert heard_by(filters, [plain, Voice()]).equal(filters.expand(2, -1, -1))


def test_no_voice_makes_an_utterance_longer_than_a_window():
    assert {voice(WIDE, f"3/{hearing}", 30.0).speed >= 1.0 for hearing in range(50)} == {True}
    assert min(voice(WIDE, f"3/{hearing}", 27.0).speed for hearing in range(50)) == 0.9


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_warp_moves_a_tone_to_the_mel_filter_of_another_frequency_and_leaves_the_ends(filters, factor):
    [warped] = heard_by(filters, [Voice(warp=factor)])
    for heard_as in (600, 1200, 2400):
        there = warped @ tone(filters, heard_as * factor)
        assert abs(int(there.argmax()) - int((filters @ tone(filters, heard_as)).argmax())) <= 1
    highest = filters.shape[1] - 2
    assert abs(int(warped[:, highest].argmax()) - int(filters[:, highest].argmax())) <= 1
    assert float(warped.sum()) == pytest.approx(float(filters.sum()), rel=0.1)


def test_an_equalizer_raises_what_its_points_say(filters):
    [loud] = heard_by(filters, [Voice(gains_db=(0.0, 0.0, 10.0))])
    ratio = loud.sum(dim=1) / filters.sum(dim=1)
    assert float(ratio[0]) == pytest.approx(1.0)
    assert float(ratio[-1]) == pytest.approx(10.0, rel=1e-4)
    assert ratio.diff().min() >= 0
