"""Why a lease could not be given: what there was and who held the rest, noted in a turn and put into words after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..cpuset import CpuSet
from ..light import dataclass
from ..units import format_count, format_size
from .claims import SLOTS, Claim
from .records import Holding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .hold import Hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """What was asked for, and what was found."""

    claim: Claim
    free: CpuSet
    usable: int
    """How many CPUs are given out in all."""
    memory_bytes: int
    """What was left."""
    own: Sequence[Hold]
    """Leases of this process in the way, and those of others."""
    others: Sequence[Holding]
    ahead: int
    """How many wait before this one."""
    all_taken: Sequence[tuple[str, int]] = ()
    """What only so many leases may have at once, and have: its name and how many."""

    def is_our_own(self, also: Sequence[str] = ()) -> bool:
        """Only leases of this process are in the way, neither those of others nor ``also`` these."""
        return bool(self.own) and not self.others and not also

    def holders(self, also: Iterable[str] = ()) -> str:
        """Who holds what is lacking, and ``also`` these."""
        said = []
        if self.own:
            cpus = CpuSet(cpu for hold in self.own for cpu in hold.cpus)
            ours = f"{format_count(len(self.own), 'lease')} of this process"
            said.append(f"{ours} (CPUs {cpus}{self._taken_by(self.own)})")
        by_owner: dict[str, list[Holding]] = {}
        for other in self.others:
            by_owner.setdefault(other.owner.mark, []).append(other)
        for holdings in by_owner.values():
            cpus = CpuSet(cpu for one in holdings for cpu in one.cpus)
            memory = sum(one.memory_bytes for one in holdings)
            and_memory = f" and {format_size(memory)}" if memory else ""
            said.append(f"{holdings[0].owner} (CPUs {cpus}{and_memory}{self._taken_by(holdings)})")
        return ", ".join([*said, *also]) or "those who have waited longer"

    def explain(self, waited_s: float | None, also: Iterable[str] = ()) -> str:
        """The whole of it, as an error that says what to do."""
        claim = self.claim
        asked = f"a lease of {format_count(claim.threads, 'CPU')}"
        asked += f" and {format_size(claim.memory_bytes)}" if claim.memory_bytes else ""
        asked += f" and {format_count(claim.gpus, 'GPU')}" if claim.gpus else ""
        found = f"{len(self.free)} of {self.usable} CPUs and {format_size(self.memory_bytes)} are free"
        found += f", the others are held by {self.holders(also)}"
        queue = f", and {self.ahead} ahead of it in the queue" if self.ahead > 0 else ""
        when = f"within {waited_s:g} s" if waited_s else "now"
        return f"{asked} cannot be given {when}: {found}{queue}; wait{' longer' if waited_s else ''}, or ask for less"

    def _taken_by(self, holdings: Sequence[Hold | Holding]) -> str:
        """What these have of that of which there is no more."""
        taken = ((name, most, sum(f"{SLOTS}{name}" in one.draws for one in holdings)) for name, most in self.all_taken)
        return "".join(f"; {count} of the {most} that {name} may have at once" for name, most, count in taken if count)
