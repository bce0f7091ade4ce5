"""Bugs that `mutations` plants into what owners, lenders, borrowers and the lessor say."""

from __future__ import annotations

# (what is wrong, file, these words, are replaced by those)
OWNERS_MUTATIONS = [
    (
        "a registration is not answered",
        "borrowing.py",
        "        if asked:\n            self._commands.append(Send(peer, (REGISTERED",
        "        if False:\n            self._commands.append(Send(peer, (REGISTERED",
    ),
    (
        "a borrower does not wait for the owner's answer",
        "borrowing.py",
        "asked = self._ask((address,))",
        "asked = 0",
    ),
    (
        "whoever gives away a third one's future does not wait for its answer",
        "borrowing.py",
        "asked = self._ask(addresses)",
        "asked = 0",
    ),
    (
        "whoever gives away a future of its own does not register the receiver",
        "borrowing.py",
        "self.references.add_borrower(entry, process, token, self.number)",
        "pass",
    ),
    (
        "an owner that dies is waited for",
        "borrowing.py",
        "                del self.unanswered[asked]\n",
        "                pass\n",
    ),
    (
        "what was to come from a dead owner is waited for",
        "borrowing.py",
        "                entry.tokens = ()\n                if entry.status == PENDING:",
        "                entry.tokens = ()\n                if False:",
    ),
    (
        "nobody is asked whether he has heard of what a dead process registered for him",
        "borrowing.py",
        "            self._commands.append(Send(process, (CONFIRM, number, tuple(items))))",
        "            pass",
    ),
    (
        "a release names another registration",
        "borrowing.py",
        "(RELEASE, ((address.id, token),))",
        "(RELEASE, ((address.id, token + 1),))",
    ),
    (
        "of two registrations one is forgotten",
        "references.py",
        "                self.releases.append((address, token))  # one is enough",
        "                pass",
    ),
    (
        "a lifeline goes with the object that it came with",
        "references.py",
        "                    if record.lifeline == gone.id and not record.tokens:",
        "                    if False:",
    ),
    (
        "a dead borrower's tasks have no views",
        "references.py",
        "record.strayed |= record.told",
        "pass",
    ),
    (
        "an owner is told of mappings of what it does not know",
        "running.py",
        "for key in self._execution.brought():",
        "for key in mapped:",
    ),
    (
        "what was passed on counts as written for whoever passed it on",
        "running.py",
        "            and not self.may_pass_on(extent_key(extent))",
        "            and True",
    ),
    (
        "what was written for a dead owner may be used again",
        "running.py",
        "self._commands.append(Abandon(serial))",
        "self._commands.append(Free(serial))",
    ),
    (
        "a dead owner's tasks start",
        "execution.py",
        "        self.queue = deque([i for i in self.queue if i[0] != owner or i[1][0] != TASK])\n",
        "",
    ),
    (
        "one process is not told of a death",
        "deaths.py",
        "        for number in others:\n",
        "        for number in others[1:]:\n",
    ),
    (
        "a process that has nothing of a dead owner's does not say so",
        "deaths.py",
        "            machine.commands.append(Send(DRIVER, (m.VACANT,)))",
        "            pass",
    ),
    (
        "the lessor does not hear that a segment is needed no more",
        "inheritance.py",
        "            self._commands.append(Send(DRIVER, (UNHOLD, number, segment)))",
        "            pass",
    ),
    (
        "the lessor does not ask others what they need of a dead process",
        "inheritance.py",
        "            held.setdefault(segment, {})[peer] = None",
        "            pass",
    ),
    (
        "the lessor does not hear that a task waits",
        "running.py",
        "        self._commands.append(Send(DRIVER, (code,)))\n",
        "",
    ),
    (
        "the cap on processes holds although all of them wait",
        "lessor.py",
        "or (wanted and not self.slots_used)",
        "",
    ),
    (
        "a worker leaves although it owns something",
        "machine.py",
        "        return execution.final or not (",
        "        return True or not (",
    ),
    (
        "idle workers are not given back when the task has ended",
        "running.py",
        "            self._submission.give_back_idle(now)",
        "            pass",
    ),
    (
        "of two workers that are granted at once one is kept",
        "granting.py",
        "        machine.submission.dispatch(now)  # now: the next grant may be one too many\n"
        "        if worker.number in machine.leases.idle:",
        "        if not machine.submission.ready:",
    ),
    (
        "the driver ends although others have tasks",
        "draining.py",
        "            and not machine.lessor.is_busy()",
        "",
    ),
    (
        "what a dead process had leased is lost",
        "lessor.py",
        "                self.orphans[other.number] = other\n",
        "                pass\n",
    ),
    (
        "what was lost of several values while their task ran is never made again",
        "submission.py",
        "                missing = several.take_missing(self, task)",
        "                several.take_missing(self, task)",
    ),
    (
        "what comes for one of several values that is there is not freed",
        "returns.py",
        "        submission.borrowing.discard(worker.number, status, value, nested)\n",
        "",
    ),
    (
        "a borrower that has not found a value hears nothing more",
        "recovery.py",
        "        self._lose(key, segment)\n        self._borrowing.answer(peer, object_id)\n",
        "        self._lose(key, segment)\n",
    ),
    (
        "an execution for a lost value is not charged",
        "recovery.py",
        "        task.charged += 1\n",
        "",
    ),
    (
        "of a task that is to run again, other values that are gone do not come",
        "returns.py",
        "            entry.status = PENDING\n        elif",
        "            pass\n        elif",
    ),
]
