"""Where the ``doppler`` binary is, and how it is called. Nothing here knows models or dumps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

PathLike = Union[str, "os.PathLike[str]"]

#: Exit codes of the binary: all is well, and something was found in the model's values.
FINE, FINDING = 0, 1

_NAME = "doppler.exe" if os.name == "nt" else "doppler"


class DopplerError(RuntimeError):
    """The binary could not do its work. The text is its own.

    ``kind`` is the engine's word for it (``config``, ``weights``, ``io``, ...), where it gave one, ``code`` the exit code,
    ``command`` the command line.
    """

    def __init__(self, message: str, *, kind: Optional[str] = None, code: Optional[int] = None, command: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.kind, self.code, self.command = kind, code, list(command)


def find_binary() -> Path:
    """The binary: that of the environment variable ``DOPPLER``, the one on PATH, or one built in this repository.

    Raises ``DopplerError`` that lists where it was looked for.
    """
    named = os.environ.get("DOPPLER")
    if named:
        found = shutil.which(named)
        if found:
            return Path(found)
        raise DopplerError(f"DOPPLER={named}: there is no program of that name; let DOPPLER name the doppler binary, or unset it")
    on_path = shutil.which("doppler")
    if on_path:
        return Path(on_path)
    built = _built()
    for candidate in built:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    looked = ", ".join(["$DOPPLER (not set)", "PATH", *map(str, built)])
    raise DopplerError(f"the doppler binary was not found; looked at: {looked}. Install it with `cargo xtask install` in a clone, or set DOPPLER")


def _built() -> List[Path]:
    """Where Cargo puts binaries of the repository that holds this file or the current folder; the faster one first."""
    roots = [folder for start in (Path(__file__).resolve(), Path.cwd() / "x") for folder in start.parents]
    roots = [root for root in dict.fromkeys(roots) if (root / "Cargo.toml").is_file() and (root / "cli").is_dir()]
    target = os.environ.get("CARGO_TARGET_DIR")
    targets = ([Path(target)] if target else []) + [root / "target" for root in roots]
    return [folder / profile / _NAME for folder in targets for profile in ("release", "debug")]


def call(arguments: Sequence[str], *, binary: Optional[PathLike] = None, cwd: Optional[PathLike] = None) -> "Output":
    """Runs ``doppler ARGUMENTS`` to its end.

    Raises ``DopplerError`` with the binary's own words where it could not do its work. A finding is no error.
    """
    program = str(binary) if binary is not None else str(find_binary())
    command = [program, *arguments]
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd)
    except OSError as error:
        raise DopplerError(f"{program}: cannot be started: {error.strerror or error}", command=command) from error
    stdout, stderr = (text.decode("utf-8", "replace") for text in (ended.stdout, ended.stderr))
    failed = [line[len("Error ") :] for line in stderr.splitlines() if line.startswith("Error ")]
    if ended.returncode not in (FINE, FINDING) or failed:
        message = "\n".join(_after_error(stderr)) or stderr.strip() or f"{program} ended with code {ended.returncode}"
        raise DopplerError(message, kind=_kind(stdout), code=ended.returncode, command=command)
    return Output(stdout, stderr, ended.returncode)


class Output:
    """What a call printed."""

    def __init__(self, stdout: str, stderr: str, code: int) -> None:
        self.stdout, self.stderr, self.code = stdout, stderr, code

    def records(self) -> List[Dict[str, Any]]:
        """The JSON objects on stdout, one a line."""
        return [_json(line) for line in self.stdout.splitlines() if line.strip()]

    def document(self) -> Dict[str, Any]:
        """The one JSON object on stdout."""
        return _json(self.stdout)


def _json(text: str) -> Dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DopplerError(f"expected a JSON object from the binary, found: {text[:200]!r} ({error})") from error
    if not isinstance(value, dict):
        raise DopplerError(f"expected a JSON object from the binary, found: {text[:200]!r}")
    return value


def _after_error(stderr: str) -> List[str]:
    """What stderr says from its ``Error`` line on."""
    lines = stderr.splitlines()
    for at, line in enumerate(lines):
        if line.startswith("Error "):
            return [line[len("Error ") :], *lines[at + 1 :]]
    return []


def _kind(stdout: str) -> Optional[str]:
    """The kind of an error that is on stdout as a JSON line."""
    for line in stdout.splitlines():
        if '"type":"error"' in line:
            try:
                return str(json.loads(line)["kind"])
            except (ValueError, KeyError, TypeError):
                return None
    return None


def number(value: Any) -> float:
    """A number of the binary's JSON, in which NaN and infinities are strings."""
    return float({"NaN": "nan", "Inf": "inf", "-Inf": "-inf"}.get(value, value)) if isinstance(value, str) else float(value)
