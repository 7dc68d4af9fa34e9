"""Who goes next: a pure choice among the steps that are on offer.

Knows offers, the time and what was served lately; knows no workload, no clock and no thread. `pick` has three rules:

(a) *Shares.* A class that waits earns credit: its minimum share of all device time that is handed out. A class whose
    credit is positive is owed, and the one owed for longest goes first.
(b) *Deadlines.* Otherwise the earliest deadline goes first; ties go to the more urgent class, then to the tenant served
    least in the window, then to the order in which the steps were offered.
(c) *Fairness under overload.* Offers overdue by more than the longest step can only mean that more was asked than the
    device can do. They keep their place before the others, but among themselves the tenant served least goes first, so
    that a hundred queued requests of one tenant do not starve another's single one.

What holds, with L the longest step as it really took (a prediction error of e makes it L + e):

* If preemptive earliest-deadline-first (EDF) would end every request L before its deadline, every request ends by its
  deadline, as long as no share is owed. Reason: let a request end at f with deadline d, and let s be the last time
  before f at which a step of a later deadline started. At s nothing of a deadline up to d was waiting, so preemptive
  EDF cannot have begun before s what we did after that step, and is not done with it before f - L: one request of a
  deadline up to d ends at f - L or later there. So we are never later than its latest request by more than L, and
  predictions matter only in so far as they bound a step.
* With shares, add to L the device time that rule (a) gave out of deadline order.
* A class that waits through T ms of device time gets at least `s T - L (1 + (n - 1) s)` of them, s its minimum share
  and n the number of classes with one that wait: one longest step short if n is 1. Reason: credit is a queue served
  oldest first and filled at a rate below 1, so no credit gets older than n steps; and a class that is served beyond its
  share falls at most (1 - s) L into debt, the rest is forgiven. Where classes share steps it can be s L less: that is
  what random traces showed, and not proven.
* Under overload, tenants of one class with overdue work differ by at most three longest steps in what they got in a
  window: one that was chosen, and what falls out of the window meanwhile.
* A step that is shared is longer for its members of later deadlines. The promises count it as if it took its lead's own
  time; what it takes beyond that is added to L.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from braid.llm_core.core import Offer, PolicyConfig, RequestClass


class Reason(enum.StrEnum):
    """Which rule chose."""

    DEADLINE = "deadline"
    SHARE = "share"
    OVERLOAD = "overload"


@dataclass(frozen=True, slots=True)
class Decision:
    """The step to run next."""

    lead: Offer
    members: tuple[Offer, ...]
    """All offers that may share the step, most urgent first; the lead is `members[0]`."""
    reason: Reason = Reason.DEADLINE


class ServiceHistory:
    """What `pick` needs to know of the past. The loop keeps it up to date; `pick` only reads it.

    Args:
        longest_step_ms: how long a step may take by its limits; steps that take longer raise it until the device rests.
    """

    def __init__(self, config: PolicyConfig, longest_step_ms: float) -> None:
        self._shares = config.min_share
        self._window_s = config.share_window_ms / 1000
        self._step_limit_ms = longest_step_ms
        self._window: deque[tuple[float, dict[str, float]]] = deque()
        self.longest_step_ms = longest_step_ms
        self.credit_ms: dict[RequestClass, float] = {}
        """Of each waiting class: earned minus received. Positive: the class is owed a step."""
        self.served_ms: dict[str, float] = {}
        """Device time of each tenant within the window."""

    def notice(self, offers: Sequence[Offer]) -> None:
        """Start the credit of classes that begin to wait and drop that of those that stopped.

        A class starts in debt for a step of its own, which it earns by waiting: coming and going is no way to be owed.
        """
        waiting = {offer.request_class: offer.cost_ms for offer in offers}
        if waiting.keys() == self.credit_ms.keys():
            return
        for request_class in self.credit_ms.keys() - waiting.keys():
            del self.credit_ms[request_class]
        for request_class in waiting.keys() - self.credit_ms.keys():
            self.credit_ms[request_class] = -(1 - self._share(request_class)) * waiting[request_class]

    def record(self, now: float, ran: Sequence[Offer], device_ms: float) -> None:
        """Charge a step that ended at `now`, in equal parts, to the requests that were in it."""
        if not ran:
            return
        self.longest_step_ms = max(self.longest_step_ms, device_ms)
        part = device_ms / len(ran)
        classes: dict[RequestClass, float] = {}
        tenants: dict[str, float] = {}
        for offer in ran:
            classes[offer.request_class] = classes.get(offer.request_class, 0.0) + part
            tenants[offer.tenant] = tenants.get(offer.tenant, 0.0) + part
        self._charge_classes(classes, device_ms)
        self._charge_tenants(now, tenants)

    def rest(self) -> None:
        """Nothing is on offer: whatever was owed or late is over."""
        self.credit_ms.clear()
        self.longest_step_ms = self._step_limit_ms

    def _share(self, request_class: RequestClass) -> float:
        return self._shares.get(request_class, 0.0)

    def _charge_classes(self, classes: dict[RequestClass, float], device_ms: float) -> None:
        for request_class, credit in self.credit_ms.items():
            share = self._share(request_class)
            received = classes.get(request_class, 0.0)
            earned = share * device_ms
            deepest_debt = min(credit, -(1 - share) * received)
            self.credit_ms[request_class] = max(credit + earned - received, deepest_debt)

    def _charge_tenants(self, now: float, tenants: dict[str, float]) -> None:
        self._window.append((now, tenants))
        for tenant, ms in tenants.items():
            self.served_ms[tenant] = self.served_ms.get(tenant, 0.0) + ms
        while self._window[0][0] < now - self._window_s:
            for tenant, ms in self._window.popleft()[1].items():
                left_ms = self.served_ms[tenant] - ms
                if left_ms > 1e-6:
                    self.served_ms[tenant] = left_ms
                else:
                    del self.served_ms[tenant]


def pick(offers: Sequence[Offer], now: float, history: ServiceHistory, config: PolicyConfig) -> Decision | None:
    """Choose the next step and who may share it, or None if nothing is offered. See the module for what holds."""
    if not offers:
        return None
    if len(offers) == 1:
        return Decision(offers[0], (offers[0],))
    late_before = now - history.longest_step_ms / 1000
    is_overload = any(offer.deadline < late_before for offer in offers)
    ranked = sorted(offers, key=_fair_order(history, late_before) if is_overload else _deadline_order(history))
    owed = _longest_owed(history, config)
    lead = next((offer for offer in ranked if offer.request_class == owed), ranked[0])
    return Decision(lead, _sharing(lead, ranked), _reason(lead, ranked[0], late_before))


_Order = Callable[[Offer], tuple[float, float, float, float]]


def _deadline_order(history: ServiceHistory) -> _Order:
    served = history.served_ms
    return lambda offer: (0, offer.deadline, offer.request_class, served.get(offer.tenant, 0.0))


def _fair_order(history: ServiceHistory, late_before: float) -> _Order:
    served = history.served_ms

    def order(offer: Offer) -> tuple[float, float, float, float]:
        if offer.deadline < late_before:
            return (0, served.get(offer.tenant, 0.0), offer.deadline, offer.request_class)
        return (1, offer.deadline, offer.request_class, served.get(offer.tenant, 0.0))

    return order


def _longest_owed(history: ServiceHistory, config: PolicyConfig) -> RequestClass | None:
    owed_for_ms, owed = 0.0, None
    for request_class, credit in history.credit_ms.items():
        if credit > 0 and credit / config.min_share[request_class] > owed_for_ms:
            owed_for_ms, owed = credit / config.min_share[request_class], request_class
    return owed


def _sharing(lead: Offer, ranked: Sequence[Offer]) -> tuple[Offer, ...]:
    if lead.batch_key is None:
        return (lead,)
    key, workload = lead.batch_key, lead.workload
    members = [offer for offer in ranked if offer.batch_key == key and offer.workload == workload]
    if members[0] is not lead:
        members = [lead, *(offer for offer in members if offer is not lead)]
    return tuple(members)


def _reason(lead: Offer, first: Offer, late_before: float) -> Reason:
    if lead is not first:
        return Reason.SHARE
    return Reason.OVERLOAD if lead.deadline < late_before else Reason.DEADLINE
