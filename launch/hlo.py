"""Reads a compiled program's text (HLO): what one run of it moves between chips and to and from memory.

The compiler's own cost analysis counts the body of a loop once. Here a loop counts as often as it runs, so that
micro-batches and scanned layers count as often as they happen.

A program for several slices is that of one slice. Its collectives stay inside; what crosses, over the data-centre
network (DCN), the compiler hands to the host in a `send` that names the collective.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
SLICES = ("dynamic-slice", "slice", "gather")  # they read of their first operand only what they return
# They name a buffer, wait for one, or run a computation whose own instructions are counted: they move nothing.
FREE = frozenset(("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id"))
FREE |= {"while", "call", "conditional", "after-all", "opt-barrier", "async-start", "async-update", "async-done"}
FREE |= {"copy-done", "slice-done", "send-done", "recv-done", *(f"{kind}-done" for kind in COLLECTIVES)}
# Their shape holds the operands and the result; that of an all-reduce-start is the result alone.
WITH_OPERANDS = ("all-gather-start", "reduce-scatter-start", "all-to-all-start", "collective-permute-start")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b(?:pred|(?:s|u|f|bf)(\d+))\[([\d,]*)\](?:\{([^}]*)\})?")  # bits, dimensions, layout
_CALLED = re.compile(r"(?:calls|body|to_apply|called_computations|branch_computations)=\{?(%[\w.\-]+(?:, %[\w.\-]+)*)")
_MESH_GROUP = re.compile(r"replica_groups=mesh\[(.*?)\].*?\{(.*?)\}")  # axes of a mesh, and those that take part
_COUNTED_GROUP = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_LISTED_GROUP = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_ACROSS = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `%name = shape opcode(operands), rest`."""

    name: str
    shape: str
    opcode: str
    arguments: str
    rest: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.arguments)

    @property
    def called(self) -> list[str]:
        return [name.lstrip("%") for found in _CALLED.findall(self.rest) for name in found.split(", ")]


Computation = dict[str, Instruction]  # by name; the last instruction is the root


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one chip does in one run of the program."""

    collectives: dict[str, tuple[int, float]]  # inside a slice: kind -> (count, bytes of the complete arrays)
    across: dict[str, tuple[int, float]]  # slices: the same of a chip and those in its place in the other slices
    sent_bytes: float  # what a chip sends inside its slice, by the best known algorithm on a ring
    dcn_bytes: float  # what a chip sends to other slices, likewise
    hbm_bytes: float  # read from and written to high-bandwidth memory, without the padding of tiles


def traffic(text: str, devices: int, slices: int = 1) -> Traffic:
    """Returns what one chip of a slice of `devices` moves in one run of a compiled program."""
    entry, computations = _parse(text)
    inside, across = collections.defaultdict(lambda: (0, 0.0)), collections.defaultdict(lambda: (0, 0.0))
    sent = dcn = hbm = 0.0
    seen = set()
    for instruction, where, times, fused in _executed(entry, computations):
        if not fused:
            hbm += times * _hbm_bytes(instruction, computations[where], computations)
        kind = instruction.opcode.removesuffix("-start")
        if kind == "send" and (crossing := _ACROSS.search(instruction.rest)):
            crosses = crossing[1].lower().replace("_", "-")
            array = size(computations[where][instruction.operands[0]].shape)
            array *= slices if crosses == "all-gather" else 1  # a chip sends its part
            across[crosses] = (across[crosses][0] + times, across[crosses][1] + times * array)
            dcn += times * array * _share_sent(crosses, slices)
        if kind not in COLLECTIVES:
            continue
        # An overlapped collective appears in each of its stages, with one channel and chain.
        if chain := re.search(r'chain_id="(\d+)"', instruction.rest):
            stage = (kind, re.search(r"channel_id=(\d+)", instruction.rest)[1], chain[1])
            if stage in seen:
                continue
            seen.add(stage)
        if kind == "all-reduce" and where.startswith("all-reduce-scatter"):  # the TPU's form of it
            kind = "reduce-scatter"
        group = group_size(instruction.rest, devices)
        array = size(instruction.shape)
        match instruction.opcode:
            case "reduce-scatter":  # its result is a part
                array *= group
            case "all-gather-start" | "reduce-scatter-start":
                array *= group / (group + 1)
            case opcode if opcode in WITH_OPERANDS:
                array *= 0.5
        inside[kind] = (inside[kind][0] + times, inside[kind][1] + times * array)
        sent += times * array * _share_sent(kind, group)
    return Traffic(dict(sorted(inside.items())), dict(sorted(across.items())), sent, dcn, hbm)


def _share_sent(kind: str, group: int) -> float:
    """Returns the share of the complete array that each member of a group sends for a collective."""
    if kind in ("collective-permute", "one-to-one"):
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (group - 1) / group


def group_size(rest: str, devices: int) -> int:
    """Returns how many chips take part in a collective together."""
    if found := _MESH_GROUP.search(rest):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(axes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    if found := _COUNTED_GROUP.search(rest):
        return int(found[1])
    if found := _LISTED_GROUP.search(rest):
        return found[1].count(",") + 1
    return devices


def size(shape: str, hbm_only: bool = False) -> int:
    """Returns the bytes of the arrays in a shape; with `hbm_only`, of those in high-bandwidth memory.

    A layout with `S(…)` is in the vector or scalar memory inside the chip.
    """
    return sum(
        int(bits or 8) // 8 * math.prod(int(n) for n in dimensions.split(",") if n)
        for bits, dimensions, layout in _ARRAY.findall(shape)
        if not (hbm_only and "S(" in layout)
    )


def _parse(text: str) -> tuple[str, dict[str, Computation]]:
    """Returns the name of the entry computation, and every computation by name."""
    entry, current, computations = "", {}, {}
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            name, shape, opcode, tail = found.groups()
            current[name] = Instruction(name, shape, opcode, *_cut_at_close(tail))
    return entry, computations


def _cut_at_close(tail: str) -> tuple[str, str]:
    """Cuts `a, (b), c), rest` at the parenthesis that closes the operands."""
    depth = 1
    for at, char in enumerate(tail):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return tail[:at], tail[at + 1 :]
    return tail, ""


def _executed(entry: str, computations: dict[str, Computation]) -> Iterator[tuple[Instruction, str, int, bool]]:
    """Yields every instruction that runs, with its computation, how often it runs, and whether inside a fusion."""
    waiting = [(entry, 1, False)]
    while waiting:
        where, times, fused = waiting.pop()
        for instruction in computations[where].values():
            yield instruction, where, times, fused
            if instruction.opcode in ("fusion", "while", "call", "conditional", "async-start"):
                inner = times * _trips(instruction, computations)
                waiting += [(name, inner, fused or instruction.opcode == "fusion") for name in instruction.called]


def _trips(instruction: Instruction, computations: dict[str, Computation]) -> int:
    """Returns how often the body of a loop runs; `lax.scan` counts from 0 to a constant in the loop's condition."""
    if instruction.opcode != "while":
        return 1
    waiting, limits = re.findall(r"condition=%([\w.\-]+)", instruction.rest), [1]
    while waiting:
        for inner in computations[waiting.pop()].values():
            waiting += inner.called
            if inner.opcode == "constant" and inner.shape.startswith("s32[]"):
                limits.append(int(inner.arguments))
    return max(limits)


def _hbm_bytes(instruction: Instruction, around: Computation, computations: dict[str, Computation]) -> int:
    """Returns the bytes that an instruction outside any fusion reads from and writes to high-bandwidth memory."""
    opcode, shape = instruction.opcode, instruction.shape
    if opcode in FREE:
        return 0
    if opcode == "fusion":
        return _fusion_bytes(computations[instruction.called[0]])
    if opcode in ("copy-start", "send", "recv", *WITH_OPERANDS):  # it holds both ends, or the one on the chip
        return size(shape, hbm_only=True)
    operands = [around[name].shape for name in instruction.operands if name in around]
    if opcode in SLICES or opcode == "slice-start":
        part = shape if opcode in SLICES else shape.rpartition("), ")[2]
        return size(part, hbm_only=True) + (size(part) if size(operands[0], hbm_only=True) else 0)
    if opcode == "dynamic-update-slice":  # in place
        return 2 * size(operands[1]) if size(shape, hbm_only=True) else 0
    return sum(size(each, hbm_only=True) for each in (shape, *operands))


def _fusion_bytes(fused: Computation) -> int:
    """Returns what a fusion reads of its parameters and writes as its results; in between nothing leaves the chip."""
    root = next(reversed(fused.values()))
    results = [fused[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for result in results:
        if result.opcode == "dynamic-update-slice":
            total += size(fused[result.operands[1]].shape) if size(result.shape, hbm_only=True) else 0
        elif result.opcode != "parameter":  # a parameter that is passed through stays in place
            total += size(result.shape, hbm_only=True)
    for parameter in fused.values():
        if parameter.opcode == "parameter" and size(parameter.shape, hbm_only=True):
            users = [user for user in fused.values() if parameter.name in user.operands]
            reads = [_read_of(parameter, user) for user in users if user is not root or root.opcode != "tuple"]
            total += max(reads, default=0)
    return total


def _read_of(parameter: Instruction, user: Instruction) -> int:
    first = user.operands[0] == parameter.name
    if first and user.opcode in SLICES:
        return size(user.shape)
    return 0 if first and user.opcode == "dynamic-update-slice" else size(parameter.shape)
