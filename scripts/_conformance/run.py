"""Runs the Autobahn fuzzing client against the echo, reports what it found, and records what it sent."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

TESTS = Path(__file__).resolve().parents[2] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "conformance")]

from autobahn_corpus import load, save  # noqa: E402 - the tests' directory had to be put on the path first
from echo_service import SETTINGS, TARGET, echoing  # noqa: E402 - likewise
from recorder import Recorder, case_of  # noqa: E402 - likewise

from collab.testing import open_service  # noqa: E402 - likewise

if TYPE_CHECKING:
    from collab.testing import LocalService

WAYS = {"pump": True, "tap": False}
LONGEST_SECONDS = 900.0
COMPRESSION = ["12.*", "13.*"]
BAD = {"FAILED", "UNCLEAN", "WRONG CODE", "FAILED BY CLIENT", "UNIMPLEMENTED"}
ABOUT = (
    "What the Autobahn fuzzing client sends in each case, and what it takes for an answer. "
    "Written by scripts/conformance --record."
)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--wstest", required=True)
    parser.add_argument("--cases", default="*")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    if options.record and options.cases != "*":
        parser.error("--record needs all cases")
    cases = options.cases.split(",")
    passed = True
    with tempfile.TemporaryDirectory() as directory:
        for way in WAYS:
            recorder = Recorder() if options.record and way == "pump" else None
            started = time.perf_counter()
            reports = trio.run(run, options.wstest, way, cases, Path(directory), recorder)
            passed &= tell(way, reports, time.perf_counter() - started)
            if options.cases == "*" and recorder is None and (lost := set(load()) - set(reports)):
                print(f"{way}: not run: {', '.join(sorted(lost))}")
                passed = False
            if recorder is not None and passed:
                record(reports, recorder)
    return 0 if passed else 1


async def run(
    wstest: str, way: str, cases: list[str], directory: Path, recorder: Recorder | None
) -> dict[str, dict[str, Any]]:
    """The fuzzing client's report on each case, in its own order; none where it came to no end."""
    with echoing():
        async with open_service(SETTINGS, pumped=WAYS[way]) as local, trio.open_nursery() as nursery:
            host, port = await _address(local, nursery, recorder)
            spec = {
                "outdir": str(directory / way),
                "servers": [{"agent": way, "url": f"ws://{host}:{port}{TARGET}"}],
                "cases": cases,
                "exclude-cases": COMPRESSION,
                "exclude-agent-cases": {},
            }
            spec_file = directory / f"{way}.json"
            spec_file.write_text(json.dumps(spec))
            with trio.fail_after(LONGEST_SECONDS):
                ended = await trio.run_process(
                    [wstest, "--mode=fuzzingclient", f"--spec={spec_file}"],
                    capture_stdout=True,
                    stderr=subprocess.STDOUT,
                    cwd=directory,
                    check=False,
                )
            nursery.cancel_scope.cancel()
    report_file = directory / way / "index.json"
    if not report_file.exists():
        print(ended.stdout.decode(errors="replace")[-2000:])
        return {}
    index = json.loads(report_file.read_text())[way]
    return {
        case_id: json.loads((directory / way / index[case_id]["reportfile"]).read_text())
        for case_id in sorted(index, key=lambda case_id: [int(part) for part in case_id.split(".")])
    }


async def _address(local: LocalService, nursery: trio.Nursery, recorder: Recorder | None) -> tuple[str, int]:
    """Where the fuzzing client connects to: the service, or the recorder in front of it."""
    address = local.service.addresses[0]
    return address if recorder is None else await nursery.start(recorder.run, address)


def tell(way: str, reports: dict[str, dict[str, Any]], seconds: float) -> bool:
    """Print what was not OK and the summary: whether nothing was bad."""
    counts: Counter[str] = Counter()
    for case_id, report in reports.items():
        behavior, close = report["behavior"], report["behaviorClose"]
        verdict = next((word for word in (behavior, close) if word in BAD), behavior)
        counts[verdict] += 1
        if verdict != "OK":
            print(f"{way} {case_id}: {behavior}, close {close}: {report['result']} {report['resultClose']}")
    words = ["OK", "NON-STRICT", "INFORMATIONAL", "FAILED", "UNCLEAN"]
    words += sorted(set(counts) - set(words))
    print(
        f"{way}: {len(reports)} cases in {seconds:.0f} s: "
        + ", ".join(f"{counts[word]} {word}" for word in words),
        flush=True,
    )
    return bool(reports) and not BAD & set(counts)


def record(reports: dict[str, dict[str, Any]], recorder: Recorder) -> None:
    assert len(reports) == len(recorder.recordings), "a connection for each case was expected"
    save(
        ABOUT,
        {
            case_id: case_of(report, recording)
            for (case_id, report), recording in zip(reports.items(), recorder.recordings, strict=True)
        },
    )


if __name__ == "__main__":
    sys.exit(main())
