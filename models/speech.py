"""Sounds that a detector of speech takes for speech, and others: labels that make themselves.

Speech is a row of syllables, each a hiss and a vowel: pulses of a wavering pitch through one resonance for the glottis
and three for the formants (Klatt, 1980, "Software for a cascade/parallel formant synthesizer", equations 1 to 3), which
are those that Peterson and Barney measured (1952, table II, men). Between phrases there is hum, noise or near silence.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

RATE = 16_000
FRAME = 512
"""Samples of a frame."""

Sound = npt.NDArray[np.float64]

_VOWELS = (
    (730, 1090, 2440),
    (530, 1840, 2480),
    (270, 2290, 3010),
    (570, 840, 2410),
    (300, 870, 2240),
    (490, 1350, 1690),
)
_BANDWIDTHS = (80, 100, 140)
_ROOM = 0.003  # noise that is always there


def clip(phrases: int, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Phrases of one to two seconds with as long pauses between them.

    Returns:
        Samples at 16 kHz, float32 within [-1, 1], a whole number of frames; and of each frame whether it is speech.
    """
    generator = np.random.default_rng(seed)
    parts, labels = [], []
    for index in range(2 * phrases + 1):
        frames = int(generator.integers(30, 60))
        spoken = index % 2 == 1
        parts.append((_phrase if spoken else _pause)(frames * FRAME, generator))
        labels += [spoken] * frames
    sound = np.concatenate(parts)
    sound += _ROOM * generator.standard_normal(len(sound))
    return np.clip(sound, -1, 1).astype(np.float32), np.array(labels)


def _phrase(count: int, generator: np.random.Generator) -> Sound:
    pitch, loudness = generator.uniform(95, 220), generator.uniform(0.2, 0.5)
    parts = list(_syllables(count, pitch, generator))
    return loudness * np.concatenate(parts)[:count]


def _syllables(count: int, pitch: float, generator: np.random.Generator) -> Iterator[Sound]:
    made = 0
    while made < count:
        hiss = np.diff(generator.standard_normal(int(RATE * generator.uniform(0.03, 0.09)) + 1))
        vowel = _vowel(int(RATE * generator.uniform(0.1, 0.25)), pitch, generator)
        yield generator.uniform(0.05, 0.2) * hiss
        yield generator.uniform(0.6, 1.0) * vowel
        made += len(hiss) + len(vowel)


def _vowel(count: int, pitch: float, generator: np.random.Generator) -> Sound:
    time = np.linspace(0, 1, count)
    wave = np.sin(2 * np.pi * (time * generator.uniform(0.3, 0.8) + generator.random()))
    cycles = np.cumsum(pitch * (1 + 0.15 * wave)) / RATE
    pulses = np.diff(np.floor(cycles), prepend=0.0)
    formants = generator.choice(_VOWELS) * generator.uniform(0.95, 1.05, 3)
    sound = _resonate(pulses, [0.0, *formants], [100, *_BANDWIDTHS])
    sound *= np.minimum(1, 8 * np.minimum(time, 1 - time))
    return sound / max(float(np.abs(sound).max()), 1e-9)


def _resonate(sound: Sound, frequencies: list[float], bandwidths: list[int]) -> Sound:
    """A cascade of resonances of two poles each, applied in the frequency domain."""
    size = 2 * len(sound) + RATE // 10  # longer than sound and its ringing: nothing wraps around
    delay = np.exp(-2j * np.pi * np.fft.rfftfreq(size))
    response = np.ones_like(delay)
    for frequency, bandwidth in zip(frequencies, bandwidths, strict=True):
        radius = np.exp(-np.pi * bandwidth / RATE)
        first, second = 2 * radius * np.cos(2 * np.pi * frequency / RATE), -(radius**2)
        response *= (1 - first - second) / (1 - first * delay - second * delay**2)
    return np.fft.irfft(np.fft.rfft(sound, size) * response, size)[: len(sound)]


def _pause(count: int, generator: np.random.Generator) -> Sound:
    kind = generator.integers(3)
    if kind == 0:
        return np.zeros(count)
    if kind == 1:
        return generator.uniform(0.02, 0.1) * generator.standard_normal(count)
    return generator.uniform(0.1, 0.3) * np.sin(2 * np.pi * generator.uniform(200, 900) * np.arange(count) / RATE)
