"""All messages: what crosses from one process to another.

Plain tuples, the code first (a tuple pickles six times faster than a named tuple). Whatever can
arrive late carries a number that its receiver checks: the task's attempt, the registration's
token; the link that it comes by names the sender's incarnation.

Owner to executor
    TASK      task, attempt, function, entries, args, slots, name, returns, helps
                  returns: None for one value, else (count, first, until, last): see `returns`;
                  function: key of a DEFINE; entries: keys of the namespace entries it needs;
                  args: the value of (args, kwargs); slots: values of the futures among them;
                  helps: whether it may run tasks that it waits for itself
    DEFINE    key, body                 a function's pickle, once per worker
    ENTRY     key, body                 a global of __main__, when it differs from the last sent
    RECALL    tasks                     give back those that have not started
    INTERRUPT task, attempt, force, children
                  if you run it, have its code raise; force: die at once; children: None, or
                  cancel what it has submitted, too (True: by force, if need be)
    FORGET    keys                      these definitions will not be used again
    FREE      serials                   extents of the receiver that nobody needs any more
    ABANDON   serials                   nor these, but some process may still map them

    SPILL     serial                    copy this extent of the receiver to disk
    CHECK     segment                   it was not found: if it is gone, write nothing more there
    MOVED     serial, taken             taken: the copy stands for the value now, and the memory is
                                        free; else the copy is not needed

    CREDIT    task, attempt, until, last
                  a stream: values with an index below `until` may be yielded; last: and no others

Executor to owner
    DONE      task, attempt, status, value, elapsed_ns, extras
                  status: also UNREAD, see `values`; extras: None, or (pinned, given, entries):
                  mappings that outlive the task, the objects whose futures are inside the value
                  ((address, token), ...), and the namespace entries that its readers need
    YIELD     task, attempt, index, status, value, extras
                  one of several values is there, before the DONE; extras: as there
    RECALLED  asked, given              the answer to RECALL
    UNMAPPED  ((number, serial), ...)   the last mapping of these extents is gone
    SPILLED   serial, segment           the answer to SPILL: the file, or None
    BLOCKED   -                         the task of yours that runs here waits for a future
    UNBLOCKED -                         it waits no more

Borrower to owner (see `borrowing`)
    REGISTER  asked, ((object, process, token), ...)
                  these processes keep handles; if `asked` is not 0, it is to be answered
    BORROW    object                    tell me its outcome
    RELEASE   ((object, token), ...)    these registrations are over
    WANT      object                    a task waits for it
    LOST_VALUE  object, extent, segment   its value could not be read: tell me the outcome anew

Owner to borrower
    REGISTERED  asked, lost             the answer to REGISTER: these objects are gone
    OUTCOME   object, status, value, entries
                  the object is there, or failed; entries: as in TASK
    CONFIRM   dead, ((object, token), ...)
                  a process has died that had registered you: release what you never heard of

Worker to lessor (see `lessor`)
    ALIVE     pid                       the initializer has run; tasks may come
    INIT_FAILED  error                  it raised: the pool is of no use
    DEMAND    count, granted, wanted, busy
                  so many more workers could be used, besides those of which GRANT has told so far;
                  whether a worker waits for one of those tasks; whether any task is unfinished
    GIVE_BACK worker, ran               a leased worker, and how many tasks it was given
    CONDEMN   worker, execution         kill that one if it runs this execution of mine
    BLOCKED, UNBLOCKED                  as to the owner
    VACANT    -                         the answer to GONE: nothing of the dead process's is here
    HOLDING   dead, segments            the answer to GONE: these segments of it hold values of mine
    UNHOLD    dead, segment             no more

    SAY       process, messages         in the crash record only: what it had to say to that one
    CONNECT   process                   a link to that one is needed  (for the process, not for
                                        its machine; so is LINK)

Lessor to worker
    LINK      process                   with it comes a descriptor: your end of the link
    GRANT     worker, left              you may send it tasks; at most `left`, if that is not None
    REVOKE    worker                    give it back as soon as it has done what it has started
    SAID      process, messages         what it had said to you and not sent when it ended
    GONE      process, owner, execution, pid, exitcode, stack
                  it has ended, and nothing more of it will come; `owner` is whose task
                  (`execution`) it had started, and not reported
    BROKE     failure                   no worker can be had any more
    STOP      final                     end once the queue is empty; unless `final`, not before your
                                        own objects are needed no more
"""

from __future__ import annotations

from typing import Any

Message = tuple[Any, ...]

TASK, DEFINE, ENTRY, RECALL, FREE, OUTCOME, STOP, FORGET = range(1, 9)
REGISTERED, CONFIRM, GRANT, REVOKE, GONE, BROKE, SAID = range(9, 16)
ALIVE, INIT_FAILED, DONE, RECALLED, RELEASE, UNMAPPED, BORROW, BLOCKED, UNBLOCKED = range(20, 29)
REGISTER, WANT, DEMAND, GIVE_BACK, VACANT, HOLDING, UNHOLD = range(29, 36)
CONNECT, LINK, SAY = range(36, 39)
INTERRUPT, CONDEMN = 16, 39
SPILL, MOVED, SPILLED, ABANDON = range(40, 44)
YIELD, CREDIT = 50, 51
CHECK, LOST_VALUE = 52, 53
