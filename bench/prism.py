"""How fast Prism runs: each way of doing the same work, in turns within one process, as a ratio to plain Python.

`python bench/prism.py` prints nanoseconds for each operation (least of the rounds) and the ratio. "plain" is the target
line of the performance page: 3 arithmetic operations in each of 100,000 rounds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from parallax.prism import Effect, Limits, Outcome, PrismRuntime, evaluate, parse
from parallax.prism import compile as compile_prism
from parallax.prism.runtime import run_sync

ROUNDS = 7
N = 100_000
WIDE = Limits(nodes=10**9, loop_iterations=10**9)

LOOP = f"let t = 0; for let i = 0; i < {N}; i = i + 1 {{ t = (t + i * 2) - 1 }} t"
FOR_IN = f"let t = 0; for i in range({N}) {{ t = (t + i * 2) - 1 }} t"
SURE = f"let t = 0 ~> 0.9; for i in range({N}) {{ t = (t + i * 2) - 1 }} t"
FIB = "fn fib(n) { n < 2 ? n : fib(n - 1) + fib(n - 2) } fib(20)"
MAP = f"range({N}).map(x => x * 2 + 1).filter(x => x > 10).length"
TEXT = 'let xs = []; for i in range(300) { xs = xs.push("n ${i}: ${i * 2}") } xs.join(",").length'


def plain_loop() -> float:
    t, i = 0.0, 0.0
    while i < N:
        t = (t + i * 2.0) - 1.0
        i = i + 1.0
    return t


def plain_sure() -> tuple[float, float]:
    t, c = 0.0, 0.9
    for i in range(N):
        t, c = (t + float(i) * 2.0) - 1.0, min(c, 1.0)
    return t, c


def plain_fib(n: float = 20.0) -> float:
    return n if n < 2.0 else plain_fib(n - 1.0) + plain_fib(n - 2.0)


def plain_map() -> int:
    return len([x for x in [x * 2.0 + 1.0 for x in map(float, range(N))] if x > 10.0])


def plain_text() -> int:
    xs: list[str] = []
    for i in range(300):
        xs = [*xs, f"n {i}: {i * 2}"]
    return len(",".join(xs))


class Quiet:
    async def perform(self, effect: Effect) -> Outcome:
        return Outcome()

    def recall(self, key: str) -> Outcome | None:
        return None

    def print(self, line: str) -> None:
        return None


def sync(source: str) -> Callable[[], object]:
    program = compile_prism(source)
    return lambda: run_sync(program, globals={}, limits=WIDE)


def hosted(source: str) -> Callable[[], object]:
    program = compile_prism(source)
    return lambda: asyncio.run(PrismRuntime(program, Quiet(), limits=WIDE).run())


def best(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


GROUPS: list[tuple[str, int, list[tuple[str, Callable[[], object]]]]] = [
    ("plain loop", 3 * N, [
        ("python", plain_loop), ("prism", sync(LOOP)), ("prism, hosted", hosted(LOOP)), ("prism, for in", sync(FOR_IN)),
    ]),
    ("least confidence", 3 * N, [("python", plain_sure), ("prism", sync(SURE)), ("prism, hosted", hosted(SURE))]),
    ("fib(20), calls", 21_891, [("python", plain_fib), ("prism", sync(FIB)), ("prism, hosted", hosted(FIB))]),
    ("map and filter", 2 * N, [("python", plain_map), ("prism", sync(MAP)), ("prism, hosted", hosted(MAP))]),
    ("text", 300, [("python", plain_text), ("prism", sync(TEXT))]),
]  # fmt: skip


def main() -> None:
    for name, operations, ways in GROUPS:
        least = dict.fromkeys((way for way, _ in ways), float("inf"))
        for _ in range(ROUNDS):
            for way, work in ways:
                least[way] = min(least[way], best(work))
        print(name)
        for way, seconds in least.items():
            print(f"  {way:16} {seconds / operations * 1e9:8.1f} ns/op {seconds / least['python']:6.2f} x")
    small = 'let x = [1, 2, 3].map(v => v * 2); "sum ${x.reduce((a, b) => a + b)}"'
    print("a small program")
    for way, work in (("parse", lambda: parse(small)), ("evaluate", lambda: evaluate(small))):
        print(f"  {way:16} {min(best(work) for _ in range(200)) * 1e3:8.3f} ms")


if __name__ == "__main__":
    main()
