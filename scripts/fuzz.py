"""Breaks JPEG files in every way the corpus of the tests knows, and reads them: `make fuzz`, a nightly kind of test."""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from jpeg_corpus import Case, corpus, judge_cases

CHUNK = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to repeat one")
    parser.add_argument("--seed", type=int, help="by default a fresh one, which is printed")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--output", type=Path, default=Path("build/fuzz"), help="folder for the files that went wrong")
    options = parser.parse_args()
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    end = options.first + options.cases
    print(f"{options.cases} cases from {options.first} of seed {seed}, {len(corpus())} files in the corpus", flush=True)

    outcomes, repairs, bad, slowest, largest = Counter(), Counter(), [], [], 0.0
    start, finished = time.monotonic(), 0
    chunks = ((first, min(first + CHUNK, end)) for first in range(options.first, end, CHUNK))
    progress = tqdm(total=options.cases, unit="case", mininterval=1 if sys.stderr.isatty() else 60)
    ignore = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process, which tells the others
    pool = ProcessPoolExecutor(options.jobs, get_context("spawn"), signal.signal, ignore)
    try:
        pending = {pool.submit(judge_cases, seed, *chunk): chunk for chunk in islice(chunks, 2 * options.jobs)}
        while pending:
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                chunk = pending.pop(future)
                for number, verdict in future.result():
                    (repairs if verdict.what.endswith("(repaired)") else outcomes)[verdict.outcome] += 1
                    slowest = sorted([*slowest, (verdict.seconds, number, verdict.what)], reverse=True)[:5]
                    largest = max(largest, verdict.mebibytes)
                    if verdict.outcome.startswith("BAD"):
                        bad.append(number)
                        options.output.mkdir(parents=True, exist_ok=True)
                        path = options.output / f"{seed}-{number}.jpg"
                        path.write_bytes(Case(seed, number).make()[1])
                        tqdm.write(f"{path}  {verdict.what}  {verdict.outcome}")
                finished += chunk[1] - chunk[0]
                progress.update(chunk[1] - chunk[0])
                for following in islice(chunks, 1):
                    pending[pool.submit(judge_cases, seed, *following)] = following
    except BrokenProcessPool:
        bad.extend(first for first, _ in pending.values())
        tqdm.write(f"a process died in one of the cases {', '.join(f'{a}..{b - 1}' for a, b in pending.values())}")
    except KeyboardInterrupt:
        tqdm.write(f"stopped after {finished} cases")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        progress.close()

    print(f"\n{finished} cases in {time.monotonic() - start:.0f} s; seed {seed}")
    for outcome, count in outcomes.most_common():
        print(f"{count:8}  {outcome}")
    print(f"every fourth damaged file again, to be repaired: {repairs.total()}")
    for outcome, count in repairs.most_common():
        print(f"{count:8}  {outcome}")
    print("slowest, in seconds of processor time:")
    for seconds, number, what in slowest:
        print(f"{seconds:8.2f}  case {number}, {what}")
    print(f"largest memory of a process: {largest:.0f} MiB")
    if bad:
        print(f"{len(bad)} bad outcomes; again with: python scripts/fuzz.py --seed {seed} --first {bad[0]} --cases 1")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
