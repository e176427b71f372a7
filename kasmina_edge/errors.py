"""Every error Kasmina raises on purpose, sorted by what the caller can do about it.

::

    KasminaError             exit code
    ├── InputError           2   fix the call: shape, dtype, profile, setting, path
    ├── BundleError          1   get another bundle: truncated, tampered, model and manifest disagree
    ├── EngineError          4   this machine cannot run it: library, delegate or format is missing
    ├── TrustError           3   somebody is lying or a key is old: signature, rollback, expiry
    │   └── PlanError        3   correctly signed, and outside the change plan this device accepts
    ├── StorageError         1   disk: full, read-only, damaged
    │   └── LockedError      1   another process holds the data folder
    ├── LinkError            5   the network: try again
    └── RolledBackError      6   the update was installed, judged harmful, and taken back
"""

from __future__ import annotations

from typing import Literal

Breach = Literal["signature", "replay", "expired", "tamper", "malformed"]


class KasminaError(Exception):
    """Base of the tree.

    Args:
        message: One sentence that carries both numbers and the path.
        next_step: What the caller can do now; below the message on the command line and in a traceback.
    """

    exit_code = 1
    default_next_step = ""

    def __init__(self, message: str, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step or self.default_next_step
        if self.next_step:
            self.add_note(self.next_step)

    @property
    def kind(self) -> str:
        """The stable name that ``--json`` prints."""
        return type(self).__name__


class InputError(KasminaError):
    """The call is wrong; nothing was changed."""

    exit_code = 2


class BundleError(KasminaError):
    """The bundle cannot be used; the running one keeps running."""

    default_next_step = "Get the bundle again from where it was built; the active bundle keeps running."


class EngineError(KasminaError):
    """This machine cannot run the model."""

    exit_code = 4
    default_next_step = "Run `kasmina-edge doctor` to see what this machine can run."


class TrustError(KasminaError):
    """A signature, version or date does not hold.

    Args:
        message: As of the base class.
        next_step: As of the base class.
        breach: What kind of attack it would be if it were one; None: no attack, e.g. outside a plan.
    """

    exit_code = 3

    def __init__(self, message: str, next_step: str = "", *, breach: Breach | None = None) -> None:
        super().__init__(message, next_step)
        self.breach = breach

    default_next_step = "Do not install this; ask the operator who signed it. The active bundle keeps running."


class PlanError(TrustError):
    """Correctly signed, and outside what this device's change plan allows."""

    default_next_step = "Have the targets keys sign a change plan that allows it, or change the update."


class StorageError(KasminaError):
    """The disk refused."""

    default_next_step = "Free space or repair the disk, then try again; the active bundle keeps running."


class LockedError(StorageError):
    """Another process holds the data folder."""

    default_next_step = "Stop the other agent, or give this one its own --data folder."


class LinkError(KasminaError):
    """The other side cannot be reached."""

    exit_code = 5
    default_next_step = "Check the address and that the broker runs, then try again."


class RolledBackError(KasminaError):
    """The trial bundle failed its health gate and was taken back."""

    exit_code = 6
    default_next_step = "The previous bundle is active again; `kasmina-edge status` shows the reason."
