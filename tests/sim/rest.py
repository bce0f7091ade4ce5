"""What must be left of a session when all is over, nothing, and what to tell if it does not end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from owndist.core.ids import DRIVER

if TYPE_CHECKING:
    from .session import Session


def check_rest(session: Session) -> None:
    """All handles and views are gone: nothing is left in any table (Laws 14, 17, 29)."""
    for process in session.processes():
        machine, who = process.machine, f"process {process.number}"
        references, borrowing = machine.references, machine.borrowing
        assert not references.entries, f"{who} keeps {list(references.entries)}"
        assert not references.extents, f"{who} keeps extents {list(references.extents)}"
        assert not machine.submission.tasks, f"{who} has unfinished tasks"
        assert not machine.submission.here.queue, f"{who} runs something"
        assert not machine.execution.queue and not machine.execution.started, who
        assert not borrowing.unanswered and not borrowing.lost, who
        assert not borrowing._unconfirmed, f"{who} owes {borrowing._unconfirmed}"
        assert not machine.inheritance.dead, f"{who} keeps {machine.inheritance.dead}"
        assert not machine.running._told, f"{who} has told of {machine.running._told}"
        written = {k: v for k, v in machine.running._written.items() if v}
        assert not written, f"{who} has written {written}"
        assert not machine.spilling.moving, who
        assert not machine.running._waits, f"{who} waits"
        if process is not session.driver:
            assert not machine.leases.workers, f"{who} leases {list(machine.leases.workers)}"
    machine = session.driver.machine
    lessor = machine.lessor
    assert not lessor.orphans, f"orphans: {list(lessor.orphans)}"
    assert not machine.inheritance.held and not machine.inheritance.awaited
    for owner, demand in lessor.demands.items():
        assert not demand.count and not demand.busy, f"owner {owner} has a demand"
    for one in lessor.processes.values():
        assert one.holder in (None, DRIVER), f"worker {one.number} is {one.holder}'s"
    assert not session.memory.live(), f"extents never freed: {session.memory.live()}"
    assert not session.memory.files(), f"files never removed: {session.memory.files()}"


def describe(session: Session) -> str:
    """Who waits for what; for a session that stands still."""
    lines = []
    for process in session.processes():
        machine = process.machine
        tasks = {
            t.id: (t.state, t.worker and t.worker.number) for t in machine.submission.tasks.values()
        }
        started = [(i[0], i[1][1]) for i in machine.execution.started]
        leases = {w.number: list(w.queue) for w in machine.leases.workers.values()}
        lines.append(
            f"{process.number}: runs {started}, tasks {tasks}, leases {leases}, "
            f"unanswered {machine.borrowing.unanswered}, "
            f"queue {[(i[0], i[1][1]) for i in machine.execution.queue]}"
        )
    for one in session.driver.machine.lessor.processes.values():
        lines.append(f"worker {one.number}: status {one.status}, holder {one.holder}")
    for owner, demand in session.driver.machine.lessor.demands.items():
        lines.append(f"owner {owner}: {demand.count} {demand.wanted} {demand.busy}")
    return "\n".join(lines)
