"""The page of gpu.py: which measurements it has, and how their results are written."""

from dataclasses import dataclass, replace

MEMORY = "memory"  # one batch that is already on the GPU
PNGS = "the PNGs"
COMMAND = "python benchmarks/speed.py --device cuda"
NOT_MEASURED = "not measured"
LEFT_OUT = "left out"


@dataclass(frozen=True)
class Row:
    """A measurement, which is a row of the page."""

    batch_size: int
    precision: str  # fp16, bf16, tf32, or fp32 for the plain pipeline
    source: str = MEMORY  # of the batches: MEMORY, PNGS, or the side of a cache as text
    on_device: bool = False  # augmentation
    compiled: bool = False

    @property
    def plain(self) -> bool:
        return self.precision == "fp32"


@dataclass(frozen=True)
class Figures:
    """Results of a measurement."""

    rate: float  # images/s
    share: float  # of the FLOP/s of a matrix product in this precision
    peak: float  # GB of GPU memory
    waited: float = 0.0  # share of the time that the loop waited for a batch
    first_step: float = 0.0  # seconds, compiling included


Results = dict[Row, Figures | str]  # a str says why there are none


@dataclass(frozen=True)
class Plan:
    """Which measurements there are."""

    batch_sizes: tuple[int, ...] = (64, 256)
    precisions: tuple[str, ...] = ("fp16", "bf16", "tf32")  # the loader is measured with the first
    cache_sizes: tuple[int, ...] = (512, 1024)

    def rows(self) -> list[Row]:
        """In the order of measuring: what comes last is left out first."""
        return [*self.steps(), *self.fed(), *self.compiled()]

    def steps(self) -> list[Row]:
        return [Row(size, name) for size in self.batch_sizes for name in ("fp32", *self.precisions)]

    def compiled(self) -> list[Row]:
        return [
            Row(size, name, compiled=True) for name in self.precisions for size in self.batch_sizes
        ]

    def fed(self) -> list[Row]:
        rows = []
        for batch_size in self.batch_sizes:
            rows.append(Row(batch_size, "fp32", PNGS))
            for size in map(str, self.cache_sizes):
                row = Row(batch_size, self.precisions[0], size)
                rows += [row, replace(row, on_device=True)]
        return rows


def write_page(plan: Plan, results: Results, facts: dict[str, str]) -> str:
    """The page as markdown.

    Args:
        plan: of the measurements.
        results: of those that were made so far; none gives the page as it is before the first run.
        facts: machine, date, versions and so on, by name; of a row above the tables.
    """
    facts = facts or dict.fromkeys(("machine", "date", "command", "matrix products"), NOT_MEASURED)
    lines = ["| | |", "|---|---|", *(f"| {name} | {fact} |" for name, fact in facts.items())]
    step_head = (
        "| batch | network | images/s | times plain | of the matrix product | memory | first step |"
    )
    fed_head = (
        "| batch | images from | augmented by | images/s | times plain | of the rate from memory "
        "| waiting for data | of the matrix product | memory |"
    )
    return PAGE.format(
        command=COMMAND,
        facts="\n".join(lines),
        steps=table(
            step_head, [step_line(row, results) for row in [*plan.steps(), *plan.compiled()]]
        ),
        fed=table(fed_head, [fed_line(row, results) for row in plan.fed()]),
        left_out=left_out(plan, results),
    )


def table(head: str, lines: list[str]) -> str:
    columns = head.count("|") - 1
    return "\n".join([head, "|---" * columns + "|", *lines])


def step_line(row: Row, results: Results) -> str:
    name = (
        "plain, fp32" if row.plain else f"{row.precision}, compiled" * row.compiled or row.precision
    )
    figures = results.get(row, NOT_MEASURED)
    cells = [figures] * 5
    if isinstance(figures, Figures):
        cells = [
            f"{figures.rate:,.0f}",
            times(figures, results.get(Row(row.batch_size, "fp32"))),
            f"{figures.share:.0%}",
            f"{figures.peak:.1f} GB",
            f"{figures.first_step:.1f} s",
        ]
    return line(row.batch_size, name, *cells)


def fed_line(row: Row, results: Results) -> str:
    source = row.source if row.plain else f"the {row.source} cache"
    place = "the workers" if not row.on_device else "the GPU"
    figures = results.get(row, NOT_MEASURED)
    cells = [figures] * 6
    if isinstance(figures, Figures):
        from_memory = results.get(Row(row.batch_size, row.precision))
        share = figures.rate / from_memory.rate if isinstance(from_memory, Figures) else None
        cells = [
            f"{figures.rate:,.0f}",
            times(figures, results.get(Row(row.batch_size, "fp32", PNGS))),
            NOT_MEASURED if share is None else f"{share:.0%}",
            f"{figures.waited:.0%}",
            f"{figures.share:.0%}",
            f"{figures.peak:.1f} GB",
        ]
    name = f"plain, fp32: {source}" if row.plain else f"{row.precision}: {source}"
    return line(row.batch_size, name, place, *cells)


def times(figures: Figures, plain: Figures | str | None) -> str:
    """Speed as a multiple of the plain pipeline's."""
    return f"{figures.rate / plain.rate:.2f}" if isinstance(plain, Figures) else NOT_MEASURED


def line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def left_out(plan: Plan, results: Results) -> str:
    """A sentence on what the time did not suffice for."""
    count = sum(results.get(row) == LEFT_OUT for row in plan.rows())
    if count == 0:
        return ""
    return (
        f"\nThe time did not suffice for {count} of the {len(plan.rows())} measurements, marked "
        f'"{LEFT_OUT}":\n`{COMMAND} --budget 1800` makes all.\n'
    )


PAGE = """\
# How fast is it on a GPU?

This page is written by one command, which needs a checkout, its environment and a GPU, and is meant
to take less than eight minutes; what there is no time for is left out, and listed:

```bash
{command}
```

It draws 320 images of 1024 x 1024 that decode like NIH's radiographs, fills caches from them in a
temporary folder, trains PYLON beside [the pipeline of 2020](../benchmarks/plain.py), and replaces
this page. `--data DIR` takes NIH's files instead. If you have a GPU: please send the page that it
wrote, as an issue or a pull request; nothing needs to be added by hand.

{facts}
{left_out}
## Training step, its batch in the GPU's memory

{steps}

## Training fed by the loader

{fed}

## What the columns mean

- **images/s**: images trained on per second at 256 x 256 (forward, backward, optimizer), median of
  three rounds; fed by the loader, one round, after what its workers had prefetched was used up.
- **times plain**: compared with the pipeline of 2020, float32 without TF32, with the same batch.
- **of the matrix product**: FLOP per second, as a share of what a large matrix product reaches in
  the same precision (tf32: float32 products that may use TF32).
- **of the rate from memory**: compared with the same step in the first table, which is the limit.
- **waiting for data**: share of the time that the training loop waits for its next batch. The GPU
  may still be busy, so the previous column says how much is lost.
- **memory**: the most that was allocated on the GPU.
- **first step**: with compiling (no cache of the compiler is used) and with cuDNN's search for the
  fastest convolutions.
"""
