"""Restore a large image by the command, and say what it took by the operating system's account.

python scripts/check_large_pictures.py [6000x4000 8660x5774] [--preset best] [--steps N] [--most-memory GIB]

Without --steps the preset's own number of them is made, which takes long: a step of a sample of 24 megapixels is 247
windows of 384 pixels. The peak is the same with one, as every step has the same states; of every further sample but
the second, a byte a channel is kept. Each size is a process of its own. The exit status is 1 where the peak is above
--most-memory.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "reports"))
from benchmark import make_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", default=["6000x4000", "8660x5774"], metavar="WIDTHxHEIGHT")
    parser.add_argument("--preset", default="best")
    parser.add_argument("--steps", type=int, help="evaluations in a sample; by default those of the preset")
    parser.add_argument("--most-memory", type=float, metavar="GIB", help="of each")
    arguments = parser.parse_args()
    above = []
    for size in arguments.sizes:
        width, height = map(int, size.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "large.jpg")
            source.write_bytes(make_file(width, height))
            command = [sys.executable, "-m", "pipeline_ddrm_jpeg", "restore", source, "--preset", arguments.preset]
            command += ["--steps", arguments.steps] if arguments.steps else []
            start = time.perf_counter()
            process = subprocess.Popen([*map(str, command)])
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                sys.exit(f"{size} failed")
        seconds, peak = time.perf_counter() - start, usage.ru_maxrss / 2**20
        print(f"{size}, {width * height / 1e6:.1f} megapixels: {seconds:.0f} s, peak memory {peak:.2f} GiB", flush=True)
        if arguments.most_memory and peak > arguments.most_memory:
            above.append(size)
    if above:
        sys.exit(f"more than {arguments.most_memory} GiB: {', '.join(above)}")


if __name__ == "__main__":
    main()
