"""Run all benchmarks, print one table and write it as JSON.

python benchmarks/run_all.py --out benchmarks/results.json     # about 25 minutes on 2 cores
"""

from __future__ import annotations

import argparse

import bench_collect
import bench_evaluate
import bench_flops
import bench_open
import bench_step
import bench_train
from common import print_table, result_file, write_results

STAGES = {
    "stepping": bench_step,
    "collection": bench_collect,
    "training": bench_train,
    "evaluation": bench_evaluate,
    "opening": bench_open,
    "operations": bench_flops,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="check that it runs; the numbers mean nothing")
    parser.add_argument("--out", type=result_file, help="write the table as JSON (default: only print it)")
    args = parser.parse_args(argv)
    flags = ["--tiny"] if args.tiny else []
    results = {stage: script.main(flags) for stage, script in STAGES.items()}
    print("\n==== all ====")
    for stage, result in results.items():
        print_table(stage, result["rows"])
    if args.out:
        write_results(args.out, results)


if __name__ == "__main__":
    main()
