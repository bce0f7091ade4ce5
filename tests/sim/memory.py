"""The shared memory of a simulated host: which extents exist, who maps them, and how they end."""

from __future__ import annotations

import pickle
import random
from typing import Any

from owndist.core.ids import ExtentKey
from owndist.core.values import extent_key, extent_of

Payload = tuple[str, tuple[int, ...]]  # what a value says, and the objects whose futures it holds

# Of an abandoned one nobody knows who reads it: it is neither freed nor used again. Of a lost one
# somebody has removed the memory.
LIVE, FREED, UNLINKED, ABANDONED, LOST = range(5)
_EXTENTS_PER_SEGMENT = 2  # so that some segments of a dead writer hold more than one value


class Gone(Exception):
    """The memory of a value was removed by somebody: (segment, extent)."""


class Memory:
    """Every extent that was ever written. Each ends once, and only when nobody needs it."""

    def __init__(self) -> None:
        self.state: dict[ExtentKey, int] = {}
        self.strict = True  # off once running tasks have been given up: they may see anything
        self._payloads: dict[ExtentKey, Payload] = {}
        self._segments: dict[ExtentKey, str] = {}  # where each extent lies now
        self._copies: dict[ExtentKey, str] = {}  # files of those that are about to be moved there
        self._files: dict[str, None] = {}  # all files that exist
        self._read_from_disk: dict[ExtentKey, None] = {}
        self._unlinked: dict[str, None] = {}
        self.lost: dict[str, None] = {}  # segments that somebody has removed
        self._given_up: dict[str, None] = {}  # and whose writers know
        self._views: dict[ExtentKey, dict[int, int]] = {}  # {extent: {process: mappings}}
        self._last_serial: dict[int, int] = {}

    def write(self, process: int, payload: Payload) -> Any:
        """A stored value."""
        serial = self._last_serial[process] = self._last_serial.get(process, 0) + 1
        segment = f"s-{process}-{serial // _EXTENTS_PER_SEGMENT}"
        if segment in self._given_up:
            segment = f"s-{process}-{serial}-again"
        key = (process, serial)
        self.state[key] = LOST if segment in self.lost else LIVE
        self._payloads[key] = payload
        self._segments[key] = segment
        return ((process, serial, segment, 0, 64), b"head", ((0, 64),))

    def read(self, process: int, value: Any) -> tuple[Payload, ExtentKey | None]:
        """What a value says; a stored one is mapped from now on."""
        if isinstance(value, bytes):
            payload: Payload = pickle.loads(value)
            return payload, None
        extent = extent_of(value)
        if extent is None:
            payload = pickle.loads(value[0])
            return payload, None
        key = extent_key(extent)
        if extent[2] in self.lost:
            raise Gone(extent[2], key)
        if self.strict:
            there = self.state[key] in (LIVE, ABANDONED) or extent[2] == self._copies.get(key)
            assert there, f"process {process} reads extent {key}, which is gone"
            # Of a copy the owner may tell others before its writer hears that it counts.
            places = (self._segments[key], self._copies.get(key))
            assert extent[2] in places, f"process {process} reads {key} in {extent[2]}"
        views = self._views.setdefault(key, {})
        views[process] = views.get(process, 0) + 1
        if extent[2] in self._files:
            self._read_from_disk[key] = None
        return self._payloads[key], key

    def again(self, key: ExtentKey) -> tuple[Any, Payload]:
        """A stored value once more, for whoever still maps it, and what it says."""
        return ((*key, self._segments[key], 0, 64), b"head", ((0, 64),)), self._payloads[key]

    def unmap(self, process: int, key: ExtentKey) -> bool:
        """One view less. True: it was the process's last."""
        views = self._views[key]
        views[process] -= 1
        if views[process]:
            return False
        del views[process]
        return True

    def mapped(self, process: int) -> list[ExtentKey]:
        """The extents that a process maps."""
        return [key for key, views in self._views.items() if process in views]

    def free(self, process: int, serial: int) -> None:
        """The writer may use the memory again."""
        key = (process, serial)
        if self._was_lost_under_a_view(key):
            return
        assert self.state[key] in (LIVE, LOST), f"extent {key} is freed twice"
        if self.strict and self.state[key] == LIVE:
            viewers = list(self._views.get(key, ()))
            assert not viewers, f"extent {key} is freed while processes {viewers} map it"
        self.state[key] = FREED
        self._remove(self._segments[key])
        self._remove(self._copies.pop(key, ""))

    def _was_lost_under_a_view(self, key: ExtentKey) -> bool:
        """Whether it has ended as lost, and a task that still had a view has named it once more.

        Its owner takes that for news, finds it gone again, and frees it again: `Store.free` ignores
        that.
        """
        return self.state[key] in (FREED, ABANDONED) and self._segments[key] in self.lost

    def abandon(self, process: int, serial: int) -> None:
        """Its owner is dead, and the writer does not know who reads it."""
        if self._was_lost_under_a_view((process, serial)):
            return
        there = self.state[process, serial] in (LIVE, LOST)
        assert there, f"extent {process, serial} is given up late"
        self.state[process, serial] = ABANDONED
        self._remove(self._segments[process, serial])
        self._remove(self._copies.pop((process, serial), ""))

    def is_unlinked(self, value: Any) -> bool:
        """Whether a value is in a segment that nobody can map any more."""
        extent = extent_of(value)
        return extent is not None and self.state[extent_key(extent)] == UNLINKED

    def spill(self, process: int, serial: int) -> str | None:
        """The writer makes a copy on disk, if the extent is still there."""
        key = (process, serial)
        if self.state[key] != LIVE:
            return None
        assert key not in self._copies and self._segments[key] not in self._files
        file = self._copies[key] = f"/spill/{process}-{serial}-{len(self._files)}"
        self._files[file] = None
        return file

    def moved(self, process: int, serial: int, taken: bool) -> None:
        """One of the extent and its copy is given up."""
        key = (process, serial)
        file = self._copies.pop(key)
        if not taken:
            self._remove(file)
            return
        assert self.state[key] in (LIVE, LOST)
        viewers = list(self._views.get(key, ()))
        if self.strict and key not in self._read_from_disk:
            assert not viewers, f"extent {key} is moved while processes {viewers} map it"
        self._segments[key] = file
        self.state[key] = LIVE  # also if its memory was removed after it had been copied

    def _remove(self, file: str) -> None:
        self._files.pop(file, None)

    def process_died(self, process: int) -> None:
        """Its mappings are gone; what it wrote is still there."""
        for views in self._views.values():
            views.pop(process, None)

    def sweep(self, process: int, keep: frozenset[str]) -> None:
        """Unlink what a dead process wrote, but these segments."""
        for key in [key for key in self._copies if key[0] == process]:
            file = self._copies.pop(key)
            if file in keep:
                self._segments[key] = file  # the owner has counted on it, and it has not heard
                if self.state[key] == LOST:
                    self.state[key] = LIVE  # the memory was, the file is there
            else:
                self._remove(file)
        for key, segment in self._segments.items():
            if key[0] == process and segment not in keep and segment not in self._unlinked:
                self.unlink(segment)

    def unlink(self, segment: str) -> None:
        """Nobody can map this from now on; existing views stay as they are."""
        assert segment not in self._unlinked, f"segment {segment} is unlinked twice"
        self._unlinked[segment] = None
        self._remove(segment)
        for key, other in self._segments.items():
            if other == segment and self.state[key] in (LIVE, ABANDONED, LOST):
                self.state[key] = UNLINKED

    def files(self) -> list[str]:
        """The files that exist."""
        return list(self._files)

    def live(self) -> list[ExtentKey]:
        """Extents that nobody has given up."""
        return [key for key, state in self.state.items() if state in (LIVE, LOST)]

    def lose(self, rng: random.Random) -> None:
        """Somebody removes a segment or a file, with all values in it."""
        segments = {self._segments[key]: None for key in self.live()}
        names = [name for name in segments if name not in self.lost]
        if names:
            self.remove(rng.choice(names))

    def remove(self, segment: str) -> bool:
        """Somebody removes this one. False: it is not there any more."""
        if segment in self.lost or segment in self._unlinked:
            return False
        self.lost[segment] = None
        self._remove(segment)
        for key, other in self._segments.items():
            if other == segment and self.state[key] == LIVE:
                self.state[key] = LOST
        return True

    def check(self, segment: str) -> None:
        """Its writer has been told that it was not found."""
        if segment in self.lost:
            self._given_up[segment] = None


def inline(payload: Payload, parts: bool) -> Any:
    """An inline value, with or without out-of-band buffers."""
    head = pickle.dumps(payload)
    return (head, (b"buffer",)) if parts else head
