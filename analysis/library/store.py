"""Circuits kept in a folder: added, found, compared, shared. The folder is the truth; git, if any, is the user's."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...protos.errors import FailedPrecondition, InvalidArgument, NotFound
from ..circuits import Circuit, Unit
from .difference import Difference, difference
from .formats import read_circuit, write_circuit
from .index_page import index_page
from .readme import readme
from .search import Hit, Query, ranked

__all__ = ["CircuitLibrary"]

FORMAT, VERSION = "probewire.circuit_library", 1
LOCK_WAIT_S = 30.0


class CircuitLibrary:
    """A folder of circuits: <category>/<name>/<version>.json and a README.md beside them.

    Made where it does not exist. Raises InvalidArgument for a folder that is something else.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = path = Path(folder).expanduser()
        self._read: dict[Path, tuple[int, int, Circuit]] = {}
        mark = path / "library.json"
        if mark.is_file():
            told = json.loads(mark.read_text(encoding="utf-8"))
            if (told.get("format"), told.get("version")) != (FORMAT, VERSION):
                raise InvalidArgument(f"{mark} is no library of ours ({FORMAT}, version {VERSION}): {told}")
        elif path.is_dir() and any(path.iterdir()):
            raise InvalidArgument(f"{path} holds other things and no library.json; name a new folder, or a library")
        else:
            path.mkdir(parents=True, exist_ok=True)
            _write(mark, json.dumps({"format": FORMAT, "version": VERSION}) + "\n")

    # ---- in and out ----

    def add(self, circuit: Circuit) -> Path:
        """Keep a circuit under its card's name and version; the same one again changes nothing.

        Raises InvalidArgument without a name or a model hash, for the same circuit under another name, and for another
        circuit under this name and version.
        """
        card = circuit.card
        if not card.name:
            raise InvalidArgument("a circuit in a library has a name: circuit.with_card(name='…', category='…')")
        if not circuit.origin.model_hash:
            raise InvalidArgument(
                f"circuit {card.name!r} does not say which model it is of; set it: "
                "circuit.with_origin(model_hash=client.describe().model_hash)"
            )
        with self._locked():
            for known in self.circuits():
                if known.card.name != card.name and known.id == circuit.id:
                    raise InvalidArgument(f"{circuit.id} is in this library already, as {known.card.name!r}")
                if known.card.name == card.name and known.card.category != card.category:
                    raise InvalidArgument(
                        f"{card.name!r} is in the category {known.card.category!r} here, not {card.category!r}; "
                        "take that one, or another name"
                    )
                if (known.card.name, known.card.version) == (card.name, card.version):
                    if known.to_json() == circuit.to_json():
                        return self._path(circuit)
                    raise InvalidArgument(
                        f"version {card.version} of {card.name!r} is there already and is another; give a new version: "
                        f"circuit.with_card(version='{_next(self.versions(card.name))}')"
                    )
            return self._put(circuit)

    def get(self, name_or_id: str, version: str | None = None) -> Circuit:
        """A circuit by its name (the latest version, unless one is given) or its id. Raises NotFound."""
        found = [one for one in self.circuits() if name_or_id in (one.card.name, one.id)]
        if version is not None:
            found = [one for one in found if one.card.version == version]
        if not found:
            names = sorted({one.card.name for one in self.circuits()})
            known = self.versions(name_or_id) if name_or_id in names else ()
            told = f"versions {', '.join(known)}" if known else f"circuits {', '.join(names[:20]) or 'none'}"
            wanted = name_or_id if version is None else f"{name_or_id}, version {version}"
            raise NotFound(f"the library has no {wanted}; it has the {told}")
        return max(found, key=lambda one: one.card.version_key)

    def circuits(self) -> tuple[Circuit, ...]:
        """All of them, all versions, by name and version. Raises InvalidArgument for a damaged file, and names it."""
        found = [self._load(path) for path in self._files()]
        return tuple(sorted(found, key=lambda one: (one.card.name, one.card.version_key)))

    def versions(self, name: str) -> tuple[str, ...]:
        """The versions of a circuit, oldest first. Raises NotFound."""
        found = tuple(one.card.version for one in self.circuits() if one.card.name == name)
        if not found:
            raise NotFound(f"the library has no circuit {name!r}")
        return found

    # ---- looking ----

    def search(
        self,
        text: str = "",
        *,
        category: str = "",
        tags: Sequence[str] = (),
        model_hash: str = "",
        family: str = "",
        task: str = "",
        min_level: int = 0,
        contains: Unit | str | None = None,
        overlaps: Circuit | None = None,
    ) -> list[Hit]:
        """The latest versions that fit, the best first, each with the reasons.

        `text` is weighed by tf-idf over name, description, tags and claims; the rest are filters. `family`: part of the
        model's name. `contains`: a unit. `overlaps`: ranked by the share of units in common (Jaccard).
        """
        unit = Unit.parse(contains) if isinstance(contains, str) else contains
        query = Query(text, category, tuple(tags), model_hash, family, task, min_level, unit, overlaps)
        latest = {one.card.name: one for one in self.circuits()}  # they come by version, so the last one stays
        return ranked(list(latest.values()), query)

    def diff(self, a: str | Circuit, b: str | Circuit) -> Difference:
        """What two circuits (or names, "name@version" too) differ in."""
        return difference(self._named(a), self._named(b))

    def index(self, path: str | Path | None = None) -> str:
        """One HTML page of the library that needs no network; written to `path` where there is one."""
        return index_page(self.circuits(), str(self.folder), path)

    # ---- checking ----

    def record(self, name_or_id: str, entry: Mapping[str, Any], version: str | None = None) -> Circuit:
        """Keep what a check found on a circuit's card: an entry with a `level`, as `QaReport.entry()` gives it."""
        if not isinstance(entry.get("level"), int):
            raise InvalidArgument(f"what a check found is an entry with a level, got {sorted(entry)}")
        with self._locked():
            circuit = self.get(name_or_id, version)
            checked = circuit.with_card(validation=(*circuit.card.validation, dict(entry)))
            self._put(checked)
        return checked

    # ---- other formats, other places ----

    def export(self, name_or_id: str, path: str | Path, *, version: str | None = None, **options: Any) -> Path:
        """Write a circuit in another format, by the file's name (`write_circuit` in formats/ says which)."""
        return write_circuit(self.get(name_or_id, version), path, **options)

    def import_(self, path: str | Path, *, name: str = "", category: str = "", **options: Any) -> Circuit:
        """Add what a file of another format holds (`read_circuit` in formats/), under a name. Gives the circuit."""
        circuit = read_circuit(path, **options)
        changes = {key: value for key, value in {"name": name, "category": category}.items() if value}
        circuit = circuit.with_card(**changes) if changes else circuit
        self.add(circuit)
        return circuit

    def push(self, repo_id: str, *, private: bool = True, token: str | None = None, message: str = "") -> str:
        """Upload the folder to a repository of the Hugging Face hub, with the user's own login. Gives its address."""
        from .hub import push

        return push(self.folder, repo_id, private=private, token=token, message=message)

    def pull(self, repo_id: str, *, revision: str | None = None, token: str | None = None) -> list[Circuit]:
        """Add the circuits of such a repository; gives those that are new here. What is here already stays."""
        from .hub import pulled

        folder = pulled(repo_id, revision=revision, token=token)
        new: list[Circuit] = []
        for path in sorted(folder.rglob("*.json")):
            if path.name != "library.json":
                circuit = _loaded(path)
                before = self._path(circuit).exists()
                self.add(circuit)
                new += [] if before else [circuit]
        return new

    # ---- files ----

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*.json") if path.name != "library.json")

    def _load(self, path: Path) -> Circuit:
        stat = path.stat()
        known = self._read.get(path)
        if known is None or known[:2] != (stat.st_mtime_ns, stat.st_size):
            known = self._read[path] = (stat.st_mtime_ns, stat.st_size, _loaded(path))
        return known[2]

    def _named(self, given: str | Circuit) -> Circuit:
        if isinstance(given, Circuit):
            return given
        name, _, version = given.partition("@")
        return self.get(name, version or None)

    def _path(self, circuit: Circuit) -> Path:
        card = circuit.card
        return self.folder.joinpath(*filter(None, card.category.split("/")), card.name, f"{card.version}.json")

    def _put(self, circuit: Circuit) -> Path:
        path = self._path(circuit)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(circuit.to_json(), ensure_ascii=False, indent=1) + "\n")
        mine = [one for one in self.circuits() if one.card.name == circuit.card.name]
        _write(path.parent / "README.md", readme(mine))
        return path

    @contextmanager
    def _locked(self) -> Generator[None]:
        lock = FileLock(self.folder / ".lock", timeout=LOCK_WAIT_S)
        try:
            with lock:
                yield
        except Timeout:
            raise FailedPrecondition(
                f"somebody else has held the library's lock for {LOCK_WAIT_S:.0f} s ({lock.lock_file}); try again"
            ) from None


def _loaded(path: Path) -> Circuit:
    try:
        return Circuit.load(path)
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error.message}") from error


def _next(versions: Sequence[str]) -> str:
    *head, last = versions[-1].split(".")
    return ".".join([*head, str(int(last) + 1)])


def _write(path: Path, text: str) -> None:
    """Whole or not at all: aside, flushed, renamed."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
