"""A kinematic simulator of UCI HAPT's protocol, for where the real set cannot be had and for what it lacks.

Every simulated user has a gait, postures and a way of wearing the phone of their own, drawn from spreads measured on
the real set. A record follows the real one's order: standing, sitting and lying with the transitions between them, then
walking, and stairs down and up by turns. `simulate` gives `Recording` objects, cut and split as the real ones are.

What it is not: a body. Limbs, shoes, floors and moods are missing; a figure on it says nothing of real people.
"""

from __future__ import annotations

import math

import numpy as np

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import Labels
from kasmina_trainer.datasets.idx import Splits
from kasmina_trainer.datasets.imu.body import Gait, Path, Posture, Signal, change, hold, truth, walk
from kasmina_trainer.datasets.imu.sensor import SensorModel
from kasmina_trainer.datasets.imu.windows import LABELS, RATE_HZ, UNLABELLED, Recording, split_by_user

USERS = 30
_ORDER = ("standing", "sitting", "standing", "lying", "sitting", "lying", "standing")


def load_simulated(seed: int = 0, *, classes: int = 6, users: int = USERS) -> Splits:
    """Windows of simulated users, no user in two parts.  # x (N, 6, 128): g and rad/s

    Args:
        seed: Draws the users and who is in which part.
        classes: 6 activities, or 12 with the transitions.
        users: How many; a seventh validates and a quarter tests.

    Raises:
        InputError: Fewer than 8 users, or another number of classes.
    """
    if users < 8:
        raise InputError(f"{users} users: at least 8 are needed for three parts")
    recordings = simulate(seed, users=users)
    return split_by_user(recordings, seed, classes=classes, validation=users // 7, test=users // 4)


def simulate(seed: int = 0, *, users: int = USERS, sensor: SensorModel | None = None) -> list[Recording]:
    """Two recordings a user, as in the real set; the same seed gives the same samples, user by user.

    Args:
        seed: Draws everything.
        users: How many.
        sensor: What it adds to the truth; HAPT's phone when left out.
    """
    model = sensor or SensorModel()
    streams = np.random.default_rng(seed).spawn(users)
    return [_record(user, model, rng) for user, stream in enumerate(streams, 1) for rng in _two(stream)]


def _two(stream: np.random.Generator) -> list[tuple[np.random.Generator, int]]:
    person = int(stream.integers(2**62))
    return [(rng, person) for rng in stream.spawn(2)]


def _record(user: int, model: SensorModel, told: tuple[np.random.Generator, int]) -> Recording:
    rng, person = told
    body = _Person(np.random.default_rng(person), rng)
    pieces: list[tuple[Signal, int]] = []

    def add(path: Path, label: int) -> None:
        pieces.append((truth(path, body.mount, RATE_HZ), label))

    for i, name in enumerate(_ORDER):
        posture = body.posture(name)
        if i:
            add(body.change(_ORDER[i - 1], name), LABELS.index(_transition(_ORDER[i - 1], name)))
        add(hold(posture, rng.uniform(15, 21), RATE_HZ, rng, restless=body.restless), LABELS.index(name))
        body.settle(name)
    for activity in ("walking", "walking", "stairs-down", "stairs-up", "stairs-down", "stairs-up"):
        add(hold(body.posture("standing"), rng.uniform(2, 5), RATE_HZ, rng, restless=3.0), UNLABELLED)
        seconds = rng.uniform(15, 20) if activity == "walking" else rng.uniform(11, 14)
        add(walk(body.gait(activity), body.posture("standing"), seconds, RATE_HZ, rng), LABELS.index(activity))
    signal = np.concatenate([piece for piece, _ in pieces], 1)
    labels: Labels = np.concatenate([np.full(piece.shape[1], label, np.int64) for piece, label in pieces])
    return Recording(user, model.read(signal, rng, RATE_HZ).astype(np.float32), labels)


def _transition(before: str, after: str) -> str:
    short = {"standing": "stand", "sitting": "sit", "lying": "lie"}
    return f"{short[before]}-to-{short[after]}"


class _Person:
    """One user: what stays (drawn from ``person``) and what differs from time to time (from ``rng``)."""

    def __init__(self, person: np.random.Generator, rng: np.random.Generator) -> None:
        self._rng = rng
        self._height = person.normal(1.0, 0.06)
        self._pace = person.normal(1.0, 0.065)
        self._vigour = math.exp(person.normal(0.0, 0.18))
        self._lean = {
            name: person.normal(mean, spread)
            for name, mean, spread in (("standing", 0.0, 0.10), ("sitting", -0.15, 0.15))
        }
        self._side = {name: person.normal(0.16, 0.10) for name in ("standing", "sitting")}
        self._lies_on = person.uniform(-1.3, 0.3)
        self.restless = math.exp(person.normal(0.0, 0.3))
        self.mount = _small_turn(person.normal(0.0, 0.06, 3))
        self._now: dict[str, Posture] = {}

    def posture(self, name: str) -> Posture:
        """The one that is held now; a new one each time it is taken up."""
        if name not in self._now:
            nod, tilt = self._rng.normal(0.0, 0.04, 2)
            if name == "lying":
                turned = self._lies_on + self._rng.normal(0.0, 0.15)
                self._now[name] = Posture(-math.pi / 2 + 2 * nod, turned, 0.3)
            else:
                height = 0.95 * self._height if name == "standing" else 0.55
                self._now[name] = Posture(self._lean[name] + nod, self._side[name] + tilt, height)
        return self._now[name]

    def settle(self, held: str) -> None:
        """Every other posture will be taken up anew."""
        self._now = {held: self._now[held]}

    def change(self, before: str, after: str) -> Path:
        """On the way from one posture to another."""
        bow = {"standing": 0.5, "sitting": 0.6, "lying": 0.1}[before] * self._rng.uniform(0.7, 1.3)
        seconds = self._rng.uniform(2.4, 3.6) if "lying" not in (before, after) else self._rng.uniform(3.2, 4.8)
        return change(self.posture(before), self.posture(after), seconds, RATE_HZ, self._rng, bow)

    def gait(self, activity: str) -> Gait:
        """How this user walks, or takes stairs."""
        force = self._vigour * math.exp(self._rng.normal(0.0, 0.08))
        hz, lift, impact, turn, climb = {
            "walking": (1.77, 0.0235, 0.0022, 0.118, 0.0),
            "stairs-up": (1.64, 0.0268, 0.0016, 0.134, 0.28),
            "stairs-down": (1.79, 0.0350, 0.0053, 0.160, -0.30),
        }[activity]
        hz *= self._pace * math.exp(self._rng.normal(0.0, 0.03))
        slow = (1.77 / hz) ** 2  # a given force moves further in a longer step
        return Gait(
            step_hz=hz,
            lift_m=lift * force * slow,
            surge_m=0.0115 * force * slow,
            sway_m=0.031 * force * slow,
            impact_m=impact * force * slow,
            turn_rad=turn * force,
            roll_rad=0.086 * force,
            pitch_rad=0.050 * force,
            climb_m_s=climb,
        )


def _small_turn(angles: Signal) -> Signal:
    """A rotation by three small angles."""
    size = float(np.linalg.norm(angles))
    x, y, z = angles / max(size, 1e-12)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    found: Signal = np.eye(3) + math.sin(size) * cross + (1 - math.cos(size)) * (cross @ cross)
    return found
